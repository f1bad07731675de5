"""Histograms of the inputs by class, and of the multiplicities of jagged branches: the `hist` parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlaas4hep.data.batches import Batches, rows_of_part
from mlaas4hep.data.schema import Schema
from mlaas4hep.data.split import Part
from mlaas4hep.data.statistics import FeatureStatistics
from mlaas4hep.data.store import PackedStore

ALL_EVENTS = "events"
_BINS = 50
_EVENTS = 20_000
# events that decide on the ranges, and most values of them in memory
_RANGE_EVENTS = 2_000
_RANGE_VALUES = 8_000_000
_TAIL = 0.002
_MUCH_WIDER = 2.0


@dataclass(frozen=True)
class Histogram:
    """One feature's values by class.

    Values beyond the ends are counted in the first and in the last bin.

    Attributes:
        name: the feature.
        edges: shape (bins + 1,), float64, in the units of the branch.
        counts: shape (classes, bins), float64: number of values, or the sum of their events' weights.
    """

    name: str
    edges: NDArray[np.float64]
    counts: NDArray[np.float64]


def histograms(
    store: PackedStore,
    schema: Schema,
    classes: Sequence[str],
    targets: NDArray[Any],
    weights: NDArray[np.float32] | None = None,
) -> list[Histogram]:
    """The values of each feature by class, as they are in the files.

    Up to about 20,000 training events are used, taken at equal distances from each file. The range is that of all
    values unless a few of them lie far away; features that are whole numbers in a small range get a bin a number.
    Sentinels such as -999 are left out.

    Args:
        store: the events.
        schema: the layout of the input vector.
        classes: names of the classes; none for a regression, where all events are counted together.
        targets: shape (events,), the class number of each row.
        weights: shape (events,), the weight of each row, or None.
    """
    unscaled = schema.model_copy(
        update={"shift": (0.0,) * len(schema.features), "width": (1.0,) * len(schema.features), "fill": 0.0}
    )
    sentinels = [[value for value, _ in feature.sentinels] for feature in store.facts.statistics]
    edges = _all_edges(store, unscaled, sentinels)
    numbers = targets if classes else np.zeros(targets.size, dtype=np.int8)
    counts = [np.zeros((len(classes) or 1, edge.size - 1)) for edge in edges]
    for batch in Batches(store, unscaled, _sample(store, _EVENTS), batch_size=4096).epoch(0):
        heavy = None if weights is None else weights[batch.rows]
        for feature, columns in enumerate(schema.slices.values()):
            present = _present(batch.values[:, columns], batch.mask[:, columns], sentinels[feature])
            events, _ = np.nonzero(present)
            values = batch.values[:, columns][present]
            _count(counts[feature], edges[feature], values, numbers[batch.rows][events], _of(heavy, events))
    return [Histogram(name, *found) for name, *found in zip(schema.features, edges, counts, strict=True)]


def multiplicities(
    store: PackedStore,
    schema: Schema,
    classes: Sequence[str],
    targets: NDArray[Any],
    weights: NDArray[np.float32] | None = None,
) -> list[Histogram]:
    """The number of values in an event of each jagged branch, by class; arguments and events as in `histograms`."""
    rows = np.concatenate(_sample(store, _EVENTS)).astype(np.int64)
    heavy = _of(weights, rows)
    numbers = targets[rows] if classes else np.zeros(rows.size, dtype=np.int8)
    found = []
    for branch, column in enumerate(schema.jagged):
        sizes = store.counts[rows, branch].astype(np.float64)
        edges = _edges(sizes, 0.0, float(sizes.max(initial=0.0)))
        counts = np.zeros((len(classes) or 1, edges.size - 1))
        _count(counts, edges, sizes, numbers, heavy)
        found.append(Histogram(column.name, edges, counts))
    return found


def as_json(found: Sequence[Histogram], classes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """For histograms.json: of each feature the `edges` of its bins, and `counts` by class."""
    return {
        histogram.name: {
            "edges": histogram.edges.tolist(),
            "counts": dict(zip(classes or (ALL_EVENTS,), histogram.counts.tolist(), strict=True)),
        }
        for histogram in found
    }


def from_json(data: Mapping[str, Mapping[str, Any]]) -> list[Histogram]:
    """What `as_json` made."""
    return [
        Histogram(name, np.array(entry["edges"], dtype=np.float64), np.array(list(entry["counts"].values())))
        for name, entry in data.items()
    ]


def _sample(store: PackedStore, events: int) -> list[NDArray[np.integer[Any]]]:
    groups = rows_of_part(store, Part.TRAIN)
    stride = max(sum(group.size for group in groups) // events, 1)
    return [group[::stride] for group in groups]


def _of(weights: NDArray[np.float32] | None, events: NDArray[Any]) -> NDArray[np.float32] | None:
    return None if weights is None else weights[events]


def _present(values: NDArray[np.float32], mask: NDArray[np.bool_], sentinels: Sequence[float]) -> NDArray[np.bool_]:
    if not sentinels:
        return ~mask
    return ~mask & ~np.isin(values, np.array(sentinels, dtype=np.float32))


def _count(
    counts: NDArray[np.float64],
    edges: NDArray[np.float64],
    values: NDArray[Any],
    classes: NDArray[Any],
    weights: NDArray[np.float32] | None,
) -> None:
    bins = counts.shape[1]
    with np.errstate(over="ignore", invalid="ignore"):
        places = (values.astype(np.float64) - edges[0]) * (bins / (edges[-1] - edges[0]))
    places = np.clip(places, 0, bins - 1).astype(np.int64)
    counts += np.bincount(classes.astype(np.int64) * bins + places, weights, minlength=counts.size).reshape(
        counts.shape
    )


def _all_edges(store: PackedStore, unscaled: Schema, sentinels: Sequence[Sequence[float]]) -> list[NDArray[np.float64]]:
    """The edges of each feature's bins, from the statistics and a small sample."""
    events = max(min(_RANGE_EVENTS, _RANGE_VALUES // unscaled.idim), 1)
    batches = Batches(store, unscaled, _sample(store, events), batch_size=4 * events, chunk_size=4 * events)
    seen: list[list[NDArray[np.float32]]] = [[] for _ in unscaled.features]
    for batch in batches.epoch(0):
        for feature, columns in enumerate(unscaled.slices.values()):
            values, mask = batch.values[:, columns], batch.mask[:, columns]
            seen[feature].append(values[_present(values, mask, sentinels[feature])])
    return [
        _edges(np.concatenate(values).astype(np.float64), *_extremes(statistics))
        for values, statistics in zip(seen, store.facts.statistics, strict=True)
    ]


def _extremes(statistics: FeatureStatistics) -> tuple[float, float]:
    """The range of all values; without bounds where sentinels make it meaningless."""
    if statistics.sentinels:
        return -np.inf, np.inf
    return statistics.minimum, statistics.maximum


def _edges(values: NDArray[np.float64], minimum: float, maximum: float) -> NDArray[np.float64]:
    """Edges of equal bins for values of which some are known, and the range of all of them."""
    if not values.size:
        return np.linspace(0.0, 1.0, _BINS + 1)
    low, high = (float(edge) for edge in np.quantile(values, [_TAIL, 1 - _TAIL]))
    if maximum - minimum <= _MUCH_WIDER * (high - low):
        low, high = minimum, maximum
    if (values == np.rint(values)).all() and high - low < _BINS:
        return np.arange(np.floor(low), np.ceil(high) + 2) - 0.5
    if not high - low > 1e-9 * max(abs(low), abs(high)):
        low, high = low - 0.5 * (abs(low) or 1.0), high + 0.5 * (abs(high) or 1.0)
    return np.linspace(low, high, _BINS + 1)
