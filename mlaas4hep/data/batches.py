"""Batches: which events come together, and gathering them from the packed store into the input matrix.

Every epoch takes each event of the chosen part once. Each file's events are spread evenly over the epoch, so every
batch holds events of all files in proportion to their sizes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlaas4hep.data.schema import Schema
from mlaas4hep.data.store import PackedStore, StoredFile

_CHUNK_BYTES = 64 * 2**20
_CHUNK_EVENTS = 8192


@dataclass(frozen=True)
class Batch:
    """Some events as the model takes them; the arrays are views of buffers that the next chunk overwrites.

    Attributes:
        rows: shape (n,), int64: the rows of the store.
        values: shape (n, idim), float32: the scaled input vectors.
        mask: shape (n, idim), bool: True where there is no value (padding, NaN, infinite).
    """

    rows: NDArray[np.int64]
    values: NDArray[np.float32]
    mask: NDArray[np.bool_]


@dataclass(frozen=True)
class PackedEvents:
    """Ragged events: from `values[offsets[i]]` on, event i has its flat columns, then `counts[i, j]` of branch j."""

    values: NDArray[np.float32]
    offsets: NDArray[np.int64]
    counts: NDArray[np.uint32]


class Gatherer:
    """Turns ragged events into input vectors of one schema; used alike for training and for prediction."""

    def __init__(self, schema: Schema) -> None:
        flat = len(schema.flat)
        low = np.array(schema.low, dtype=np.float64)
        with np.errstate(over="ignore"):
            width = np.array(schema.high, dtype=np.float64) - low
        scale = np.divide(1.0, width, out=np.zeros_like(width), where=width > 0)
        self.schema = schema
        self._flat = flat
        self._low = low
        self._scale = scale
        self._room = np.array([column.multiplicity for column in schema.jagged], dtype=np.int64)
        self._place = flat + np.cumsum(self._room) - self._room

    def gather(
        self,
        events: PackedEvents,
        rows: NDArray[np.int64],
        values: NDArray[np.float32],
        mask: NDArray[np.bool_],
    ) -> None:
        """Write the input vectors of some events.

        Args:
            events: where the values are.
            rows: shape (n,), which events.
            values: shape (n, idim), C-contiguous; overwritten.
            mask: shape (n, idim), C-contiguous; overwritten, True where there is no value.
        """
        values.fill(self.schema.fill)
        mask.fill(True)
        begin = events.offsets[rows]
        if self._flat:
            raw = events.values[begin[:, None] + np.arange(self._flat)].astype(np.float64)
            present = np.isfinite(raw)
            scaled = (raw - self._low[: self._flat]) * self._scale[: self._flat]
            np.copyto(values[:, : self._flat], scaled, where=present, casting="same_kind")
            np.logical_not(present, out=mask[:, : self._flat])
        if self._room.size:
            self._gather_jagged(events, rows, begin + self._flat, values.reshape(-1), mask.reshape(-1))

    def _gather_jagged(
        self,
        events: PackedEvents,
        rows: NDArray[np.int64],
        begin: NDArray[np.int64],
        values: NDArray[np.float32],
        mask: NDArray[np.bool_],
    ) -> None:
        """Scatter the jagged values; a list longer than its room is cut. `values` and `mask` are flattened."""
        counts = events.counts[rows].astype(np.int64)
        first = (begin[:, None] + np.cumsum(counts, axis=1) - counts).ravel()
        lengths = np.minimum(counts, self._room).ravel()
        within = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        target = (np.arange(rows.size)[:, None] * self.schema.idim + self._place).ravel()
        feature = np.repeat(np.tile(np.arange(self._flat, self._flat + self._room.size), rows.size), lengths)
        raw = events.values[np.repeat(first, lengths) + within].astype(np.float64)
        place = np.repeat(target, lengths) + within
        present = np.isfinite(raw)
        if not present.all():
            raw, place, feature = raw[present], place[present], feature[present]
        values[place] = (raw - self._low[feature]) * self._scale[feature]
        mask[place] = False


def mixed(groups: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Interleave groups of rows so that every stretch holds them in proportion to their sizes, each in its own order.

    The i-th of n rows of a group goes to the place (i + 1/2) / n of the whole.
    """
    places = np.concatenate([(np.arange(group.size) + 0.5) / max(group.size, 1) for group in groups])
    return np.concatenate(groups)[np.argsort(places, kind="stable")]


def rows_of_part(store: PackedStore, part: int) -> list[NDArray[np.int64]]:
    """The rows of each file that belong to one part, in the order of their entries."""
    return [_rows(store, file, part) for file in store.facts.files]


def _rows(store: PackedStore, file: StoredFile, part: int) -> NDArray[np.int64]:
    return file.start + np.flatnonzero(store.parts[file.start : file.stop] == part)


class Batches:
    """Batches of one part of a store, gathered a chunk at a time into buffers that are used again and again.

    Args:
        store: the events.
        schema: the layout of the input vector.
        groups: the rows of each file.
        batch_size: events a batch; the last one of an epoch may be smaller.
        chunk_size: events gathered at a time, made a whole number of batches; -1 chooses it by the width.
        shuffle: whether each file's events come in a new random order each epoch.
        seed: start of that order.
    """

    def __init__(
        self,
        store: PackedStore,
        schema: Schema,
        groups: Sequence[NDArray[np.int64]],
        *,
        batch_size: int,
        chunk_size: int = -1,
        shuffle: bool = False,
        seed: int = 0,
    ) -> None:
        self.events = sum(group.size for group in groups)
        self._groups = groups
        self._packed = PackedEvents(store.values, store.offsets, store.counts)
        self._gatherer = Gatherer(schema)
        self.batch_size = batch_size
        self._shuffle = shuffle
        self._seed = seed
        chunk = _chunk_events(chunk_size, batch_size, schema.idim, self.events)
        self._values = np.empty((chunk, schema.idim), dtype=np.float32)
        self._mask = np.empty((chunk, schema.idim), dtype=np.bool_)

    def order(self, epoch: int) -> NDArray[np.int64]:
        """All rows, in the order in which an epoch takes them."""
        if not self._shuffle:
            return mixed(self._groups)
        generator = np.random.default_rng([self._seed, epoch])
        return mixed([generator.permutation(group) for group in self._groups])

    def chunks(self, epoch: int) -> Iterator[Batch]:
        """The events of one epoch, counted from 0: a whole number of batches at a time, but for the last."""
        order = self.order(epoch)
        chunk = self._values.shape[0]
        for start in range(0, order.size, chunk):
            rows = order[start : start + chunk]
            values, mask = self._values[: rows.size], self._mask[: rows.size]
            self._gatherer.gather(self._packed, rows, values, mask)
            yield Batch(rows, values, mask)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of one epoch, counted from 0."""
        for chunk in self.chunks(epoch):
            for first in range(0, chunk.rows.size, self.batch_size):
                piece = slice(first, first + self.batch_size)
                yield Batch(chunk.rows[piece], chunk.values[piece], chunk.mask[piece])


def _chunk_events(chunk_size: int, batch_size: int, idim: int, events: int) -> int:
    """Number of events of a chunk: whole batches, bounded by 64 MiB of values."""
    wanted = chunk_size if chunk_size > 0 else _CHUNK_EVENTS
    fitting = max(_CHUNK_BYTES // (4 * idim), 1)
    batches = max(min(wanted, fitting, events) // batch_size, 1)
    return min(batches * batch_size, max(events, 1))
