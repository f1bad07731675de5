"""What only the report shows of predictions: the agreement of two samples, and calibration."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlaas4hep.training.metrics import Weights


@dataclass(frozen=True)
class Calibration:
    """Of the events in each interval of the probability: shapes (intervals that have events,).

    Attributes:
        predicted: mean probability.
        observed: fraction that is of the class.
        error: its binomial standard error.
    """

    predicted: NDArray[np.float64]
    observed: NDArray[np.float64]
    error: NDArray[np.float64]


def kolmogorov_smirnov(
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    first_weights: Weights = None,
    second_weights: Weights = None,
) -> float:
    """Probability that two samples of one distribution differ at least as much as these; NaN for an empty one.

    The test of two samples with the approximation of Stephens (J. R. Stat. Soc. B 32, 1970), of the values themselves
    and not of a histogram; weighted samples count with their effective size (sum w)^2 / sum w^2.
    """
    if not first.size or not second.size:
        return math.nan
    one, two = _positive_weights(first_weights, first.size), _positive_weights(second_weights, second.size)
    if not one.sum() or not two.sum():
        return math.nan
    values = np.concatenate([first, second])
    shares = np.concatenate([one / one.sum(), -two / two.sum()])
    order = np.argsort(values, kind="stable")
    last = np.append(np.flatnonzero(np.diff(values[order])), values.size - 1)
    distance = float(np.abs(np.cumsum(shares[order])[last]).max())
    sizes = [heavy.sum() ** 2 / (heavy**2).sum() for heavy in (one, two)]
    root = math.sqrt(sizes[0] * sizes[1] / (sizes[0] + sizes[1]))
    return _kolmogorov((root + 0.12 + 0.11 / root) * distance)


def _kolmogorov(value: float) -> float:
    """Probability of the Kolmogorov distribution beyond a value."""
    if value < 0.2:
        return 1.0
    terms = np.arange(1, 101)
    return min(max(float(2 * ((-1.0) ** (terms - 1) * np.exp(-2 * (terms * value) ** 2)).sum()), 0.0), 1.0)


def calibration(
    positive: NDArray[np.bool_], probabilities: NDArray[np.float64], weights: Weights = None, intervals: int = 10
) -> Calibration:
    """How often events that get a probability are of the class, in equal intervals of the probability."""
    heavy = _positive_weights(weights, probabilities.size)
    place = np.clip((probabilities * intervals).astype(np.int64), 0, intervals - 1)
    total, squares, hits, sums = (
        np.bincount(place, array, minlength=intervals)
        for array in (heavy, heavy**2, heavy * positive, heavy * probabilities)
    )
    used = total > 0
    observed = hits[used] / total[used]
    error = np.sqrt(observed * (1 - observed) * squares[used]) / total[used]
    return Calibration(sums[used] / total[used], observed, error)


def _positive_weights(weights: Weights, size: int) -> NDArray[np.float64]:
    return np.ones(size) if weights is None else np.maximum(np.asarray(weights, dtype=np.float64), 0.0)
