"""Model cards as HTML: headings, paragraphs, lists, tables and code, and nothing else of Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby

from markupsafe import Markup, escape

_RULE = re.compile(r"\|(\s*:?-+:?\s*\|)+")
_CELL = re.compile(r"(?<!\\)\|")
_CODE = re.compile(r"`([^`]+)`")
_MOST = 200_000  # characters


def as_html(text: str, level: int = 2) -> Markup:
    """The text as HTML, with everything escaped that is no markup of the kinds above.

    Args:
        text: Markdown, from whoever made the model.
        level: of the headings with two number signs; those with one are left out, as the page has its own.
    """
    return Markup("\n").join(_blocks(text[:_MOST], level))


def _kind(line: str) -> str:
    if not line.strip():
        return "nothing"
    if line.startswith("#"):
        return "heading"
    if line.startswith("|"):
        return "table"
    return "list" if line.startswith("- ") else "text"


def _blocks(text: str, level: int) -> Iterator[Markup]:
    for kind, found in groupby(text.splitlines(), _kind):
        lines = list(found)
        if kind == "heading":
            yield from (_heading(line, level) for line in lines if line.startswith("##"))
        elif kind == "table":
            yield _table(lines)
        elif kind == "list":
            items = Markup("").join(Markup("<li>{}</li>").format(_inline(line[2:])) for line in lines)
            yield Markup("<ul>{}</ul>").format(items)
        elif kind == "text":
            yield Markup("<p>{}</p>").format(_inline(" ".join(lines)))


def _heading(line: str, level: int) -> Markup:
    depth = min(level + len(line) - len(line.lstrip("#")) - 2, 6)
    return Markup("<h{}>{}</h{}>").format(depth, _inline(line.lstrip("# ")), depth)


def _table(lines: list[str]) -> Markup:
    rows = [[cell.strip().replace("\\|", "|") for cell in _CELL.split(line)[1:-1]] for line in lines]
    body = [row for line, row in zip(lines, rows, strict=True) if not _RULE.fullmatch(line.strip())]
    head, *rest = body or [[]]
    text = '<div class="scroll" tabindex="0"><table><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>'
    return Markup(text).format(_cells(head, "th"), Markup("").join(_row(row) for row in rest))  # noqa: S704


def _row(cells: list[str]) -> Markup:
    return Markup("<tr>{}</tr>").format(_cells(cells, "td"))


def _cells(cells: list[str], tag: str) -> Markup:
    return Markup("").join(Markup("<{0}>{1}</{0}>").format(tag, _inline(cell)) for cell in cells)


def _inline(text: str) -> Markup:
    return Markup(_CODE.sub(r"<code>\1</code>", str(escape(text))))  # noqa: S704  (escaped before)
