"""The packed store: events one after another as ragged float32, written once, then mapped into memory.

A store is a folder:

=============  =====================================================================================================
values.f32     for each event its flat columns, then the values of each jagged branch; little-endian float32
offsets.i64    shape (events + 1,): where each event begins in the values
counts.u8      shape (events, jagged branches): number of values of each jagged branch; .u16 or .u32 for longer lists
positions.u32  shape (events,): decides which events train, validate and test (`split.positions`)
entries.i64    shape (events,): number of the entry in its tree, if events were cut away
labels.f64     shape (events,): the label branch, if there is one
weights.f32    shape (events,): the weight branch, if there is one
store.json     what it was made from: files with their rows, columns, statistics
=============  =====================================================================================================

Events of one file are consecutive rows, in the order of their entries.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from mlaas4hep.data.packing import Packed
from mlaas4hep.data.schema import FlatColumn, InputBranch, JaggedColumn, Scaling, Schema
from mlaas4hep.data.split import fold_parts, parts_of
from mlaas4hep.data.statistics import FeatureStatistics

STORE_FORMAT = 3
_ARRAYS: dict[str, tuple[str, str]] = {
    "values": ("values.f32", "<f4"),
    "offsets": ("offsets.i64", "<i8"),
    "positions": ("positions.u32", "<u4"),
    "entries": ("entries.i64", "<i8"),
    "labels": ("labels.f64", "<f8"),
    "weights": ("weights.f32", "<f4"),
}
_ALWAYS = ("values", "offsets", "positions")
_WIDENED_AT_A_TIME = 2**22


@dataclass(frozen=True)
class StoredFile:
    """A file of the store: its events are the rows [start, stop).

    Attributes:
        path, tree: what was read.
        number: its place in the user's list of files.
        start, stop: its rows.
        entries: number of entries of the tree.
        read: number of entries that were read, from the first on; more than its rows where events were cut away.
        size, uuid, identity: the file's size in bytes, its ROOT identifier, and what the split depends on.
    """

    path: str
    tree: str
    number: int
    start: int
    stop: int
    entries: int
    read: int
    size: int
    uuid: str
    identity: str


@dataclass(frozen=True)
class Cut:
    """One line of the cut flow: what was asked, and how many events were left."""

    cut: str
    events: int


@dataclass(frozen=True)
class StoreFacts:
    """The contents of store.json.

    Attributes:
        key: the content key.
        flat, jagged: the features.
        label, weight: branches of the label and of the weight, or "".
        missing: values that were taken for no value.
        files: where the events came from.
        statistics: one a feature.
        cut_flow: what preprocessing cut away, beginning with all events read; empty without preprocessing.
        count_bits: width of the counts, 8, 16 or 32: the least that holds the largest.
    """

    key: str
    flat: tuple[FlatColumn, ...]
    jagged: tuple[str, ...]
    label: str
    weight: str
    missing: tuple[float, ...]
    files: tuple[StoredFile, ...]
    statistics: tuple[FeatureStatistics, ...]
    cut_flow: tuple[Cut, ...] = ()
    count_bits: int = 32
    format: int = STORE_FORMAT

    @property
    def events(self) -> int:
        """Number of rows."""
        return self.files[-1].stop if self.files else 0

    def to_json(self) -> str:
        """As text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> StoreFacts:
        """From text."""
        return TypeAdapter(cls).validate_json(text)


class PackedStore:
    """A finished store, mapped into memory read-only.

    Args:
        folder: where it is.
        split: fraction of the events kept away from training.

    Attributes:
        facts: what it was made from.
        values: float32, all values.
        offsets: int64, shape (events + 1,).
        counts: uint8, uint16 or uint32, shape (events, jagged).
        positions: uint32, shape (events,).
        entries: int64, shape (events,), or None where no event was cut away.
        labels: float64, shape (events,), or None without a label branch.
        weights: float32, shape (events,), or None without a weight branch.
        parts: uint8, shape (events,), `split.Part`.
    """

    def __init__(self, folder: Path, split: float) -> None:
        self.folder = folder
        self.facts = StoreFacts.from_json((folder / "store.json").read_text(encoding="utf-8"))
        arrays = _ARRAYS | {"counts": _counts(self.facts.count_bits)}
        found = {name: _mapped(folder / file, dtype) for name, (file, dtype) in arrays.items()}
        self.values: NDArray[np.float32] = found["values"]
        self.offsets: NDArray[np.int64] = found["offsets"]
        self.counts: NDArray[np.unsignedinteger[Any]] = found["counts"].reshape(
            self.facts.events, len(self.facts.jagged)
        )
        self.positions: NDArray[np.uint32] = found["positions"]
        self.entries: NDArray[np.int64] | None = found["entries"] if (folder / _ARRAYS["entries"][0]).exists() else None
        self.labels: NDArray[np.float64] | None = found["labels"] if self.facts.label else None
        self.weights: NDArray[np.float32] | None = found["weights"] if self.facts.weight else None
        self.parts = parts_of(self.positions, split)

    @contextmanager
    def using_fold(self, folds: int, fold: int) -> Iterator[None]:
        """Meanwhile, fold number `fold` of `folds` tests, the next one validates and the others train."""
        usual = self.parts
        self.parts = fold_parts(self.positions, folds, fold)
        try:
            yield
        finally:
            self.parts = usual

    def schema(
        self,
        fill: float = 0.0,
        ignored: Sequence[str] = (),
        *,
        scaling: Scaling = "minmax",
        max_multiplicity: float | None = None,
        inputs: Sequence[InputBranch] = (),
        preprocessing: Mapping[str, Any] | None = None,
    ) -> Schema:
        """The layout of the input vector, scaled by the statistics of all events.

        Args:
            fill: what the model sees where there is no value.
            ignored: branches of the files that are no input.
            scaling: see `Schema`.
            max_multiplicity: most columns of a jagged branch: a number, or (below 1) the fraction of the events whose
                lists must fit; None gives every branch its largest multiplicity.
            inputs: the branches to read.
            preprocessing: the preprocessing, as JSON.

        A jagged branch without any value keeps one column, so that it can be predicted with.
        """
        statistics = self.facts.statistics
        placed = [placing(feature, scaling) for feature in statistics]
        return Schema(
            flat=self.facts.flat,
            jagged=tuple(
                JaggedColumn(name, self._room(feature, number, max_multiplicity))
                for number, (name, feature) in enumerate(
                    zip(self.facts.jagged, statistics[len(self.facts.flat) :], strict=True)
                )
            ),
            scaling=scaling,
            shift=tuple(shift for shift, _ in placed),
            width=tuple(width for _, width in placed),
            fill=fill,
            ignored=tuple(ignored),
            missing=self.facts.missing,
            inputs=tuple(inputs),
            preprocessing=None if preprocessing is None else dict(preprocessing),
        )

    def _room(self, feature: FeatureStatistics, number: int, most: float | None) -> int:
        largest = max(feature.multiplicity, 1)
        if most is None:
            return largest
        if most < 1:
            return max(int(np.quantile(self.counts[:, number], most, method="inverted_cdf")), 1)
        return min(largest, int(most))


def read_array(folder: Path, facts: StoreFacts, name: str, start: int, count: int) -> NDArray[Any]:
    """A stretch of one array of a store, shape (count,), read instead of mapped."""
    file, dtype = _counts(facts.count_bits) if name == "counts" else _ARRAYS[name]
    return np.fromfile(folder / file, dtype=dtype, count=count, offset=start * np.dtype(dtype).itemsize)


def write_facts(folder: Path, facts: StoreFacts) -> None:
    """Write store.json, when all arrays are complete: a folder without it is no store."""
    (folder / "store.json").write_text(facts.to_json(), encoding="utf-8")


def placing(feature: FeatureStatistics, scaling: Scaling) -> tuple[float, float]:
    """What is subtracted from a feature and what it is divided by; a constant feature has width 0."""
    if scaling == "standard":
        return feature.mean, feature.deviation
    if scaling == "robust" and feature.quantiles:
        _, lower, middle, upper, _ = feature.quantiles
        # a feature that is constant for most events still varies for the others
        return middle, upper - lower or feature.deviation
    return feature.minimum, feature.maximum - feature.minimum


def _counts(bits: int) -> tuple[str, str]:
    """File and type of the counts."""
    return f"counts.u{bits}", f"<u{bits // 8}"


def _mapped(path: Path, dtype: str) -> NDArray[Any]:
    if not path.exists() or path.stat().st_size == 0:
        return np.empty(0, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r")


class StoreWriter:
    """Writes the arrays of a store into an existing folder, block by block; memory does not grow with the events.

    Args:
        folder: where to.
        optional: which of `entries`, `labels` and `weights` the store has.

    Attributes:
        count_bits: width of the counts so far.
    """

    def __init__(self, folder: Path, optional: Sequence[str]) -> None:
        self.count_bits = 8
        self._folder = folder
        self._files = {name: _ARRAYS[name] for name in (*_ALWAYS, *optional)} | {"counts": _counts(self.count_bits)}
        self._streams: dict[str, BinaryIO] = {
            name: (folder / file).open("wb") for name, (file, _) in self._files.items()
        }
        self._end = 0
        self._write("offsets", np.zeros(1, dtype=np.int64))

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *_: object) -> None:
        for stream in self._streams.values():
            stream.close()

    def add(self, packed: Packed, **columns: NDArray[Any]) -> None:
        """Append n events with `positions` and the optional arrays that the store has, each of shape (n,)."""
        self._write("values", packed.values)
        self._write("offsets", self._end + np.cumsum(packed.sizes))
        self._widen(int(packed.counts.max(initial=0)))
        self._write("counts", packed.counts)
        for name, values in columns.items():
            self._write(name, values)
        self._end += packed.values.size

    def _widen(self, largest: int) -> None:
        """Write the counts anew, if they are too narrow for the largest one."""
        bits = next(bits for bits in (8, 16, 32) if largest < 2**bits)
        if bits <= self.count_bits:
            return
        (narrow, dtype), (wide, _) = self._files["counts"], _counts(bits)
        self._streams["counts"].close()
        self.count_bits, self._files["counts"] = bits, _counts(bits)
        self._streams["counts"] = (self._folder / wide).open("wb")
        with (self._folder / narrow).open("rb") as stream:
            while piece := stream.read(_WIDENED_AT_A_TIME):
                self._write("counts", np.frombuffer(piece, dtype=dtype))
        (self._folder / narrow).unlink()

    def _write(self, name: str, array: NDArray[Any]) -> None:
        self._streams[name].write(np.ascontiguousarray(array, dtype=self._files[name][1]).data)
