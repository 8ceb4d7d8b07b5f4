"""HTML and SVG built from Python: whatever is not `Markup` is escaped, in text as in attributes."""

from collections.abc import Iterable
from html import escape
from typing import TypeAlias

_VOID = frozenset({"br", "col", "hr", "input", "link", "meta"})  # elements of HTML without an end tag


class Markup(str):
    """Text that is markup already and goes out as it is."""

    __slots__ = ()


Node: TypeAlias = "str | Iterable[Node] | None"


def join(*nodes: Node) -> Markup:
    """Nodes side by side; text in them is escaped, None is left out."""
    return Markup("".join(_texts(nodes)))


def element(name: str, /, *children: Node, **attributes: str | float | bool | None) -> Markup:
    """One element. `class_` and `stroke_width` become `class` and `stroke-width`; None and False leave one out."""
    told = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in _VOID:
        return Markup(f"<{name}{told}>")
    return Markup(f"<{name}{told}>{join(*children)}</{name}>")


def _texts(node: Node) -> Iterable[str]:
    if isinstance(node, Markup):
        yield node
    elif isinstance(node, str):
        yield escape(_printable(node))
    elif node is not None:
        for child in node:
            yield from _texts(child)


def _attribute(key: str, value: str | float | bool | None) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    if value is True:
        return f" {name}"
    text = value if isinstance(value, str) else number(value)
    return f' {name}="{escape(_printable(text))}"'


def number(value: float) -> str:
    """A number in few characters: two decimals at most."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if value % 1 else f"{value:.0f}"


def _printable(text: str) -> str:
    """Text without the control characters that HTML forbids."""
    return "".join(letter if letter >= " " or letter in "\n\t" else "\ufffd" for letter in text)
