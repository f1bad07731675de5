"""Batches: which events come together, and gathering them from the packed store into the input matrix.

Every epoch takes each event of the chosen part once. Each file's events are spread evenly over the epoch, so every
batch holds events of all files in proportion to their sizes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlaas4hep.data import kernels
from mlaas4hep.data.schema import Schema
from mlaas4hep.data.store import PackedStore, StoredFile

# what stays in a processor's cache until the framework takes it
_CHUNK_BYTES = 2 * 2**20
_CHUNK_EVENTS = 8192
_STRETCH_EVENTS = 2**16


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
    counts: NDArray[np.unsignedinteger[Any]]


class Gatherer:
    """Turns ragged events into input vectors of one schema; used alike for training and for prediction."""

    def __init__(self, schema: Schema) -> None:
        width = np.array(schema.width, dtype=np.float64)
        self.schema = schema
        self._shift = np.array(schema.shift, dtype=np.float64)
        self._factor = np.divide(1.0, width, out=np.zeros_like(width), where=width > 0)
        self._room = np.array([column.multiplicity for column in schema.jagged], dtype=np.int64)
        self._place = len(schema.flat) + np.cumsum(self._room) - self._room

    def gather(
        self,
        events: PackedEvents,
        rows: NDArray[np.int64],
        values: NDArray[np.float32],
        mask: NDArray[np.bool_],
    ) -> None:
        """Write the input vectors of some events; a list longer than its room is cut.

        Args:
            events: where the values are.
            rows: shape (n,), which events.
            values: shape (n, idim), C-contiguous; overwritten.
            mask: shape (n, idim), C-contiguous; overwritten, True where there is no value.
        """
        kernels.gather(
            events.values,
            events.offsets,
            events.counts,
            rows,
            self._shift,
            self._factor,
            self._room,
            self._place,
            self.schema.fill,
            values,
            mask,
        )


def mixed(groups: Sequence[NDArray[np.integer[Any]]], start: float = 0.0, stop: float = 1.0) -> NDArray[np.int64]:
    """Interleave groups of rows so that every stretch holds them in proportion to their sizes, each in its own order.

    The i-th of n rows of a group goes to the place (i + 1/2) / n of the whole.

    Args:
        groups: the rows.
        start, stop: which stretch of the whole, of [0, 1).
    """
    places, rows = [], []
    for group in groups:
        # the rows whose places are in [start, stop)
        first, last = (max(int(np.ceil(group.size * edge - 0.5)), 0) for edge in (start, stop))
        places.append((np.arange(first, last) + 0.5) / max(group.size, 1))
        rows.append(group[first:last])
    return np.concatenate(rows)[np.argsort(np.concatenate(places), kind="stable")].astype(np.int64)


def rows_of_part(store: PackedStore, part: int) -> list[NDArray[np.integer[Any]]]:
    """The rows of each file that belong to one part, in the order of their entries."""
    return [_rows(store, file, part) for file in store.facts.files]


def _rows(store: PackedStore, file: StoredFile, part: int) -> NDArray[np.integer[Any]]:
    # 32 bits where they suffice: these are the arrays that grow with the events
    dtype = np.uint32 if store.facts.events < 2**32 else np.int64
    return (np.flatnonzero(store.parts[file.start : file.stop] == part) + file.start).astype(dtype)


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
        groups: Sequence[NDArray[np.integer[Any]]],
        *,
        batch_size: int,
        chunk_size: int = -1,
        shuffle: bool = False,
        seed: int = 0,
    ) -> None:
        self.events = sum(group.size for group in groups)
        self._groups = groups
        self.packed = PackedEvents(store.values, store.offsets, store.counts)
        self.schema = schema
        self._gatherer = Gatherer(schema)
        self.batch_size = batch_size
        self._shuffle = shuffle
        self._seed = seed
        chunk = _chunk_events(chunk_size, batch_size, schema.idim, self.events)
        self._values = np.empty((chunk, schema.idim), dtype=np.float32)
        self._mask = np.empty((chunk, schema.idim), dtype=np.bool_)

    def order(self, epoch: int) -> Iterator[NDArray[np.int64]]:
        """All rows in the order in which an epoch, counted from 0, takes them, a stretch at a time."""
        groups = self._groups
        if self._shuffle:
            generator = np.random.default_rng([self._seed, epoch])
            groups = [generator.permutation(group) for group in groups]
        edges = np.linspace(0.0, 1.0, max(self.events // _STRETCH_EVENTS, 1) + 1)
        for start, stop in itertools.pairwise(edges):
            yield mixed(groups, start, stop)

    def chunks(self, epoch: int) -> Iterator[Batch]:
        """The events of one epoch, counted from 0: a whole number of batches at a time, but for the last."""
        return map(self._gathered, self.rows(epoch))

    def rows(self, epoch: int) -> Iterator[NDArray[np.int64]]:
        """The rows of each chunk, for those who gather them in their own way."""
        chunk = self._values.shape[0]
        waiting = np.empty(0, dtype=np.int64)
        for stretch in self.order(epoch):
            waiting = np.concatenate([waiting, stretch])
            ready = waiting.size // chunk * chunk
            for start in range(0, ready, chunk):
                yield waiting[start : start + chunk]
            waiting = waiting[ready:]
        if waiting.size:
            yield waiting

    def _gathered(self, rows: NDArray[np.int64]) -> Batch:
        values, mask = self._values[: rows.size], self._mask[: rows.size]
        self._gatherer.gather(self.packed, rows, values, mask)
        return Batch(rows, values, mask)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of one epoch, counted from 0."""
        for chunk in self.chunks(epoch):
            for first in range(0, chunk.rows.size, self.batch_size):
                piece = slice(first, first + self.batch_size)
                yield Batch(chunk.rows[piece], chunk.values[piece], chunk.mask[piece])


def _chunk_events(chunk_size: int, batch_size: int, idim: int, events: int) -> int:
    """Number of events of a chunk: whole batches, bounded by 2 MiB of values."""
    wanted = chunk_size if chunk_size > 0 else _CHUNK_EVENTS
    fitting = max(_CHUNK_BYTES // (4 * idim), 1)
    batches = max(min(wanted, fitting, events) // batch_size, 1)
    return min(batches * batch_size, max(events, 1))
