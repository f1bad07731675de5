"""Measures of predictions by their definitions, with event weights where these make sense.

Classes: area under the ROC curve with its error, the curve, log loss, accuracy, confusion, precision, recall, F1.
Values of a regression: mean squared and absolute error, R^2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Weights = NDArray[Any] | None
_SMALLEST = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Area:
    """Area under the ROC curve and its standard error."""

    value: float
    error: float


@dataclass(frozen=True)
class RocCurve:
    """A point for each value of the score, from the tightest cut to none; all arrays have shape (points,).

    Attributes:
        false_positive: fraction of the negative events that pass `score >= threshold`.
        true_positive: fraction of the positive events that pass.
        threshold: the cut; infinite at the first point, where nothing passes.
    """

    false_positive: NDArray[np.float64]
    true_positive: NDArray[np.float64]
    threshold: NDArray[np.float64]


@dataclass(frozen=True)
class ClassReport:
    """How well one class is recognised.

    Attributes:
        precision: fraction of the events assigned to the class that are of it; NaN where none is assigned.
        recall: fraction of the events of the class that are assigned to it; NaN where there is none.
        f1: harmonic mean of precision and recall, 2 hits / (events + assigned); NaN where both are 0.
        events: number of events of the class, or the sum of their weights.
    """

    precision: float
    recall: float
    f1: float
    events: float


def roc_area(positive: NDArray[np.bool_], scores: NDArray[np.float64], weights: Weights = None) -> Area:
    """Probability that a positive event scores higher than a negative one, ties counting half.

    The error is that of DeLong, DeLong and Clarke-Pearson (Biometrics 44, 1988), computed from sorted scores in the
    manner of Sun and Xu (IEEE Signal Processing Letters 21, 2014). With weights a pair counts with their product, and
    the variances are those of weighted means. NaN where one of the classes has no event, or no weight.

    Args:
        positive: shape (n,).
        scores: shape (n,).
        weights: shape (n,), or None for 1 each.
    """
    heavy = np.ones(scores.size) if weights is None else np.asarray(weights, dtype=np.float64)
    signal, background = scores[positive], scores[~positive]
    signal_weights, background_weights = heavy[positive], heavy[~positive]
    if not signal_weights.sum() or not background_weights.sum():
        return Area(math.nan, math.nan)
    above = _share_below(signal, background, background_weights)
    below = 1.0 - _share_below(background, signal, signal_weights)
    value = float(np.average(above, weights=signal_weights))
    if signal.size < 2 or background.size < 2:
        return Area(value, math.nan)
    variance = _variance_of_mean(above, signal_weights) + _variance_of_mean(below, background_weights)
    return Area(value, math.sqrt(variance))


def _share_below(
    scores: NDArray[np.float64], others: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """For each score the weighted fraction of `others` below it, equal ones counting half; shape of `scores`."""
    order = np.argsort(others, kind="stable")
    sums = np.append(0.0, np.cumsum(weights[order]))
    sorted_others = others[order]
    less = sums[np.searchsorted(sorted_others, scores, side="left")]
    not_more = sums[np.searchsorted(sorted_others, scores, side="right")]
    return np.asarray((less + not_more) / (2.0 * sums[-1]))


def _variance_of_mean(values: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    """Variance of the weighted mean; s^2 / n for equal weights."""
    residuals = values - np.average(values, weights=weights)
    spread = float(np.square(weights * residuals).sum()) / float(weights.sum()) ** 2
    return spread * values.size / (values.size - 1)


def macro_area(targets: NDArray[np.int64], probabilities: NDArray[np.float64], weights: Weights = None) -> Area:
    """The area of two classes, or the mean of the areas of each class against the rest.

    The error of the mean takes the areas as independent.

    Args:
        targets: shape (n,), class numbers.
        probabilities: shape (n, classes).
        weights: shape (n,), or None for 1 each.
    """
    classes = probabilities.shape[1]
    if classes == 2:
        return roc_area(targets == 1, probabilities[:, 1], weights)
    areas = [roc_area(targets == number, probabilities[:, number], weights) for number in range(classes)]
    return Area(sum(area.value for area in areas) / classes, math.sqrt(sum(area.error**2 for area in areas)) / classes)


def roc_curve(positive: NDArray[np.bool_], scores: NDArray[np.float64], weights: Weights = None) -> RocCurve:
    """The ROC curve; NaN where one of the classes has no event, or no weight.

    Args:
        positive: shape (n,).
        scores: shape (n,).
        weights: shape (n,), or None for 1 each.
    """
    heavy = np.ones(scores.size) if weights is None else np.asarray(weights, dtype=np.float64)
    order = np.argsort(-scores, kind="stable")
    falling = scores[order]
    last = np.append(np.flatnonzero(np.diff(falling)), np.arange(scores.size)[-1:])
    rates = []
    for chosen in (~positive, positive):
        passing = np.cumsum(np.where(chosen, heavy, 0.0)[order])[last]
        total = float(heavy[chosen].sum())
        rates.append(np.append(0.0, passing) / (total or math.nan))
    return RocCurve(rates[0], rates[1], np.append(math.inf, falling[last]))


def log_loss(targets: NDArray[np.int64], probabilities: NDArray[np.float64], weights: Weights = None) -> float:
    """Mean of -log(probability of the true class), in nats; each row is normalised, a probability of 0 counts 2.2e-16.

    Args:
        targets: shape (n,), class numbers.
        probabilities: shape (n, classes).
        weights: shape (n,), or None for 1 each.
    """
    true = probabilities[np.arange(targets.size), targets] / probabilities.sum(axis=1)
    return _mean(-np.log(np.maximum(true, _SMALLEST)), weights)


def mean_squared_error(targets: NDArray[Any], values: NDArray[np.float64], weights: Weights = None) -> float:
    """Mean of (value - target)^2; all arrays have shape (n,)."""
    return _mean(np.square(values - targets), weights)


def mean_absolute_error(targets: NDArray[Any], values: NDArray[np.float64], weights: Weights = None) -> float:
    """Mean of |value - target|; all arrays have shape (n,)."""
    return _mean(np.abs(values - targets), weights)


def r_squared(targets: NDArray[Any], values: NDArray[np.float64], weights: Weights = None) -> float:
    """1 - (mean squared error) / (variance of the targets); NaN where all targets are equal.

    All arrays have shape (n,).
    """
    spread = _mean(np.square(targets - _mean(targets, weights)), weights)
    return 1.0 - mean_squared_error(targets, values, weights) / spread if spread else math.nan


def _mean(values: NDArray[Any], weights: Weights) -> float:
    """Weighted mean; NaN for no event, or no weight."""
    if weights is None:
        return float(values.mean()) if values.size else math.nan
    heavy = np.asarray(weights, dtype=np.float64)
    total = float(heavy.sum())
    return float(np.dot(values, heavy)) / total if total else math.nan


def decide(probabilities: NDArray[np.float64], threshold: float) -> NDArray[np.int64]:
    """The class each event is assigned to: of two, the second from `threshold` on; of more, the most probable."""
    if probabilities.shape[1] == 2:
        return np.asarray(probabilities[:, 1] >= threshold, dtype=np.int64)
    return np.asarray(probabilities.argmax(axis=1), dtype=np.int64)


def confusion(targets: NDArray[np.int64], decisions: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Number of events by true class (row) and assigned class (column), shape (classes, classes)."""
    return np.bincount(targets * classes + decisions, minlength=classes**2).reshape(classes, classes)


def weighted_confusion(
    targets: NDArray[np.int64], decisions: NDArray[np.int64], classes: int, weights: NDArray[Any]
) -> NDArray[np.float64]:
    """Sum of weights by true class (row) and assigned class (column), shape (classes, classes)."""
    heavy = np.asarray(weights, dtype=np.float64)
    cells: NDArray[Any] = np.bincount(targets * classes + decisions, weights=heavy, minlength=classes**2)
    return cells.reshape(classes, classes)


def classification_report(cells: NDArray[Any]) -> tuple[ClassReport, ...]:
    """Precision, recall and F1 of each class.

    Args:
        cells: shape (classes, classes), events (or sums of weights) by true class (row) and assigned class (column).
    """
    hits, events, assigned = np.diag(cells), cells.sum(axis=1), cells.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        columns = (hits / assigned, hits / events, 2 * hits / (events + assigned), events)
    return tuple(ClassReport(*map(float, row)) for row in zip(*columns, strict=True))
