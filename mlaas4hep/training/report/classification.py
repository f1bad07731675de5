"""Plots and tables of a classifier."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlaas4hep.markup import Markup, element, joined
from mlaas4hep.training.measures import Scored
from mlaas4hep.training.metrics import (
    Area,
    RocCurve,
    classification_report,
    confusion,
    decide,
    macro_area,
    roc_area,
    roc_curve,
)
from mlaas4hep.training.report.curves import TEST, TRAIN, VALIDATION
from mlaas4hep.training.report.data import ReportData
from mlaas4hep.training.report.diagnostics import calibration, kolmogorov_smirnov
from mlaas4hep.training.report.figure import INK, SERIES, Axis, Figure
from mlaas4hep.training.report.parts import fixed, grid, number, panel, right, table, whole, with_error

_MOST_CURVES = 8
_MOST_CONFUSED = 20
_BINS = 25
_POINTS = 200
_SUSPICIOUS = 0.01
_PARTS = {"train": (TRAIN, "dotted"), "validation": (VALIDATION, "dashed"), "test": (TEST, "")}


@dataclass(frozen=True)
class _Output:
    """One probability of the model, as a score of its class against the rest, with its colour."""

    number: int
    title: str
    signal: str
    background: str
    series: int


def outputs(data: ReportData) -> list[_Output]:
    """Of two classes the second against the first; of more, each against the rest, those with most events first."""
    names = data.task.classes
    if len(names) == 2:
        return [_Output(1, f"{names[1]} against {names[0]}", names[1], names[0], 1)]
    tested = data.parts.get("test")
    counts = np.zeros(len(names)) if tested is None else np.bincount(tested.targets, minlength=len(names))
    order = np.argsort(-counts, kind="stable").tolist()
    # the colours are those of the classes elsewhere, as long as there are enough
    return [
        _Output(
            number,
            f"{names[number]} against the rest",
            names[number],
            "the rest",
            number if len(names) <= SERIES else place,
        )
        for place, number in enumerate(order)
    ]


def area_of(data: ReportData, part: str) -> Area:
    """Area under the ROC curve, the mean over the classes where there are more than two; NaN without events."""
    scored = data.parts.get(part)
    if scored is None or not scored.targets.size or not np.isfinite(scored.predictions).all():
        return Area(math.nan, math.nan)
    return macro_area(scored.targets.astype(np.int64), scored.predictions, scored.weights)


def areas(data: ReportData) -> Markup:
    """The area of each output on each part."""
    rows: list[list[object]] = []
    for output in outputs(data):
        cells = [right(_area_text(_area(data.parts[part], output))) for part in data.parts]
        rows.append([output.title, *cells])
    if len(rows) > 1:
        macro = [area_of(data, part) for part in data.parts]
        rows.append(["mean of the classes", *(right(_area_text(area)) for area in macro)])
    return table("Area under the ROC curve", ["", *data.parts], rows)


def _area(scored: Scored, output: _Output) -> Area:
    scores = scored.predictions[:, output.number]
    if not np.isfinite(scores).all():
        return Area(math.nan, math.nan)
    return roc_area(scored.targets == output.number, scores, scored.weights)


def _area_text(area: Area) -> str:
    return with_error(area.value, area.error)


def roc_panels(data: ReportData) -> list[Markup]:
    """The ROC curve, and the rejection of background against the efficiency of signal."""
    curves = list(_roc_curves(data))
    if not curves:
        return []
    areas_text = "; ".join(curve.label for curve in curves)
    return [_roc_panel(data, curves, areas_text), _rejection_panel(curves, areas_text)]


def _roc_panel(data: ReportData, curves: list[_Curve], areas_text: str) -> Markup:
    figure = Figure(Axis(0, 1, "Background efficiency"), Axis(0, 1.02, "Signal efficiency"))
    figure.guide([0, 1], [0, 1])
    for curve in curves:
        keep = _thinned(curve.rates)
        background, signal = curve.rates.false_positive[keep], curve.rates.true_positive[keep]
        figure.line(background, signal, series=curve.series, dash=curve.dash, name=curve.label)
    names = data.task.classes
    what = (
        f"Signal: {names[1]}; background: {names[0]}."
        if len(names) == 2
        else "Each class against the rest, test events."
    )
    note = f"{what} The thin line is a random choice."
    return panel("ROC curve", figure, f"ROC curve. {areas_text}. {what}", note)


def _rejection_panel(curves: list[_Curve], areas_text: str) -> Markup:
    figure = Figure(
        Axis(0, 1, "Signal efficiency"), Axis(1, _highest_rejection(curves), "1 / background efficiency", log=True)
    )
    signal = np.linspace(0.01, 1, 100)
    figure.guide(signal, 1 / signal)
    for curve in curves:
        keep = _thinned(curve.rates)
        if curve.uncertain:
            _rejection_band(figure, curve, keep)
        seen = keep[curve.rates.false_positive[keep] > 0]
        across, up = curve.rates.true_positive[seen], 1 / curve.rates.false_positive[seen]
        figure.line(across, up, series=curve.series, dash=curve.dash, name=curve.name)
    at_half = ", ".join(f"{curve.name} {number(_rejection_at(curve.rates, 0.5), 3)}" for curve in curves)
    note = f"At a signal efficiency of 0.5: {at_half}."
    band = " The band is the statistical error." if any(curve.uncertain for curve in curves) else ""
    message = f"Background rejection against signal efficiency. {note} {areas_text}."
    return panel("Background rejection", figure, message, note + band)


@dataclass(frozen=True)
class _Curve:
    """A curve with its look; `background` is the effective number of background events behind it."""

    name: str
    rates: RocCurve
    area: Area
    series: int
    dash: str
    background: float
    uncertain: bool

    @property
    def label(self) -> str:
        return f"{self.name}: AUC {_area_text(self.area)}"


def _roc_curves(data: ReportData) -> Iterator[_Curve]:
    """Of two classes a curve a part; of more, a curve a class on the test events."""
    several = len(data.task.classes) > 2
    for output in outputs(data)[:_MOST_CURVES]:
        for part, scored in data.parts.items():
            scores = scored.predictions[:, output.number]
            if (several and part != "test") or not scores.size or not np.isfinite(scores).all():
                continue
            positive = scored.targets == output.number
            if positive.all() or not positive.any():
                continue
            series, dash = (output.series, "") if several else _PARTS.get(part, (INK, ""))
            yield _Curve(
                name=output.signal if several else part,
                rates=roc_curve(positive, scores, scored.weights),
                area=roc_area(positive, scores, scored.weights),
                series=series,
                dash=dash,
                background=_effective(np.ones(scores.size) if scored.weights is None else scored.weights, ~positive),
                uncertain=part == "test" and not several,
            )


def _thinned(rates: RocCurve) -> NDArray[np.int64]:
    """Enough points of a curve: at equal steps along it, and at equal steps of the logarithm of its background."""
    along = rates.true_positive + rates.false_positive
    places = [np.searchsorted(along, np.linspace(0, 2, _POINTS))]
    places.append(np.searchsorted(rates.false_positive, np.geomspace(1e-6, 1, _POINTS)))
    return np.unique(np.minimum(np.concatenate(places), along.size - 1))


def _highest_rejection(curves: list[_Curve]) -> float:
    rates = [curve.rates.false_positive for curve in curves]
    lowest = [float(rate[rate > 0].min(initial=1.0)) for rate in rates]
    return 10.0 ** math.ceil(math.log10(1 / min(lowest, default=0.1)) + 0.05)


def _rejection_band(figure: Figure, curve: _Curve, keep: NDArray[np.int64]) -> None:
    """One standard deviation of the number of background events that pass."""
    seen = keep[curve.rates.false_positive[keep] * curve.background > 1]
    fraction = curve.rates.false_positive[seen]
    error = np.sqrt(np.maximum(1 - fraction, 0.0) / (fraction * curve.background))
    low, high = 1 / (fraction * (1 + error)), 1 / (fraction * np.maximum(1 - error, 1e-3))
    figure.band(curve.rates.true_positive[seen], np.maximum(low, 1.0), high, series=curve.series)


def _effective(weights: NDArray[Any], chosen: NDArray[np.bool_]) -> float:
    """Number of events without weights that would have the same relative error as the chosen ones."""
    heavy = weights[chosen].astype(np.float64)
    squares = float(np.square(heavy).sum())
    return float(heavy.sum()) ** 2 / squares if squares else 0.0


def _rejection_at(rates: RocCurve, signal: float) -> float:
    """1 / background efficiency at the loosest cut that still keeps no more than needed of the signal."""
    place = min(int(np.searchsorted(rates.true_positive, signal)), rates.true_positive.size - 1)
    passing = float(rates.false_positive[place])
    return 1 / passing if passing > 0 else math.inf


def score_panels(data: ReportData) -> list[Markup]:
    """The distribution of each output for its class and the others, training against test events."""
    return [_score_panel(data, output) for output in outputs(data)[:_MOST_CURVES]]


def _score_panel(data: ReportData, output: _Output) -> Markup:
    edges = np.linspace(0, 1, _BINS + 1)
    drawn, notes, top = [], [], 0.0
    two = len(data.task.classes) == 2
    for name, is_signal, series in ((output.signal, True, 1), (output.background, False, 0)):
        samples = {part: _scores(data, part, output.number, is_signal) for part in ("train", "test")}
        heights = {part: _density(*sample, edges) for part, sample in samples.items()}
        top = max(top, *(float(height.max(initial=0)) for height, _ in heights.values()))
        probability = kolmogorov_smirnov(
            samples["train"][0], samples["test"][0], samples["train"][1], samples["test"][1]
        )
        notes.append((name, probability))
        drawn.append((name, series, samples, heights))
    figure = Figure(Axis(0, 1, f"Probability of {_short(output.signal)}"), Axis(0, 1.15 * top, "Density"))
    for name, series, samples, heights in drawn:
        label = f"{name}, train ({whole(samples['train'][0].size)} events)"
        figure.steps(edges, heights["train"][0], series=series, filled=True, name=label)
    middle = (edges[1:] + edges[:-1]) / 2
    for name, series, samples, heights in drawn:
        value, error = heights["test"]
        seen = value > 0
        label = f"{name}, test ({whole(samples['test'][0].size)} events)"
        figure.points(middle[seen], value[seen], error=error[seen], half_width=0.5 / _BINS, series=series, name=label)
    tests = ", ".join(f"{name} {number(probability, 3)}" for name, probability in notes)
    worst = min((probability for _, probability in notes if not math.isnan(probability)), default=math.nan)
    verdict = "Train and test differ: a sign of overtraining." if worst < _SUSPICIOUS else "Train and test agree."
    note = f"Kolmogorov-Smirnov probability: {tests}. {verdict if not math.isnan(worst) else ''}".strip()
    title = "Score of train and test events" if two else f"Score: {output.title}"
    return panel(title, figure, f"Distribution of the probability of {output.signal}. {note}", note)


def _short(name: str, length: int = 24) -> str:
    """A name that fits on an axis."""
    return name if len(name) <= length else name[: length - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _scores(
    data: ReportData, part: str, output: int, signal: bool
) -> tuple[NDArray[np.float64], NDArray[np.float32] | None]:
    scored = data.parts.get(part)
    if scored is None:
        return np.empty(0), None
    chosen = ((scored.targets == output) == signal) & np.isfinite(scored.predictions[:, output])
    return scored.predictions[chosen, output], None if scored.weights is None else scored.weights[chosen]


def _density(
    scores: NDArray[np.float64], weights: NDArray[np.float32] | None, edges: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Heights of unit area, and their statistical errors."""
    heavy = np.ones(scores.size) if weights is None else weights.astype(np.float64)
    counts, _ = np.histogram(scores, edges, weights=heavy)
    squares, _ = np.histogram(scores, edges, weights=heavy**2)
    norm = counts.sum() * (edges[1] - edges[0]) or 1.0
    return counts / norm, np.sqrt(squares) / norm


def confusion_matrices(data: ReportData) -> Markup | None:
    """Test events by true and assigned class: counts, and the fraction of each true class."""
    scored = data.parts.get("test")
    if scored is None or not scored.targets.size:
        return None
    counts = _confusion(data, scored)
    with np.errstate(invalid="ignore", divide="ignore"):
        fractions = counts / counts.sum(axis=1, keepdims=True)
    if len(data.task.classes) > _MOST_CONFUSED:
        return _confusion_map(fractions)
    names = data.task.classes
    return element(
        "div",
        _matrix("Test events", names, fractions, [[whole(int(count)) for count in row] for row in counts]),
        _matrix(
            "Fraction of the true class", names, fractions, [[fixed(value, 3) for value in row] for row in fractions]
        ),
        class_="grid",
    )


def _confusion(data: ReportData, scored: Scored) -> NDArray[np.int64]:
    return confusion(
        scored.targets.astype(np.int64), decide(scored.predictions, data.threshold), len(data.task.classes)
    )


def _matrix(caption: str, names: tuple[str, ...], fractions: NDArray[np.float64], texts: list[list[str]]) -> Markup:
    rows = []
    for name, shades, row in zip(names, fractions, texts, strict=True):
        cells = [
            element("td", text, class_=f"n h{round(10 * float(np.nan_to_num(shade)))}")
            for shade, text in zip(shades, row, strict=True)
        ]
        rows.append([name, *cells])
    return table(caption, ["true \\ assigned", *names], rows, css="matrix")


def _confusion_map(fractions: NDArray[np.float64]) -> Markup:
    size = fractions.shape[0]
    figure = Figure(Axis(-0.5, size - 0.5, "Number of the true class"), Axis(-0.5, size - 0.5, "Assigned class"))
    edges = np.arange(size + 1) - 0.5
    figure.cells(edges, edges, np.nan_to_num(fractions), series=1)
    right_ones = float(np.nanmean(np.diag(fractions)))
    message = f"Confusion of {size} classes; on average {number(right_ones, 3)} of a class are assigned to it."
    return grid([panel("Confusion matrix, fraction of each true class", figure, message)])


def class_table(data: ReportData) -> Markup | None:
    """Precision, recall and F1 of each class on the test events."""
    scored = data.parts.get("test")
    if scored is None or not scored.targets.size:
        return None
    counts = _confusion(data, scored)
    found = classification_report(counts)
    columns = np.array([[of.precision, of.recall, of.f1] for of in found])
    rows: list[list[object]] = [
        [name, *(right(fixed(value)) for value in values), int(of.events)]
        for name, values, of in zip(data.task.classes, columns.tolist(), found, strict=True)
    ]
    means = np.nan_to_num(columns).mean(axis=0).tolist()
    rows.append(["mean of the classes", *(right(fixed(value)) for value in means), int(counts.sum())])
    accuracy = float(np.trace(counts) / counts.sum())
    cut = f", the second class from a probability of {number(data.threshold)} on" if len(data.task.classes) == 2 else ""
    headers = ["Class", "Precision", "Recall", "F1", "Test events"]
    counted = "Test events" if scored.weights is None else "Test events, each counted once"
    return table(f"{counted}: accuracy {fixed(accuracy)}{cut}", headers, rows)


def calibration_panel(data: ReportData) -> Markup | None:
    """Observed against predicted probability on the test events."""
    scored = data.parts.get("test")
    if scored is None or not scored.targets.size:
        return None
    figure = Figure(Axis(0, 1, "Predicted probability"), Axis(0, 1.02, "Observed fraction"))
    figure.guide([0, 1], [0, 1], "perfectly calibrated")
    found = []
    for output in outputs(data)[:_MOST_CURVES]:
        scores = scored.predictions[:, output.number]
        if not np.isfinite(scores).all():
            continue
        curve = calibration(scored.targets == output.number, scores, scored.weights)
        figure.points(
            curve.predicted,
            curve.observed,
            error=curve.error,
            series=output.series,
            name=output.signal,
            joined_by="dashed",
        )
        if curve.predicted.size:
            found.append(f"{output.signal} {number(float(np.abs(curve.predicted - curve.observed).max()), 3)}")
    largest = f"Largest distance from the diagonal: {', '.join(found)}." if found else "No probability is a number."
    return panel("Calibration of the probabilities", figure, largest, largest)


def classification_sections(data: ReportData) -> list[tuple[str, str, Markup]]:
    """Identifier, heading and content of each section on a classifier."""
    report = joined(part for part in (class_table(data), confusion_matrices(data)) if part is not None)
    sections = [
        ("roc", "Separation", joined([grid(roc_panels(data)), areas(data)])),
        ("scores", "Score and overtraining", grid([*score_panels(data), calibration_panel(data)])),
        ("confusion", "Decisions", report),
    ]
    return [section for section in sections if section[2]]
