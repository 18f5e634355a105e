"""How objects show themselves in a notebook: a few facts as an HTML table, text escaped.

Nothing heavy: one string, made when it is asked for.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence


def facts(title: str, rows: Iterable[tuple[str, object]]) -> str:
    """A table of names and values below a title.

    >>> facts("run <7>", [("rows", 3)])
    '<b>run &lt;7&gt;</b><table><tr><th>rows</th><td>3</td></tr></table>'
    """
    body = "".join(f"<tr><th>{_text(name)}</th><td>{_text(value)}</td></tr>" for name, value in rows)
    return f"<b>{_text(title)}</b><table>{body}</table>"


def grid(title: str, head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table with a heading per column below a title.

    >>> grid("", ["a"], [[1]])
    '<table><tr><th>a</th></tr><tr><td>1</td></tr></table>'
    """
    lines = ["".join(f"<th>{_text(name)}</th>" for name in head)]
    lines += ["".join(f"<td>{_text(value)}</td>" for value in row) for row in rows]
    above = f"<b>{_text(title)}</b>" if title else ""
    return f"{above}<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def warned(texts: Iterable[str]) -> str:
    """What to know before trusting what stands above; nothing without texts.

    >>> warned(["a < b"]), warned([])
    ('<p>Before you trust this:</p><ul><li>a &lt; b</li></ul>', '')
    """
    items = "".join(f"<li>{_text(text)}</li>" for text in texts)
    return f"<p>Before you trust this:</p><ul>{items}</ul>" if items else ""


def _text(value: object) -> str:
    return html.escape(str(value))
