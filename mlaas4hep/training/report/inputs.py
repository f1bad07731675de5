"""What is known of the inputs: their importance, distributions by class, multiplicities, statistics."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mlaas4hep.markup import Markup, element, joined
from mlaas4hep.training.histograms import ALL_EVENTS, Histogram
from mlaas4hep.training.importance import Importance
from mlaas4hep.training.report.data import ReportData
from mlaas4hep.training.report.figure import INK, SERIES, SMALL, Axis, Figure, colour
from mlaas4hep.training.report.parts import folded, grid, number, right, table

_MOST_PLOTS = 60
_MOST_MULTIPLICITIES = 60
_FIRST = 20
_SHOWN_ROWS = 100
_CROWDED = 30.0
_BAR = (160, 14)


def importance_section(data: ReportData) -> Markup | None:
    """All inputs by importance, each with a bar; the first ones unfolded."""
    if not data.importance:
        return None
    regression = data.task.kind == "regression"
    what, verb = ("mean squared error", "grows") if regression else ("AUC", "falls")
    explanation = (
        f"How much the {what} of test events {verb} when one input, with all its columns and its mask, is"
        " exchanged between the events: mean and standard deviation over several permutations. Inputs that say the same"
        " thing share their importance."
    )
    first, rest = data.importance[:_FIRST], data.importance[_FIRST:]
    reach = _reach(data.importance)
    parts = [element("p", explanation), _importance_table(first, reach, what, 1)]
    if rest:
        parts.append(folded(f"The other {len(rest)} inputs", _importance_table(rest, reach, what, _FIRST + 1)))
    return joined(parts)


def _reach(found: Sequence[Importance]) -> tuple[float, float]:
    """The range of the bars, with 0 in it."""
    means, errors = (
        np.nan_to_num([getattr(importance, name) for importance in found], posinf=0.0, neginf=0.0)
        for name in ("mean", "deviation")
    )
    return min(float((means - errors).min()), 0.0), float((means + errors).max()) or 1.0


def _importance_table(found: Sequence[Importance], reach: tuple[float, float], what: str, start: int) -> Markup:
    rows = [
        [
            importance.name,
            right(f"{place}"),
            right(number(importance.mean, 3)),
            right(number(importance.deviation, 2)),
            _bar(importance, reach),
        ]
        for place, importance in enumerate(found, start)
    ]
    caption = f"Importance of the inputs {start} to {start + len(rows) - 1}, change of the {what}"
    return table(caption, ["Input", "Rank", "Mean", "Deviation", ""], rows, css="bars-table")


def _bar(importance: Importance, reach: tuple[float, float]) -> Markup:
    width, height = _BAR
    low, high = reach
    scale = (width - 4) / max(high - low, 1e-300)
    if not math.isfinite(importance.mean):
        return element("td", "")
    zero, end = 2 - low * scale, 2 + (importance.mean - low) * scale
    error = importance.deviation * scale if math.isfinite(importance.deviation) else 0.0
    left, length = min(zero, end), abs(end - zero)
    shapes = [
        element("rect", class_=f"cell {colour(1)}", x=f"{left:.1f}", y=2, width=f"{length:.1f}", height=height - 4),
        element(
            "path", class_="bars ink", d=f"M{end - error:.1f} {height / 2:g}H{end + error:.1f}M{zero:.1f} 0V{height}"
        ),
    ]
    drawn = element("svg", *shapes, class_="bar", viewBox=f"0 0 {width} {height}", aria_hidden="true")
    return element("td", drawn)


def inputs_section(data: ReportData) -> Markup | None:
    """A small plot an input: those of greatest importance, or the first ones where it is not known."""
    if not data.histograms:
        return None
    by_name = {histogram.name: histogram for histogram in data.histograms}
    ranked = [importance.name for importance in data.importance if importance.name in by_name]
    order = list(dict.fromkeys([*ranked, *by_name]))
    shown = [by_name[name] for name in order[:_MOST_PLOTS]]
    classes = _series_names(data)
    kind = "most important" if ranked else "first"
    which = f"The {len(shown)} {kind} of {len(by_name)}. " if len(by_name) > len(shown) else ""
    most = f"The first {SERIES} of {len(classes)} classes. " if len(classes) > SERIES else ""
    each = ", each class" if data.task.classes else ""
    text = (
        f"{which}{most}Training events{each} with unit area; the first and the last bin hold what lies beyond. A"
        " logarithmic scale is used where a few bins hold nearly everything."
    )
    plots = [_small_plot(histogram, classes, "") for histogram in shown]
    return joined([element("p", text), _key(classes), grid(plots, small=True)])


def multiplicities_section(data: ReportData) -> Markup | None:
    """A small plot a jagged branch: how many values an event has; branches that share their counts share a plot."""
    if not data.multiplicities:
        return None
    alike: dict[bytes, list[Histogram]] = {}
    for histogram in data.multiplicities:
        alike.setdefault(histogram.edges.tobytes() + histogram.counts.tobytes(), []).append(histogram)
    groups = list(alike.values())[:_MOST_MULTIPLICITIES]
    classes = _series_names(data)
    left = len(alike) - len(groups)
    text = "Number of values in an event; branches with the same numbers share a plot." + (
        f" {left} further plots are left out." if left else ""
    )
    plots = [_small_plot(group[0], classes, _others(group)) for group in groups]
    return joined([element("p", text), _key(classes), grid(plots, small=True)])


def _others(group: Sequence[Histogram]) -> str:
    return f" and {len(group) - 1} more" if len(group) > 1 else ""


def _series_names(data: ReportData) -> tuple[str, ...]:
    return data.task.classes or (ALL_EVENTS,)


def _key(classes: Sequence[str]) -> Markup:
    """One legend for all small plots."""
    figure = Figure(Axis(0, 1), Axis(0, 1))
    for place, name in enumerate(classes[:SERIES]):
        figure.steps([0, 1], [0], series=place, name=name, filled=place == 0)
    legend = figure.legend()
    return legend if legend is not None and len(classes) > 1 else Markup("")


def _small_plot(histogram: Histogram, classes: Sequence[str], suffix: str) -> Markup:
    width = np.diff(histogram.edges)
    totals = histogram.counts.sum(axis=1)
    densities = histogram.counts / np.where(totals > 0, totals, 1.0)[:, None] / width
    figure = Figure(
        Axis(histogram.edges[0], histogram.edges[-1], whole=bool((width == 1).all())), _height_axis(densities), SMALL
    )
    single = len(classes) == 1
    for place in range(min(len(classes), SERIES)):
        if totals[place] > 0:
            figure.steps(histogram.edges, densities[place], series=INK if single else place, filled=place == 0)
    middle = (histogram.edges[1:] + histogram.edges[:-1]) / 2
    means = ", ".join(
        f"{name} {number(float(np.average(middle, weights=counts)), 3)}"
        for name, counts, total in zip(classes[:SERIES], histogram.counts, totals, strict=False)
        if total > 0
    )
    title = histogram.name + suffix
    message = f"Distribution of {title}. Mean: {means or 'no values'}."
    empty = None if totals.sum() > 0 else element("p", "No values.", class_="note")
    return element("figure", element("figcaption", title), figure.svg(message), empty)


def _height_axis(densities: NDArray[np.float64]) -> Axis:
    """From 0, or logarithmic where the highest bin would hide all the others."""
    seen = densities[densities > 0]
    if not seen.size:
        return Axis(0, 1)
    top = float(seen.max())
    if seen.size > 4 and top > _CROWDED * float(np.median(seen)):
        return Axis(max(float(seen.min()) / 2, top / 1e6), 2 * top, log=True)
    return Axis(0, 1.1 * top)


def statistics_section(data: ReportData) -> Markup | None:
    """All inputs with their statistics, in the order of the input vector."""
    if not data.statistics:
        return None
    events = sum(file.used for file in data.files)
    rows: list[list[object]] = []
    for feature in data.statistics:
        columns = data.columns.get(feature.name, 1)
        filled = min(feature.count / (events * columns), 1.0) if events else math.nan
        sentinels = ", ".join(f"{number(value)}: {_percent(share)}" for value, share in feature.sentinels)
        rows.append(
            [
                feature.name,
                columns,
                feature.minimum,
                feature.maximum,
                feature.mean,
                feature.deviation,
                feature.nan,
                feature.infinite,
                right(sentinels or "none"),
                right(_percent(filled)),
            ]
        )
    headers = ["Input", "Columns", "Min", "Max", "Mean", "Deviation", "NaN", "Inf", "Sentinels", "Filled"]
    found = table("Statistics of the inputs over all events read", headers, rows)
    summary = f"{len(rows)} inputs"
    return folded(summary, found, shown=len(rows) <= _SHOWN_ROWS)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if math.isfinite(share) else "\N{EN DASH}"
