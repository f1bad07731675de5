"""The pieces that a page is put together from: tables, plots with their captions, numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from numbers import Integral, Real

from mlaas4hep.markup import Markup, element
from mlaas4hep.training.report.figure import Figure

_NUMBER = '<td class="n'
_THIN_SPACE = "\N{NARROW NO-BREAK SPACE}"


def whole(value: int) -> str:
    """12 345."""
    return f"{value:,}".replace(",", _THIN_SPACE)


def number(value: object, digits: int = 4) -> str:
    """A number with so many significant digits, whole numbers in full; a dash for what is none."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return str(value)
    if isinstance(value, Integral):
        return whole(int(value))
    real = float(value)
    if math.isnan(real):
        return "\N{EN DASH}"
    text = f"{real:.{digits}g}" if math.isfinite(real) else f"{real}".replace("inf", "\N{INFINITY}")
    return text.replace("-", "\N{MINUS SIGN}")


def fixed(value: float, decimals: int = 4) -> str:
    """A number with so many decimals; a dash for NaN."""
    return "\N{EN DASH}" if math.isnan(value) else f"{value:.{decimals}f}".replace("-", "\N{MINUS SIGN}")


def with_error(value: float, error: float) -> str:
    """0.8305 ± 0.0142; the error is left out where it is not known."""
    return fixed(value) if math.isnan(error) else f"{fixed(value)} ± {fixed(error)}"


def table(caption: str, headers: Sequence[str], rows: Sequence[Sequence[object]], *, css: str = "") -> Markup:
    """A table whose first column names the rows; numbers, and the titles of their columns, are aligned to the right."""
    cells = [[_cell(value) for value in row[1:]] for row in rows]
    numeric = [cell.startswith(_NUMBER) for cell in cells[0]] if cells else []
    aligned = [None, *("n" if is_number else None for is_number in numeric), *(None for _ in headers)]
    head = element(
        "tr", *(element("th", text, scope="col", class_=align) for text, align in zip(headers, aligned, strict=False))
    )
    body = [element("tr", element("th", row[0], scope="row"), *found) for row, found in zip(rows, cells, strict=True)]
    content = element(
        "table", element("caption", element("span", caption)), element("thead", head), element("tbody", *body)
    )
    # wide tables scroll by themselves, also by the keyboard
    return element("div", content, class_=f"scroll {css}".strip(), tabindex=0, role="region", aria_label=caption)


def _cell(value: object) -> Markup:
    if isinstance(value, Markup):
        return value
    if isinstance(value, Real) and not isinstance(value, bool):
        return right(number(value))
    return element("td", value)


def right(text: str) -> Markup:
    """A cell with a number that is already text."""
    return element("td", text, class_="n")


def panel(title: str, figure: Figure, message: str, note: str = "") -> Markup:
    """A plot with its title above, and its legend and a note below."""
    return element(
        "figure",
        element("figcaption", title),
        figure.svg(message),
        figure.legend(),
        element("p", note, class_="note") if note else None,
    )


def grid(panels: Iterable[Markup | None], *, small: bool = False) -> Markup:
    """Plots beside each other, as many as the width has room for."""
    return element("div", *panels, class_="grid small" if small else "grid")


def folded(summary: str, *content: object, shown: bool = False) -> Markup:
    """Content that the reader unfolds."""
    return element("details", element("summary", summary), *content, open="" if shown else None)
