"""Statistics of the inputs, gathered block by block while the files are read; memory does not grow with the events."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlaas4hep.data import kernels
from mlaas4hep.data.packing import Inputs

MULTIPLICITY_QUANTILES = (0.5, 0.9, 0.99, 0.999)
VALUE_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_LONGEST_NINES = 8
_SENTINELS = frozenset(
    sign * value
    for sign in (-1.0, 1.0)
    for value in [
        *(float("9" * digits) for digits in range(1, _LONGEST_NINES)),
        1e3,
        1e4,
        1e5,
        1e6,
        1e9,
        1e10,
        1e20,
        1e30,
    ]
) | {float(np.finfo(np.float32).min), float(np.finfo(np.float32).max)}
_SENTINEL_SHARE = 1e-3
# multiplicities are counted one by one up to here; quantiles beyond are the maximum
_COUNTED = 4096


@dataclass(frozen=True)
class FeatureStatistics:
    """One flat column or jagged branch, over all events.

    Attributes:
        name: the column or branch.
        count: finite values.
        minimum, maximum, mean, deviation: over those values; 0 when there are none.
        nan, infinite: values that are NaN or infinite in float32.
        multiplicity: largest number of values in one event (1 for a flat column).
        multiplicity_quantiles: number of values that a fraction 0.5, 0.9, 0.99, 0.999 of the events does not exceed.
        sentinels: values such as -999 that seem to stand for no value, with their share of the values.
        quantiles: 0.05, 0.25, 0.5, 0.75 and 0.95 quantile of the values; empty without values.

    Sentinels and quantiles are those of a sample of the events.
    """

    name: str
    count: int
    minimum: float
    maximum: float
    mean: float
    deviation: float
    nan: int
    infinite: int
    multiplicity: int
    multiplicity_quantiles: tuple[int, ...] = ()
    sentinels: tuple[tuple[float, float], ...] = ()
    quantiles: tuple[float, ...] = ()


class RunningStatistics:
    """Count, extremes, mean and standard deviation of several features, updated a block at a time.

    Means and deviations are combined by the parallel algorithm of Chan, Golub and LeVeque (1979).
    """

    def __init__(self, features: int) -> None:
        self.count = np.zeros(features, dtype=np.int64)
        self.minimum = np.full(features, np.inf)
        self.maximum = np.full(features, -np.inf)
        self.nan = np.zeros(features, dtype=np.int64)
        self.infinite = np.zeros(features, dtype=np.int64)
        self.multiplicity = np.zeros(features, dtype=np.int64)
        self._events = np.zeros((_COUNTED, features), dtype=np.int64)
        self._mean = np.zeros(features)
        self._spread = np.zeros(features)

    def add(self, inputs: Inputs, counts: NDArray[np.uint32]) -> None:
        """Take in some events: their inputs, and how many values they have of each jagged branch, shape (n, jagged)."""
        width = inputs.flat.shape[1]
        for number in range(width):
            self._add(number, np.ascontiguousarray(inputs.flat[:, number]))
        for number, column in enumerate(inputs.jagged, start=width):
            self._add(number, column.values)
        self.multiplicity[:width] = 1
        self.multiplicity[width:] = np.maximum(self.multiplicity[width:], counts.max(axis=0, initial=0))
        kernels.tally(counts, self._events[:, width:])

    def _add(self, feature: int, values: NDArray[np.float32]) -> None:
        if not self.count[feature]:
            # sums around a value of the data keep their precision where the mean is far from zero
            self._mean[feature] = values[np.isfinite(values).argmax()] if values.size else 0.0
            self._mean[feature] = self._mean[feature] if np.isfinite(self._mean[feature]) else 0.0
        sums = kernels.measure(values, float(self._mean[feature]))
        self.nan[feature] += sums[kernels.NAN]
        self.infinite[feature] += sums[kernels.INFINITE]
        new = int(sums[kernels.COUNT])
        if not new:
            return
        shift = sums[kernels.FIRST] / new
        spread = sums[kernels.SECOND] - sums[kernels.FIRST] * shift
        before = int(self.count[feature])
        self._mean[feature] += shift * new / (before + new)
        self._spread[feature] += max(spread, 0.0) + shift**2 * before * new / (before + new)
        self.count[feature] = before + new
        self.minimum[feature] = min(self.minimum[feature], sums[kernels.MINIMUM])
        self.maximum[feature] = max(self.maximum[feature], sums[kernels.MAXIMUM])

    def results(self, names: tuple[str, ...]) -> tuple[FeatureStatistics, ...]:
        """The statistics so far, one a feature."""
        return tuple(self._result(feature, name) for feature, name in enumerate(names))

    def _result(self, feature: int, name: str) -> FeatureStatistics:
        count = int(self.count[feature])
        chosen: dict[str, Any] = {"minimum": 0.0, "maximum": 0.0, "mean": 0.0, "deviation": 0.0}
        if count:
            chosen = {
                "minimum": float(self.minimum[feature]),
                "maximum": float(self.maximum[feature]),
                "mean": float(self._mean[feature]),
                "deviation": float(np.sqrt(self._spread[feature] / count)),
            }
        return FeatureStatistics(
            name=name,
            count=count,
            nan=int(self.nan[feature]),
            infinite=int(self.infinite[feature]),
            multiplicity=int(self.multiplicity[feature]),
            multiplicity_quantiles=self._multiplicity_quantiles(feature),
            **chosen,
        )

    def _multiplicity_quantiles(self, feature: int) -> tuple[int, ...]:
        reached = np.cumsum(self._events[:, feature])
        if not reached[-1]:
            return ()
        places = [int(np.searchsorted(reached, quantile * reached[-1])) for quantile in MULTIPLICITY_QUANTILES]
        return tuple(place if place < _COUNTED - 1 else int(self.multiplicity[feature]) for place in places)


def sampled(feature: FeatureStatistics, values: NDArray[np.float32]) -> FeatureStatistics:
    """The statistics of a feature with the quantiles and the sentinels of a sample of its values, shape (n,)."""
    finite = np.sort(values[np.isfinite(values)]).astype(np.float64)
    if not finite.size:
        return feature
    return replace(
        feature,
        quantiles=tuple(np.quantile(finite, VALUE_QUANTILES).tolist()),
        sentinels=_sentinels(finite),
    )


def _sentinels(values: NDArray[np.float64]) -> tuple[tuple[float, float], ...]:
    """The least and the greatest value, where they are typical sentinels and far from all other values (sorted)."""
    found = []
    for extreme, others in ((values[0], values[values > values[0]]), (values[-1], values[values < values[-1]])):
        share = 1.0 - others.size / values.size
        if float(extreme) not in _SENTINELS or share < _SENTINEL_SHARE or not others.size:
            continue
        if np.abs(others - extreme).min() >= abs(extreme) / 2:
            found.append((float(extreme), share))
    return tuple(found)
