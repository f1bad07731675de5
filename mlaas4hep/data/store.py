"""The packed store: events one after another as ragged float32, written once, then mapped into memory.

A store is a folder:

=============  =====================================================================================================
values.f32     for each event its flat columns, then the values of each jagged branch; little-endian float32
offsets.i64    shape (events + 1,): where each event begins in the values
counts.u32     shape (events, jagged branches): number of values of each jagged branch
parts.u8       shape (events,): training, validation or test (`split.Part`)
labels.f64     shape (events,): the label branch, if there is one
store.json     what it was made from: files with their rows, columns, statistics
=============  =====================================================================================================

Events of one file are consecutive rows, in the order of their entries.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from mlaas4hep.data.schema import FlatColumn, JaggedColumn, Schema
from mlaas4hep.data.statistics import FeatureStatistics

STORE_FORMAT = 1
_FILES = {
    "values": "values.f32",
    "offsets": "offsets.i64",
    "counts": "counts.u32",
    "parts": "parts.u8",
    "labels": "labels.f64",
}


@dataclass(frozen=True)
class StoredFile:
    """A file of the store: its events are the rows [start, stop).

    Attributes:
        path, tree: what was read.
        number: its place in the user's list of files.
        start, stop: its rows.
        entries: number of entries of the tree; more than its rows when `nevts` limits them.
        size, uuid, identity: the file's size in bytes, its ROOT identifier, and what the split depends on.
    """

    path: str
    tree: str
    number: int
    start: int
    stop: int
    entries: int
    size: int
    uuid: str
    identity: str


@dataclass(frozen=True)
class StoreFacts:
    """The contents of store.json."""

    key: str
    flat: tuple[FlatColumn, ...]
    jagged: tuple[str, ...]
    label: str
    files: tuple[StoredFile, ...]
    statistics: tuple[FeatureStatistics, ...]
    format: int = STORE_FORMAT

    @property
    def events(self) -> int:
        """Number of rows."""
        return self.files[-1].stop if self.files else 0

    def to_json(self) -> str:
        """As text."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> StoreFacts:
        """From text."""
        data = json.loads(text)
        return cls(
            key=data["key"],
            flat=tuple(FlatColumn(**column) for column in data["flat"]),
            jagged=tuple(data["jagged"]),
            label=data["label"],
            files=tuple(StoredFile(**file) for file in data["files"]),
            statistics=tuple(FeatureStatistics(**feature) for feature in data["statistics"]),
            format=data["format"],
        )


class PackedStore:
    """A finished store, mapped into memory read-only.

    Attributes:
        facts: what it was made from.
        values: float32, all values.
        offsets: int64, shape (events + 1,).
        counts: uint32, shape (events, jagged).
        parts: uint8, shape (events,).
        labels: float64, shape (events,), or None without a label branch.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.facts = StoreFacts.from_json((folder / "store.json").read_text(encoding="utf-8"))
        events, jagged = self.facts.events, len(self.facts.jagged)
        self.values: NDArray[np.float32] = _mapped(folder / _FILES["values"], "<f4")
        self.offsets: NDArray[np.int64] = _mapped(folder / _FILES["offsets"], "<i8")
        self.counts: NDArray[np.uint32] = _mapped(folder / _FILES["counts"], "<u4").reshape(events, jagged)
        self.parts: NDArray[np.uint8] = _mapped(folder / _FILES["parts"], "u1")
        self.labels: NDArray[np.float64] | None = (
            _mapped(folder / _FILES["labels"], "<f8") if self.facts.label else None
        )

    def schema(self, fill: float = 0.0, ignored: Sequence[str] = ()) -> Schema:
        """The layout of the input vector, scaled to [0, 1] over the training events.

        A jagged branch without any value keeps one column, so that it can be predicted with.
        """
        statistics = self.facts.statistics
        jagged = statistics[len(self.facts.flat) :]
        return Schema(
            flat=self.facts.flat,
            jagged=tuple(JaggedColumn(feature.name, max(feature.multiplicity, 1)) for feature in jagged),
            low=tuple(feature.minimum for feature in statistics),
            high=tuple(feature.maximum for feature in statistics),
            fill=fill,
            ignored=tuple(ignored),
        )


def _mapped(path: Path, dtype: str) -> NDArray[Any]:
    if path.stat().st_size == 0:
        return np.empty(0, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r")


class StoreWriter:
    """Writes the arrays of a store into an existing folder, block by block; memory does not grow with the events."""

    def __init__(self, folder: Path, jagged: int, labelled: bool) -> None:
        self._folder = folder
        self._jagged = jagged
        self._streams: dict[str, BinaryIO] = {
            name: (folder / file).open("wb") for name, file in _FILES.items() if labelled or name != "labels"
        }
        self._end = 0
        self._write("offsets", np.zeros(1, dtype="<i8"))

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *_: object) -> None:
        for stream in self._streams.values():
            stream.close()

    def add(
        self,
        packed: NDArray[np.float32],
        sizes: NDArray[np.int64],
        counts: NDArray[np.uint32],
        parts: NDArray[np.uint8],
        labels: NDArray[np.float64] | None,
    ) -> None:
        """Append n events.

        Args:
            packed: their values, one event after another.
            sizes: shape (n,), number of values of each event.
            counts: shape (n, jagged).
            parts: shape (n,).
            labels: shape (n,), where the store has labels.
        """
        self._write("values", packed.astype("<f4", copy=False))
        self._write("offsets", (self._end + np.cumsum(sizes)).astype("<i8", copy=False))
        self._write("counts", counts.astype("<u4", copy=False))
        self._write("parts", parts)
        if labels is not None:
            self._write("labels", labels.astype("<f8", copy=False))
        self._end += packed.size

    def finish(self, facts: StoreFacts) -> None:
        """Write store.json last: a folder without it is no store."""
        (self._folder / "store.json").write_text(facts.to_json(), encoding="utf-8")

    def _write(self, name: str, array: NDArray[Any]) -> None:
        self._streams[name].write(np.ascontiguousarray(array).data)
