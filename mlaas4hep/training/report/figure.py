"""Plots as SVG in the style of high-energy physics: ticks inwards on all sides, titles at the ends of the axes.

Colours, fonts and line widths come from classes that the page's style sheet defines, so that a plot follows the
reader's light or dark scheme, needs no inline style, and is the same text for the same data. Names stand in the page,
beside the plot, where the browser can wrap them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlaas4hep.markup import Markup, element, joined

INK = -1
SERIES = 8
"""Number of colours; the series after the last begin again with the first."""

_NICE = ((1.0, 5), (2.0, 4), (5.0, 5), (10.0, 5))
_TIMES = "\N{MULTIPLICATION SIGN}"
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_FAR = 4000.0
_SEGMENTS_APART = 0.05


@dataclass(frozen=True)
class Size:
    """Measures of a plot in its own units, which the page scales; `ticks` is how many are wanted on x and on y."""

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int
    ticks: tuple[int, int]
    tick: int
    css: str


FULL = Size(420, 310, 70, 10, 16, 44, (6, 6), 8, "plot")
SMALL = Size(220, 140, 34, 9, 8, 20, (4, 3), 4, "plot small")


@dataclass(frozen=True)
class Axis:
    """A range with its title.

    Attributes:
        low, high: the ends; a range that is empty or not finite is widened to one that can be drawn.
        title: what is shown, with its unit.
        log: whether equal factors have equal lengths; both ends must then be positive.
        whole: whether only whole numbers mean something, so that only they get a tick.
    """

    low: float
    high: float
    title: str = ""
    log: bool = False
    whole: bool = False

    def __post_init__(self) -> None:
        low, high = float(self.low), float(self.high)
        if not (math.isfinite(low) and math.isfinite(high)):
            low, high = (0.1, 1.0) if self.log else (0.0, 1.0)
        if self.log and low <= 0:
            low, high = min(high, 1.0) / 10 if high > 0 else 0.1, high if high > 0 else 1.0
        if not high - low > 1e-12 * max(abs(low), abs(high)):
            low, high = (low / 2, low * 2) if self.log else (low - 0.5 * (abs(low) or 1), low + 0.5 * (abs(low) or 1))
        object.__setattr__(self, "low", low)
        object.__setattr__(self, "high", high)

    def places(self, values: ArrayLike) -> NDArray[np.float64]:
        """Where values lie between the ends, 0 to 1; those that a logarithm does not have lie far below."""
        array = np.asarray(values, dtype=np.float64)
        if not self.log:
            # in halves, since the difference of two large numbers may overflow
            return np.asarray((array / 2 - self.low / 2) / (self.high / 2 - self.low / 2))
        with np.errstate(divide="ignore"):
            logarithms = np.log10(np.where(array < 0, 0.0, array))
        low, high = math.log10(self.low), math.log10(self.high)
        return np.asarray((np.maximum(logarithms, low - 1e3) - low) / (high - low))

    def ticks(self, wanted: int) -> Ticks:
        """The ticks, about `wanted` of them with a number."""
        if self.log:
            return _log_ticks(self.low, self.high, wanted)
        return _linear_ticks(self.low, self.high, wanted, 1.0 if self.whole else 0.0)


@dataclass(frozen=True)
class Ticks:
    """Values with and without a label, and the power of ten that the labels leave out (0 for none)."""

    major: list[float]
    labels: list[str]
    minor: list[float]
    exponent: int = 0


def power_of_ten(exponent: int) -> str:
    """10⁻³."""
    return "10" + str(exponent).translate(_SUPERSCRIPT)


def _linear_ticks(low: float, high: float, wanted: int, least: float) -> Ticks:
    raw = high / wanted - low / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    nice, parts = next((nice for nice in _NICE if nice[0] * power >= raw * (1 - 1e-9)), _NICE[-1])
    step = max(nice * power, least)
    parts = parts if step / parts >= least else round(step / least)
    major = [step * count for count in _counts(low, high, step)]
    minor = [step / parts * count for count in _counts(low, high, step / parts) if count % parts]
    largest = max((abs(value) for value in major), default=1.0) or 1.0
    exponent = math.floor(math.log10(largest) + 1e-9)
    exponent = exponent if exponent >= 5 or exponent <= -4 else 0
    decimals = min(max(exponent - math.floor(math.log10(step) + 1e-9), 0), 9)
    labels = [f"{value / 10.0**exponent + 0.0:.{decimals}f}".replace("-", "\N{MINUS SIGN}") for value in major]
    return Ticks(major, labels, minor, exponent)


def _counts(low: float, high: float, step: float) -> range:
    return range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)


def _log_ticks(low: float, high: float, wanted: int) -> Ticks:
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    decades = last - first + 1
    if decades < 2:
        fine = [factor * 10.0**power for power in range(first - 1, last + 1) for factor in (1, 2, 5)]
        major = [value for value in fine if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
        return Ticks(major, [f"{value:g}" for value in major], [])
    stride = math.ceil(decades / (wanted + 1))
    powers = range(first, last + 1, stride)
    between = [factor * 10.0**power for power in range(first - 1, last + 1) for factor in range(2, 10)]
    minor = [value for value in between if low <= value <= high] if decades <= 8 else []
    return Ticks([10.0**power for power in powers], [power_of_ten(power) for power in powers], minor)


def colour(series: int) -> str:
    """The class that gives a series its colour; INK is the colour of the text."""
    return "ink" if series == INK else f"s{series % SERIES}"


@dataclass
class Figure:
    """One plot: a frame with axes, and what is drawn within, in the order of the calls.

    Every drawing call takes the number of its series (its colour) and the name that the legend shows, if any.
    """

    x: Axis
    y: Axis
    size: Size = FULL
    _marks: list[Markup] = field(default_factory=list)
    _legend: list[Markup] = field(default_factory=list)

    @property
    def _width(self) -> int:
        return self.size.width - self.size.left - self.size.right

    @property
    def _height(self) -> int:
        return self.size.height - self.size.top - self.size.bottom

    def _across(self, values: ArrayLike) -> NDArray[np.float64]:
        return np.clip(self.x.places(values) * self._width, -_FAR, _FAR)

    def _down(self, values: ArrayLike) -> NDArray[np.float64]:
        return np.clip((1.0 - self.y.places(values)) * self._height, -_FAR, _FAR)

    def line(self, x: ArrayLike, y: ArrayLike, *, series: int, name: str = "", dash: str = "") -> None:
        """Straight lines between points; broken where a value is not finite. `dash` is "", `dashed` or `dotted`."""
        css = f"line {colour(series)} {dash}".strip()
        self._marks.append(element("path", class_=css, d=_polyline(self._across(x), self._down(y))))
        self._name(name, element("path", class_=css, d="M1 6H23"))

    def band(self, x: ArrayLike, low: ArrayLike, high: ArrayLike, *, series: int, name: str = "") -> None:
        """The area between two curves."""
        across, down, up = self._across(x), self._down(low), self._down(high)
        good = np.isfinite(across) & np.isfinite(down) & np.isfinite(up)
        outline = _polyline(
            np.concatenate([across[good], across[good][::-1]]), np.concatenate([up[good], down[good][::-1]])
        )
        css = f"band {colour(series)}"
        self._marks.append(element("path", class_=css, d=outline + "Z" if outline else ""))
        self._name(name, element("rect", class_=css, x=1, y=2, width=22, height=8))

    def steps(self, edges: ArrayLike, heights: ArrayLike, *, series: int, name: str = "", filled: bool = False) -> None:
        """A histogram: edges of shape (n + 1,), heights of shape (n,)."""
        across, down = self._across(edges), self._down(np.nan_to_num(np.asarray(heights, dtype=np.float64)))
        bottom = self._height + 2
        css = f"steps {colour(series)}{' filled' if filled else ''}"
        self._marks.append(element("path", class_=css, d=_staircase(across, down, bottom)))
        self._name(name, element("path", class_=css, d="M1 14V2H23V14"))

    def points(
        self,
        x: ArrayLike,
        y: ArrayLike,
        *,
        series: int,
        error: ArrayLike | None = None,
        half_width: float = 0.0,
        name: str = "",
        joined_by: str = "",
    ) -> None:
        """Markers with vertical error bars, and horizontal ones of `half_width` in units of x.

        `joined_by` is the dash of a line through them (`solid`, `dashed`, `dotted`), "" draws none.
        """
        x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
        good = np.isfinite(x) & np.isfinite(y)
        across, down = self._across(x[good]), self._down(y[good])
        bars = ""
        if error is not None:
            error = np.nan_to_num(np.asarray(error, dtype=np.float64)[good])
            top, low = self._down(y[good] + error), self._down(y[good] - error)
            bars = "".join(f"M{a:.1f} {t:.1f}V{b:.1f}" for a, t, b in zip(across, top, low, strict=True) if t != b)
        if half_width:
            ends = zip(self._across(x[good] - half_width), self._across(x[good] + half_width), down, strict=True)
            bars += "".join(f"M{a:.1f} {d:.1f}H{b:.1f}" for a, b, d in ends)
        tint = colour(series)
        if joined_by:
            self._marks.append(
                element("path", class_=f"line {tint} {joined_by}", d=_polyline(self._across(x), self._down(y)))
            )
        radius = 3.2 if self.size is FULL else 2
        dots = joined(
            element("circle", cx=f"{a:.1f}", cy=f"{d:.1f}", r=radius) for a, d in zip(across, down, strict=True)
        )
        self._marks.append(element("g", element("path", class_="bars", d=bars) if bars else None, dots, class_=tint))
        self._name(
            name,
            element(
                "g",
                element("path", class_=f"line {joined_by}", d="M1 6H23") if joined_by else None,
                element("path", class_="bars", d="M12 0V12") if bars else None,
                element("circle", cx=12, cy=6, r=3.2),
                class_=tint,
            ),
        )

    def cells(self, x_edges: ArrayLike, y_edges: ArrayLike, shades: NDArray[np.float64], *, series: int) -> None:
        """A map of shape (columns, rows) of shades from 0, which is left out, to 1."""
        across, down = self._across(x_edges), self._down(y_edges)
        tint = colour(series)
        for column, row in np.argwhere(shades > 0):
            self._marks.append(
                element(
                    "rect",
                    class_=f"cell {tint}",
                    x=f"{across[column]:.1f}",
                    y=f"{down[row + 1]:.1f}",
                    width=f"{across[column + 1] - across[column] + _SEGMENTS_APART:.1f}",
                    height=f"{down[row] - down[row + 1] + _SEGMENTS_APART:.1f}",
                    fill_opacity=f"{shades[column, row]:.2f}",
                )
            )

    def guide(self, x: ArrayLike, y: ArrayLike, name: str = "") -> None:
        """A thin line that shows where values would lie: no separation, perfect calibration, zero."""
        self.line(x, y, series=INK, name=name, dash="guide")

    def _name(self, name: str, key: Markup) -> None:
        if name:
            sample = element("svg", key, class_="key", viewBox="0 0 24 12", aria_hidden="true")
            self._legend.append(element("li", sample, element("span", name)))

    def legend(self) -> Markup | None:
        """What the names of the series are, as a list; None where none has one."""
        return element("ul", *self._legend, class_="legend") if self._legend else None

    def svg(self, message: str) -> Markup:
        """The plot, with the text that says the same to those who do not see it."""
        size = self.size
        x_ticks, y_ticks = self.x.ticks(size.ticks[0]), self.y.ticks(size.ticks[1])
        area = element(
            "svg", *self._marks, x=size.left, y=size.top, width=self._width, height=self._height, overflow="hidden"
        )
        frame = element("rect", class_="frame", x=size.left, y=size.top, width=self._width, height=self._height)
        ticks = element("path", class_="ticks", d=self._tick_path(x_ticks, y_ticks))
        above, below = (10 * bool(y_ticks.exponent), 13 * bool(x_ticks.exponent)) if size is SMALL else (0, 0)
        return element(
            "svg",
            area,
            frame,
            ticks,
            *self._x_labels(x_ticks),
            *self._y_labels(y_ticks),
            class_=size.css,
            viewBox=f"0 {-above} {size.width} {size.height + above + below}",
            role="img",
            aria_label=message,
        )

    def _tick_path(self, x_ticks: Ticks, y_ticks: Ticks) -> str:
        size = self.size
        parts: list[str] = []
        bottom, right = size.top + self._height, size.left + self._width
        for values, length in ((x_ticks.major, size.tick), (x_ticks.minor, size.tick / 2)):
            places = (size.left + self._across(values)).tolist()
            parts += [f"M{place:.1f} {bottom}v{-length:g}M{place:.1f} {size.top}v{length:g}" for place in places]
        for values, length in ((y_ticks.major, size.tick), (y_ticks.minor, size.tick / 2)):
            places = (size.top + self._down(values)).tolist()
            parts += [f"M{size.left} {place:.1f}h{length:g}M{right} {place:.1f}h{-length:g}" for place in places]
        return "".join(parts)

    def _x_labels(self, ticks: Ticks) -> list[Markup]:
        size = self.size
        row = size.top + self._height + (17 if size is FULL else 13)
        places = size.left + self._across(ticks.major)
        labels = [
            element("text", label, x=f"{place:.1f}", y=row, text_anchor="middle")
            for place, label in zip(places, ticks.labels, strict=True)
        ]
        title = f"{self.x.title} {_TIMES} {power_of_ten(ticks.exponent)}".strip() if ticks.exponent else self.x.title
        if title:
            below = row + (22 if size is FULL else 13)
            labels.append(element("text", title, x=size.left + self._width, y=below, text_anchor="end", class_="title"))
        return labels

    def _y_labels(self, ticks: Ticks) -> list[Markup]:
        size = self.size
        edge = size.left - (6 if size is FULL else 4)
        places = size.top + self._down(ticks.major) + 4
        labels = [
            element("text", label, x=edge, y=f"{place:.1f}", text_anchor="end")
            for place, label in zip(places, ticks.labels, strict=True)
        ]
        if ticks.exponent:
            labels.append(element("text", f"{_TIMES} {power_of_ten(ticks.exponent)}", x=size.left, y=size.top - 5))
        if self.y.title:
            labels.append(
                element(
                    "text",
                    self.y.title,
                    transform=f"translate(12 {size.top}) rotate(-90)",
                    text_anchor="end",
                    class_="title",
                )
            )
        return labels


def _polyline(across: NDArray[Any], down: NDArray[Any]) -> str:
    good = np.isfinite(across) & np.isfinite(down)
    parts, pen = [], "M"
    for a, d, seen in zip(across.tolist(), down.tolist(), good.tolist(), strict=True):
        if seen:
            parts.append(f"{pen}{a:.1f} {d:.1f}")
        pen = "L" if seen else "M"
    return "".join(parts)


def _staircase(across: NDArray[Any], down: NDArray[Any], bottom: float) -> str:
    """From the bottom over each bin and down again; bins of equal height are drawn as one."""
    parts = [f"M{across[0]:.1f} {bottom:g}"]
    last = ""
    for right, height in zip(across[1:].tolist(), np.minimum(down, bottom).tolist(), strict=True):
        if last == (level := f"{height:.1f}"):
            parts.pop()
        else:
            parts.append(f"V{level}")
        parts.append(f"H{right:.1f}")
        last = level
    return "".join([*parts, f"V{bottom:g}"])
