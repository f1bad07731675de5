"""Measures of a classifier by their definitions: area under the ROC curve with its error, accuracy, confusion."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Area:
    """Area under the ROC curve and its standard error."""

    value: float
    error: float


def midranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 1, equal values sharing the mean of theirs; shape (n,)."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: NDArray[np.float64] = (last - (counts - 1) / 2)[inverse]
    return ranks


def roc_area(positive: NDArray[np.bool_], scores: NDArray[np.float64]) -> Area:
    """Probability that a positive event scores higher than a negative one, ties counting half.

    The error is that of DeLong, DeLong and Clarke-Pearson (Biometrics 44, 1988), computed from ranks as Sun and Xu
    (IEEE Signal Processing Letters 21, 2014) do. NaN where one of the classes has no event.

    Args:
        positive: shape (n,).
        scores: shape (n,).
    """
    signal, background = scores[positive], scores[~positive]
    m, n = signal.size, background.size
    if not m or not n:
        return Area(math.nan, math.nan)
    ranks = midranks(np.concatenate([signal, background]))
    above = (ranks[:m] - midranks(signal)) / n
    below = 1.0 - (ranks[m:] - midranks(background)) / m
    value = float(above.mean())
    if m < 2 or n < 2:
        return Area(value, math.nan)
    return Area(value, math.sqrt(float(above.var(ddof=1)) / m + float(below.var(ddof=1)) / n))


def macro_area(targets: NDArray[np.int64], probabilities: NDArray[np.float64]) -> Area:
    """The area of two classes, or the mean of the areas of each class against the rest.

    The error of the mean takes the areas as independent.

    Args:
        targets: shape (n,), class numbers.
        probabilities: shape (n, classes).
    """
    classes = probabilities.shape[1]
    if classes == 2:
        return roc_area(targets == 1, probabilities[:, 1])
    areas = [roc_area(targets == number, probabilities[:, number]) for number in range(classes)]
    return Area(sum(area.value for area in areas) / classes, math.sqrt(sum(area.error**2 for area in areas)) / classes)


def decide(probabilities: NDArray[np.float64], threshold: float) -> NDArray[np.int64]:
    """The class each event is assigned to: of two, the second from `threshold` on; of more, the most probable."""
    if probabilities.shape[1] == 2:
        return np.asarray(probabilities[:, 1] >= threshold, dtype=np.int64)
    return np.asarray(probabilities.argmax(axis=1), dtype=np.int64)


def confusion(targets: NDArray[np.int64], decisions: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Number of events by true class (row) and assigned class (column), shape (classes, classes)."""
    return np.bincount(targets * classes + decisions, minlength=classes**2).reshape(classes, classes)
