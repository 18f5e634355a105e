"""What pages are built of: numbers for reading, tables, figures, cards. It knows no run and no guard."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from lbw_sim.report.html import Child, Html, element
from lbw_sim.score import Column
from lbw_sim.score.table import UNDEFINED
from lbw_sim.wording import counted

Row = Mapping[str, object]


def number(value: float | int | None, spec: str = ".4g") -> str:
    """A number for reading; nan and None become a dash, large whole numbers get commas."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return UNDEFINED
    if isinstance(value, int) or (float(value).is_integer() and abs(value) < 1e15 and spec == ".4g"):
        return f"{int(value):,}"
    return format(value, spec)


def count(many: int, one: str, several: str = "") -> str:
    """As `counted`, but none of something is "no".

    >>> count(1, "run"), count(2_000, "row"), count(0, "alarm")
    ('1 run', '2,000 rows', 'no alarm')
    """
    if many == 0:
        return f"no {one}"
    return counted(many, one, several)


def table(columns: Sequence[Column], rows: Sequence[Row], caption: Child = None) -> Html:
    """A table that scrolls by itself where the page is narrower. A cell may be an element; numbers to the right."""
    head = [
        element("th", column.title, scope="col", class_="number") if column.format else element("th", column.title)
        for column in columns
    ]
    body = []
    for row in rows:
        cells = []
        for column in columns:
            value = row[column.key]
            text: Child = value if isinstance(value, Html) else column.cell(row)
            cells.append(element("td", text, class_="number") if column.format else element("td", text))
        body.append(element("tr", cells, class_=str(row["class"])) if row.get("class") else element("tr", cells))
    return element(
        "div",
        element(
            "table",
            element("caption", caption) if caption else None,
            element("thead", element("tr", head)),
            element("tbody", body),
        ),
        class_="scroll",
    )


def figure(svg: Html, caption: Child, class_: str = "", narrow: Html | None = None) -> Html:
    """A drawing and what it shows. `narrow`: the same drawn for a phone; one of the two is shown."""
    box: Child = element("div", svg, class_=f"scroll {class_}") if class_ == "wide" else svg
    if narrow is not None:
        box = [element("div", svg, class_=f"{class_} paired"), element("div", narrow, class_="narrow")]
    return element("figure", box, element("figcaption", caption), **({"class_": class_} if class_ == "middle" else {}))


def cards(facts: Iterable[tuple[str, Child]]) -> Html:
    """Large numbers with small names."""
    return element(
        "div", [element("div", element("b", value), element("span", name), class_="card") for name, value in facts],
        class_="cards",
    )  # fmt: skip
