"""Plots and tables of a regression."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mlaas4hep.markup import Markup, joined
from mlaas4hep.training.measures import Scored
from mlaas4hep.training.metrics import mean_absolute_error, mean_squared_error, r_squared
from mlaas4hep.training.report.curves import TEST, TRAIN
from mlaas4hep.training.report.data import ReportData
from mlaas4hep.training.report.figure import Axis, Figure
from mlaas4hep.training.report.parts import grid, number, panel, table, whole

_BINS = 40
_SLICES = 20
_OUTSIDE = 0.002


def quality(scored: Scored) -> dict[str, float]:
    """R², root mean square error, mean absolute error, mean (bias) and spread of the residuals, predicted less true."""
    residuals = scored.predictions[:, 0] - scored.targets
    heavy = np.ones(residuals.size) if scored.weights is None else scored.weights.astype(np.float64)
    if not residuals.size or not heavy.sum() or not np.isfinite(residuals).all():
        return dict.fromkeys(("R²", "RMSE", "MAE", "bias", "spread"), math.nan)
    true, predicted = scored.targets.astype(np.float64), scored.predictions[:, 0]
    square = mean_squared_error(true, predicted, scored.weights)
    bias = float(np.average(residuals, weights=heavy))
    return {
        "R²": r_squared(true, predicted, scored.weights),
        "RMSE": math.sqrt(max(square, 0.0)),
        "MAE": mean_absolute_error(true, predicted, scored.weights),
        "bias": bias,
        "spread": math.sqrt(max(square - bias**2, 0.0)),
    }


def regression_sections(data: ReportData) -> list[tuple[str, str, Markup]]:
    """Identifier, heading and content of each section on a regression."""
    found = {part: quality(scored) for part, scored in data.parts.items()}
    if not found:
        return []
    names = list(next(iter(found.values())))
    rows = [[part, *(values[name] for name in names), data.parts[part].targets.size] for part, values in found.items()]
    qualities = table("Quality of the predictions; residual = predicted less true", ["", *names, "Events"], rows)
    panels = [_agreement(data), _residuals(data), _profile(data)]
    return [("regression", "Predicted against true", joined([qualities, grid(panels)]))]


def _finite(data: ReportData, part: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """True and predicted values where both are finite."""
    scored = data.parts.get(part)
    if scored is None:
        return np.empty(0), np.empty(0)
    true, predicted = scored.targets.astype(np.float64), scored.predictions[:, 0]
    good = np.isfinite(true) & np.isfinite(predicted)
    return true[good], predicted[good]


def _range(values: NDArray[np.float64]) -> tuple[float, float]:
    """Where nearly all of the values lie."""
    if not values.size:
        return 0.0, 1.0
    low, high = np.quantile(values, [_OUTSIDE, 1 - _OUTSIDE])
    margin = 0.05 * (high - low) or 0.5
    return float(low - margin), float(high + margin)


def _agreement(data: ReportData) -> Markup | None:
    true, predicted = _finite(data, "test")
    if not true.size:
        return None
    low, high = _range(np.concatenate([true, predicted]))
    edges = np.linspace(low, high, _BINS + 1)
    counts, _, _ = np.histogram2d(true, predicted, bins=(edges, edges))
    figure = Figure(Axis(low, high, "True value"), Axis(low, high, "Predicted value"))
    # by logarithm, so that a single event is seen beside a crowd
    figure.cells(edges, edges, np.log1p(counts) / math.log1p(max(float(counts.max()), 1.0)), series=TRAIN)
    figure.guide([low, high], [low, high], "predicted = true")
    correlation = number(_correlation(true, predicted), 3)
    message = f"Predicted against true value of {whole(true.size)} test events; correlation {correlation}."
    return panel(
        "Predicted against true, test events", figure, message, "A stronger colour is more events, by logarithm."
    )


def _correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    if first.size < 2 or not np.ptp(first) or not np.ptp(second):
        return math.nan
    return float(np.corrcoef(first, second)[0, 1])


def _residuals(data: ReportData) -> Markup | None:
    samples = {part: np.subtract(*reversed(_finite(data, part))) for part in ("train", "test")}
    if not samples["test"].size:
        return None
    low, high = _range(np.concatenate(list(samples.values())))
    edges = np.linspace(low, high, _BINS + 1)
    counts = {part: np.histogram(sample, edges)[0] for part, sample in samples.items()}
    norms = {part: float(count.sum() * (edges[1] - edges[0])) or 1.0 for part, count in counts.items()}
    top = max(float(count.max() / norms[part]) for part, count in counts.items())
    figure = Figure(Axis(low, high, "Predicted less true"), Axis(0, 1.15 * top, "Density"))
    figure.guide([0, 0], [0, 2 * top])
    label = f"train ({whole(samples['train'].size)} events)"
    figure.steps(edges, counts["train"] / norms["train"], series=TRAIN, filled=True, name=label)
    seen = counts["test"] > 0
    figure.points(
        ((edges[1:] + edges[:-1]) / 2)[seen],
        (counts["test"] / norms["test"])[seen],
        error=(np.sqrt(counts["test"]) / norms["test"])[seen],
        half_width=(edges[1] - edges[0]) / 2,
        series=TEST,
        name=f"test ({whole(samples['test'].size)} events)",
    )
    test = samples["test"]
    note = f"Test events: mean {number(float(test.mean()), 3)}, standard deviation {number(float(test.std()), 3)}."
    return panel("Residuals", figure, f"Distribution of the residuals. {note}", note)


def _profile(data: ReportData) -> Markup | None:
    true, predicted = _finite(data, "test")
    if true.size < 2:
        return None
    low, high = _range(true)
    edges = np.linspace(low, high, _SLICES + 1)
    place = np.clip(np.searchsorted(edges, true, side="right") - 1, 0, _SLICES - 1)
    count = np.bincount(place, minlength=_SLICES)
    used = count > 1
    residual = predicted - true
    mean = np.bincount(place, residual, minlength=_SLICES)[used] / count[used]
    spread = np.sqrt(np.maximum(np.bincount(place, residual**2, minlength=_SLICES)[used] / count[used] - mean**2, 0))
    middle = ((edges[1:] + edges[:-1]) / 2)[used]
    reach = 1.2 * float(np.max(np.abs(mean) + spread, initial=0.0)) or 1.0
    figure = Figure(Axis(low, high, "True value"), Axis(-reach, reach, "Predicted less true"))
    figure.guide([low, high], [0, 0])
    figure.band(middle, mean - spread, mean + spread, series=TEST, name="one standard deviation")
    figure.points(middle, mean, error=spread / np.sqrt(count[used]), series=TEST, name="mean with its error")
    largest = float(np.abs(mean).max(initial=0.0))
    return panel(
        "Bias by true value, test events", figure, f"Mean residual by true value; at most {number(largest, 3)}."
    )
