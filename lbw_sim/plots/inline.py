"""A figure as SVG that stands inside an HTML page: in the page's font, in colours that follow light and dark.

It holds no script, no link, no fixed colour that the page does not know, and no id that another figure of the page has.
"""

from __future__ import annotations

import html
import io
import re
import warnings

from matplotlib.figure import Figure

from lbw_sim.plots.canvas import DARK, printable, same_bytes

_COLOUR = re.compile(r"#[0-9a-fA-F]{6}\b")
_KNOWN = {colour.lower() for colour in DARK}
_LONG_NUMBER = re.compile(r"(\d\.\d\d)\d+")
_FONT = re.compile(r"font: (?:(?:[a-z]+|\d+) )*([\d.]+)px [^;\"]*")


def inline_svg(figure: Figure, prefix: str, text: str) -> str:
    """The figure as one `<svg>` element. `prefix`: a word of its own within the page; `text`: what it shows, for
    readers that do not see it.

    Every colour of `DARK` becomes `var(--f-rrggbb)`; `colour_variables` has their values.
    """
    written = io.StringIO()
    with same_bytes(svg_fonttype="none"), warnings.catch_warnings():
        # the page's fonts draw the text, not matplotlib's
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    svg = written.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    # a style sheet in here would count for the whole page
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.S)
    head, _, body = svg.partition(">")
    box = re.search(r'viewBox="([^"]*)"', head)
    assert box is not None
    parts = re.split(r"(<text.*?</text>)", body, flags=re.S)
    return (
        f'<svg viewBox="{box[1]}" role="img" aria-label="{html.escape(printable(text))}">'
        + "".join(_text(part) if part.startswith("<text") else _shapes(part, prefix) for part in parts).strip()
    )


def colour_variables(*, dark: bool) -> str:
    """CSS declarations of the colours that figures use."""
    return "".join(f"--f-{light[1:].lower()}:{shade if dark else light};" for light, shade in DARK.items())


def _shapes(part: str, prefix: str) -> str:
    """Everything that is not text, which may hold what looks like markup."""
    part = re.sub(r"<!--.*?-->", "", part, flags=re.S)
    part = re.sub(r'<g id="[^"]*"', "<g", part)
    part = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{prefix}-", part).replace("xlink:href", "href")
    part = _LONG_NUMBER.sub(r"\1", part)
    part = re.sub(r"\s*\n\s*", " ", part)
    return _colours(part)


def _text(part: str) -> str:
    tag, _, content = part.partition(">")
    tag = _FONT.sub(r"font-size: \1px", _LONG_NUMBER.sub(r"\1", tag))
    return f"{_colours(tag)}>{content}"


def _colours(part: str) -> str:
    return _COLOUR.sub(
        lambda found: f"var(--f-{found[0][1:].lower()})" if found[0].lower() in _KNOWN else found[0], part
    )
