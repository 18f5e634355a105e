"""HTML made of elements, not of strings: whatever is not an element is text, and is escaped.

So a run id, a label or a guard's name that looks like markup is shown as it is written. There is no way to make a
script, a link to another host or an event handler with it.
"""

from __future__ import annotations

import html
from collections.abc import Iterable

VOID = frozenset({"br", "hr", "meta", "wbr"})
ATTRIBUTES = frozenset(
    {"class", "id", "href", "lang", "charset", "name", "content", "http-equiv", "open", "colspan", "title", "scope"}
)


class Html(str):
    """Markup that was made here."""

    __slots__ = ()


Child = str | int | None | Iterable["Child"]


def element(tag: str, *children: Child, **attributes: str | bool) -> Html:
    """One element. Children: text, `Html`, None, or sequences of them. Attributes: `class_` for class, `_` for `-`.

    >>> element("p", "loss < 3", element("b", "now"), class_="note")
    '<p class="note">loss &lt; 3<b>now</b></p>'
    """
    written = ""
    for key, value in attributes.items():
        name = key.rstrip("_").replace("_", "-")
        assert name in ATTRIBUTES, name
        if name == "href":
            assert str(value).startswith("#"), "a report links to itself only"
        if value is True:
            written += f" {name}"
        elif value is not False:
            written += f' {name}="{html.escape(shown(str(value)))}"'
    if tag in VOID:
        return Html(f"<{tag}{written}>")
    return Html(f"<{tag}{written}>{joined(children)}</{tag}>")


def joined(children: Child) -> Html:
    """Children behind one another, text escaped, characters that are not for showing replaced.

    >>> joined(["a\\x00b & ", element("i", "c"), None, 3])
    'a\\ufffdb &amp; <i>c</i>3'
    """
    if children is None:
        return Html("")
    if isinstance(children, Html):
        return children
    if isinstance(children, (str, int)):
        return Html(html.escape(shown(str(children))))
    return Html("".join(joined(child) for child in children))


def shown(text: str) -> str:
    """Text without characters that turn, hide or break what is around them."""
    return "".join(letter if letter.isprintable() or letter in "\n\t" else "\ufffd" for letter in text)
