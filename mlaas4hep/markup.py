"""HTML and SVG as text that is escaped unless it was built here."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

# HTML has no place for these characters, not even written as references
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffe\uffff]")
_EMPTY = frozenset({"meta", "circle", "path", "rect", "line"})
_SVG_EMPTY = _EMPTY - {"meta"}


class Markup(str):
    """Text that is HTML already; every other text is escaped when it becomes the content of an element."""

    __slots__ = ()


def escape(text: object) -> Markup:
    """Any text as HTML: special characters as references, those that HTML cannot hold as U+FFFD."""
    if isinstance(text, Markup):
        return text
    clean = str(text).encode("utf-8", "replace").decode("utf-8")
    return Markup(html.escape(_FORBIDDEN.sub("\ufffd", clean), quote=True))


def joined(parts: Iterable[object]) -> Markup:
    """The parts one after another, each escaped unless it is HTML already."""
    return Markup("".join(escape(part) for part in parts))


def element(tag: str, /, *content: object, **attributes: object) -> Markup:
    """One element.

    Args:
        tag: name of the element.
        content: texts and elements within it; None is left out.
        attributes: values None are left out; `class_` is written `class`, `aria_label` is written `aria-label`.
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if tag in _EMPTY:
        return Markup(f"<{tag}{given}/>" if tag in _SVG_EMPTY else f"<{tag}{given}>")
    return Markup(f"<{tag}{given}>{joined(part for part in content if part is not None)}</{tag}>")
