"""Histograms of the inputs by class: the `hist` parameter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlaas4hep.data.batches import Batches, rows_of_part
from mlaas4hep.data.schema import Schema
from mlaas4hep.data.split import Part
from mlaas4hep.data.store import PackedStore

_BINS = 50
_EVENTS = 20_000


def histograms(
    store: PackedStore, schema: Schema, classes: Sequence[str], targets: NDArray[np.int64]
) -> dict[str, dict[str, Any]]:
    """Counts of each feature's values by class, in 50 equal bins between its smallest and largest training value.

    Up to about 20,000 training events are used, taken at equal distances from each file.

    Args:
        store: the events.
        schema: the layout of the input vector.
        classes: names of the classes.
        targets: shape (events,), the class number of each row.

    Returns for each feature `low` and `high`, the edges of its range, and `counts`, a list of 50 numbers a class.
    """
    groups = rows_of_part(store, Part.TRAIN)
    stride = max(sum(group.size for group in groups) // _EVENTS, 1)
    counts = np.zeros((len(schema.features), len(classes), _BINS), dtype=np.int64)
    batches = Batches(store, schema, [group[::stride] for group in groups], batch_size=1024)
    for batch in batches.epoch(0):
        bins = np.clip((batch.values * _BINS).astype(np.int64), 0, _BINS - 1)
        places = np.broadcast_to(targets[batch.rows][:, None] * _BINS, bins.shape) + bins
        for feature, columns in enumerate(schema.slices.values()):
            found = places[:, columns][~batch.mask[:, columns]]
            counts[feature] += np.bincount(found, minlength=len(classes) * _BINS).reshape(len(classes), _BINS)
    return {
        name: {
            "low": schema.low[feature],
            "high": schema.high[feature],
            "counts": dict(zip(classes, counts[feature].tolist(), strict=True)),
        }
        for feature, name in enumerate(schema.features)
    }
