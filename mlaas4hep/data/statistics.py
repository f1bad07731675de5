"""Statistics of the inputs, gathered block by block while the files are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class FeatureStatistics:
    """One flat column or jagged branch.

    Attributes:
        name: the column or branch.
        count: finite values of training events.
        minimum, maximum, mean, deviation: over those values; 0 when there are none.
        nan, infinite: values that are NaN or infinite in float32, over all events.
        multiplicity: largest number of values in one event, over all events (1 for a flat column).
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
        self._mean = np.zeros(features)
        self._spread = np.zeros(features)

    def add(self, feature: int, values: NDArray[np.float32], training: NDArray[np.bool_]) -> None:
        """Take in values of one feature.

        Args:
            feature: its number.
            values: shape (n,), as they are stored.
            training: shape (n,), whether the value belongs to a training event.
        """
        finite = np.isfinite(values)
        if not finite.all():
            nan = int(np.isnan(values).sum())
            self.nan[feature] += nan
            self.infinite[feature] += int((~finite).sum()) - nan
            training = training & finite
        chosen = values[training]
        if chosen.size:
            self._combine(feature, chosen)

    def _combine(self, feature: int, values: NDArray[np.float32]) -> None:
        mean = float(values.mean(dtype=np.float64))
        spread = float(np.square(values - mean, dtype=np.float64).sum())
        before, new = int(self.count[feature]), values.size
        shift = mean - self._mean[feature]
        self._mean[feature] += shift * new / (before + new)
        self._spread[feature] += spread + shift**2 * before * new / (before + new)
        self.count[feature] = before + new
        self.minimum[feature] = min(self.minimum[feature], float(values.min()))
        self.maximum[feature] = max(self.maximum[feature], float(values.max()))

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
            **chosen,
        )
