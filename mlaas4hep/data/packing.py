"""Packing: the branches of a block become ragged float32 events, in a store as in a prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlaas4hep.data import kernels
from mlaas4hep.data.blocks import Column, JaggedValues
from mlaas4hep.data.schema import FlatColumn
from mlaas4hep.errors import MlaasError

# events whose lists are interleaved at a time: few enough for the cache, many enough for calls not to matter
_INTERLEAVED = 2048
_NOTHING = np.zeros(kernels.PADDING, dtype=np.float32)


@dataclass(frozen=True)
class Packed:
    """Ragged events: each has its flat columns, then the values of each jagged branch.

    Attributes:
        values: float32, one event after another.
        sizes: shape (n,), int64, number of values of each event.
        counts: shape (n, jagged), uint32, number of values of each jagged branch.
    """

    values: NDArray[np.float32]
    sizes: NDArray[np.int64]
    counts: NDArray[np.uint32]

    @property
    def offsets(self) -> NDArray[np.int64]:
        """Where each event begins, shape (n + 1,)."""
        offsets = np.zeros(self.sizes.size + 1, dtype=np.int64)
        np.cumsum(self.sizes, out=offsets[1:])
        return offsets


@dataclass(frozen=True)
class Inputs:
    """The inputs of some events, feature by feature and in float32.

    Attributes:
        flat: shape (n, flat columns).
        jagged: one a jagged branch.
    """

    flat: NDArray[np.float32]
    jagged: tuple[JaggedValues, ...]


def inputs_of(
    columns: Mapping[str, Column],
    events: int,
    flat: Sequence[FlatColumn],
    jagged: Sequence[str],
    missing: Sequence[float] = (),
) -> Inputs:
    """The inputs among the branches of a block.

    Args:
        columns: the values of each branch.
        events: number of events.
        flat: the flat columns, in the order of the input vector.
        jagged: the jagged branches, in the order of the input vector.
        missing: values that stand for no value; they become NaN.

    Raises MlaasError for a branch that is not jagged in its data.
    """
    matrix = np.empty((events, len(flat)), dtype=np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for number, column in enumerate(flat):
            matrix[:, number] = flat_values(columns, column)
    return without_missing(Inputs(matrix, tuple(_lists(columns, name) for name in jagged)), missing)


def without_missing(inputs: Inputs, missing: Sequence[float]) -> Inputs:
    """NaN where there are values that stand for no value; the flat ones are overwritten."""
    lists = inputs.jagged
    for value in missing:
        marker = np.float32(value)
        inputs.flat[inputs.flat == marker] = np.nan
        lists = tuple(
            JaggedValues(column.offsets, np.where(column.values == marker, np.float32(np.nan), column.values))
            for column in lists
        )
    return Inputs(inputs.flat, lists)


def flat_values(columns: Mapping[str, Column], column: FlatColumn) -> NDArray[Any]:
    """One flat column of a block, shape (n,), in the type that the file has."""
    values = columns[column.branch].values
    if column.member:
        return np.asarray(values[column.member])
    if column.index >= 0:
        return values.reshape(values.shape[0], -1)[:, column.index]
    return values


def _lists(columns: Mapping[str, Column], name: str) -> JaggedValues:
    column = columns[name]
    if not isinstance(column, JaggedValues):
        raise MlaasError(f"The branch {name} is not jagged in its data.", "Add it to exclude_branches.")
    with np.errstate(over="ignore", invalid="ignore"):
        # a double beyond the range of float32 becomes infinite, and is counted as such
        return JaggedValues(column.offsets, np.ascontiguousarray(column.values, dtype=np.float32))


def pack(inputs: Inputs) -> Packed:
    """Interleave the features, so that each event lies in one piece."""
    (events, width), jagged = inputs.flat.shape, len(inputs.jagged)
    if not jagged:
        sizes = np.full(events, width, dtype=np.int64)
        return Packed(inputs.flat.reshape(-1), sizes, np.empty((events, 0), dtype=np.uint32))
    values = events * width + sum(int(column.offsets[-1]) for column in inputs.jagged)
    # the kernel writes some values beyond the end
    packed = np.empty(values + kernels.PADDING, dtype=np.float32)
    counts = np.empty((events, jagged), dtype=np.uint32)
    sizes = np.empty(events, dtype=np.int64)
    end = 0
    for first in range(0, events, _INTERLEAVED):
        last = min(first + _INTERLEAVED, events)
        offsets = [column.offsets[first : last + 1] for column in inputs.jagged]
        lists = [column.values[begin[0] : begin[-1]] for column, begin in zip(inputs.jagged, offsets, strict=True)]
        joined = np.concatenate([*lists, _NOTHING])
        kernels.interleave(
            joined,
            np.array(offsets, dtype=np.int64).reshape(jagged, last - first + 1),
            inputs.flat[first:last],
            end,
            packed,
            counts[first:last],
            sizes[first:last],
        )
        end += joined.size - kernels.PADDING + (last - first) * width
    return Packed(packed[:values], sizes, counts)
