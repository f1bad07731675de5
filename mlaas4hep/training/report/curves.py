"""Measures after each epoch: one plot a measure, training and validation together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from mlaas4hep.markup import Markup
from mlaas4hep.training.report.data import ReportData
from mlaas4hep.training.report.figure import INK, Axis, Figure
from mlaas4hep.training.report.parts import number, panel

TRAIN, VALIDATION, TEST = 1, 0, 2
"""Colours of the parts."""

_NO_MEASURE = frozenset({"epoch", "round", "seconds"})
_ACRONYMS = {"auc": "AUC", "r2": "R²", "mse": "MSE", "rmse": "RMSE", "mae": "MAE", "f1": "F1"}
_MOST_MARKERS = 60
_MOST_POINTS = 1000
_STEEP = 20.0


def measure_name(key: str) -> str:
    """`val_auc` and `auc` are both shown as AUC."""
    plain = key.removeprefix("val_")
    words = " ".join(_ACRONYMS.get(word, word) for word in plain.split("_"))
    return words[:1].upper() + words[1:]


def history_of_rounds(rounds: Sequence[Mapping[str, float | None]]) -> list[dict[str, float | None]]:
    """The measures after each round of boosting, with the names of those after each epoch."""
    return [
        {name.removeprefix("train_").replace("validation_", "val_"): value for name, value in measured.items()}
        for measured in rounds
    ]


def training_curves(data: ReportData) -> list[Markup]:
    """A plot for each measure of the history that has a number at all."""
    keys = dict.fromkeys(key.removeprefix("val_") for entry in data.history for key in entry if key not in _NO_MEASURE)
    plots = [_curve(data, key) for key in keys]
    return [plot for plot in plots if plot is not None]


def _curve(data: ReportData, key: str) -> Markup | None:
    step = "round" if any("round" in entry for entry in data.history) else "epoch"
    x = np.array([float(entry.get(step) or place) for place, entry in enumerate(data.history, 1)])
    train, validation = _column(data.history, key), _column(data.history, f"val_{key}")
    finite = np.concatenate([train, validation])
    finite = finite[np.isfinite(finite)]
    if not finite.size:
        return None
    name = measure_name(key)
    figure = Figure(Axis(x[0] - 0.5, x[-1] + 0.5, step.capitalize(), whole=True), _values_axis(finite, name))
    if data.kept:
        figure.guide([data.kept, data.kept], [figure.y.low, figure.y.high], f"kept: {step} {data.kept}")
    ends = []
    for label, values, series, dash in (
        ("train", train, TRAIN, "solid"),
        ("validation", validation, VALIDATION, "dashed"),
    ):
        seen = values[np.isfinite(values)]
        if seen.size:
            _draw(figure, x, values, series, label, dash)
            ends.append(f"{label} {number(float(seen[-1]))}")
    message = f"{name} by {step}, {len(data.history)} in all; at the end {', '.join(ends)}."
    return panel(f"{name} after each {step}", figure, message)


def _values_axis(values: NDArray[np.float64], name: str) -> Axis:
    """All values with some room; logarithmic where the first epochs would hide the others."""
    low, high = float(values.min()), float(values.max())
    if low > 0 and high > _STEEP * low:
        return Axis(low / 1.3, high * 1.3, name, log=True)
    margin = 0.08 * (high - low) or 0.05 * abs(high)
    return Axis(low - margin, high + margin, name)


def _draw(figure: Figure, x: NDArray[np.float64], y: NDArray[np.float64], series: int, name: str, dash: str) -> None:
    if x.size <= _MOST_MARKERS:
        figure.points(x, y, series=series, name=name, joined_by=dash)
    else:
        stride = math.ceil(x.size / _MOST_POINTS)
        figure.line(x[::stride], y[::stride], series=series, name=name, dash=dash)


def _column(history: Sequence[Mapping[str, float | None]], key: str) -> NDArray[np.float64]:
    values = [entry.get(key) for entry in history]
    return np.array([math.nan if value is None else float(value) for value in values])


def epoch_seconds(data: ReportData) -> Markup | None:
    """The duration of each epoch, if it is known."""
    seconds = _column(data.history, "seconds")
    if seconds.size < 2 or not np.isfinite(seconds).any():
        return None
    top = float(np.nanmax(seconds))
    x = np.arange(seconds.size + 1) + 0.5
    figure = Figure(Axis(0.5, seconds.size + 0.5, "Epoch", whole=True), Axis(0.0, 1.15 * top or 1.0, "Duration [s]"))
    figure.steps(x, seconds, series=INK, filled=True)
    mean = float(np.nanmean(seconds))
    return panel("Duration of each epoch", figure, f"Seconds an epoch takes: {number(mean, 3)} on average.")
