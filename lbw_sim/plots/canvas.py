"""The paper that figures are drawn on: size, colours, common dress of axes, and saving.

No pyplot: nothing is shown on a screen, and no setting of matplotlib's outlives the saving of a figure.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib import rc_context, rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font

from lbw_sim.errors import ScoreError
from lbw_sim.whole_file import write_whole

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILLION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
"""Okabe and Ito's palette, told apart with any colour vision (jfly.uni-koeln.de/color)."""
GREY = "#777777"
PALE = "#BBBBBB"
WHITE = "#FFFFFF"
GRID, LANE = "#E6E6E6", "#EEEEEE"
CALM = "#BFE3D7"

DARK = {
    BLACK: "#E4E6E9", WHITE: "#14171B", GREY: "#9AA1A9", PALE: "#5F666E", GRID: "#2B3036", LANE: "#23282D",
    CALM: "#1E4A3E", ORANGE: "#F2B134", SKY: "#8ACBF2", GREEN: "#30C79B", YELLOW: "#CDBF2E", BLUE: "#4FA9E2",
    VERMILLION: "#FF8A45", PURPLE: "#E3A0C5",
}  # fmt: skip
"""What each colour of a figure becomes on a dark page; figures use no other colours."""

LINE_COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, BLACK, SKY)
"""For lines and points; yellow is too faint on white."""

TEXT = 9.0
"""Points; legible when the figure is 900 px wide."""
WIDTH = 9.0
"""Inches."""
PHONE_WIDTH = 4.9
"""Inches: text keeps its size on a page of 390 px."""
LONGEST_NARROW_NAME = 22
"""Letters of a name in a figure of that width."""
SUFFIXES = (".png", ".svg", ".pdf")
_SETTINGS = threading.Lock()


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """A blank figure, in inches; 100 dots per inch, so 9 inches are 900 px."""
    return Figure(figsize=(width, height), dpi=100, layout="constrained")


def plain(text: str) -> str:
    """Text from a file, to be drawn as it is: no formulas, no line breaks, no control characters.

    A letter that the fonts lack is spelled out: boxes would be alike for all names, and matplotlib would warn of each.

    >>> plain("run $x$\\n2"), plain("守卫")
    ('run \\\\$x\\\\$ 2', '\\\\u5b88\\\\u536b')
    """
    # a lone $ is drawn as it is; two of them would start a formula, and may fail to parse
    text = printable(text)
    if not text.isascii():
        held = _letters(tuple(rcParams["font.family"]), tuple(rcParams["font.sans-serif"]))
        text = "".join(c if ord(c) in held else c.encode("unicode_escape").decode("ascii") for c in text)
    return text.replace("$", r"\$")


@cache
def _letters(families: tuple[str, ...], sans_serif: tuple[str, ...]) -> frozenset[int]:
    """The letters that text can be drawn with under these settings; `sans_serif` is what that family stands for."""
    held: set[int] = set()
    for family in families:
        # a family that is not installed draws nothing
        with suppress(ValueError):
            held |= set(get_font(findfont(FontProperties(family=[family]), fallback_to_default=False)).get_charmap())
    return frozenset(held)


def printable(text: str) -> str:
    """Text with a blank for every line break and control character."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def short(name: str, longest: int) -> str:
    """A name that fits beside a line.

    >>> short("a" * 40, 32)
    'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa…'
    """
    return name if len(name) <= longest else name[: longest - 1] + "…"


def narrow(ax: Axes) -> bool:
    """Whether the figure is drawn for a phone, where long names leave no room for anything else."""
    return bool(ax.figure.get_size_inches()[0] <= PHONE_WIDTH)  # type: ignore[union-attr]


def dress(ax: Axes, x_label: str = "", y_label: str = "") -> None:
    """Axis names with their units, open top and right, quiet grid."""
    ax.set_xlabel(x_label, fontsize=TEXT)
    ax.set_ylabel(y_label, fontsize=TEXT)
    ax.tick_params(labelsize=TEXT)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(True, color=GRID, linewidth=0.6)
    ax.set_axisbelow(True)


def footnote(ax: Axes, text: str) -> None:
    """What a reader must know, under the horizontal axis."""
    ax.annotate(
        text, (0.0, 0.0), xycoords="axes fraction", xytext=(0, -44), textcoords="offset points", fontsize=TEXT - 1,
        color=GREY, annotation_clip=False,
    )  # fmt: skip


@contextmanager
def same_bytes(**more: object) -> Iterator[None]:
    """While it lasts an unchanged figure makes an unchanged SVG. `more`: further settings, with `_` for `.`."""
    settings: dict[Any, Any] = {name.replace("_", "."): value for name, value in more.items()}
    # ids from what is drawn, not at random; settings belong to the whole process
    with _SETTINGS, rc_context({"svg.hashsalt": "lbw-sim", **settings}):
        yield


def check_name(path: Path) -> None:
    """Refuse a file name that tells no format. Raises ScoreError."""
    if path.suffix.lower() not in SUFFIXES:
        raise ScoreError(f"cannot save a figure as {path.name!r}; its name must end in {', '.join(SUFFIXES)}")


def save(figure: Figure, path: str | Path, *, dots_per_inch: int = 150) -> Path:
    """Write a figure, whole or not at all, as the suffix says: .png, .svg or .pdf. Makes the folder.

    Raises ScoreError.
    """
    path = Path(path)
    check_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = path.suffix.lower()
        metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(kind)
        drawn = io.BytesIO()
        with same_bytes():
            figure.savefig(drawn, format=kind[1:], dpi=dots_per_inch, metadata=metadata)
        write_whole(path, drawn.getvalue())
    except OSError as error:
        raise ScoreError(f"cannot write the figure {path}: {error}") from None
    return path


class Picture(NamedTuple):
    """A figure that shows itself in a notebook, whatever else is installed or switched on there."""

    figure: Figure

    def save(self, path: str | Path) -> Path:
        """Write it; see `save`. Raises ScoreError."""
        return save(self.figure, path)

    def _repr_svg_(self) -> str:
        """For notebooks."""
        text = io.StringIO()
        with same_bytes():
            self.figure.savefig(text, format="svg", metadata={"Date": None})
        return text.getvalue()
