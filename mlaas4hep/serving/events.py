"""Raw events as they come with a request, turned into a block of branches as a file would give it.

=========================================  ==============================================================
tensors                                    see `inference`
JSON, list of objects                      an object an event: branch names with raw values
JSON, one object                           an event, or columns: each branch with the values of all events
=========================================  ==============================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlaas4hep.data.blocks import Block, Column, FlatValues, JaggedValues
from mlaas4hep.data.packing import Inputs, without_missing
from mlaas4hep.data.schema import InputBranch, Kind, Schema
from mlaas4hep.errors import UsageError
from mlaas4hep.names import did_you_mean, listing
from mlaas4hep.training.prediction import events_block, input_branches

OFFSETS = ":offsets"
_COMMON = (Kind.FLAT, Kind.BOOL, Kind.JAGGED)
_NUMBERS = frozenset({float, int, bool, type(None)})
_Picker = Callable[[Any], tuple[Any, ...]]


class EventReader:
    """Turns the events of requests into blocks of the branches that a schema reads, or into its inputs at once.

    Args:
        schema: of the model.
        direct: whether the branches become inputs as they are, without preprocessing.
    """

    def __init__(self, schema: Schema, direct: bool = False) -> None:
        self.schema = schema
        self.branches = input_branches(schema)
        names: list[str] = []
        for branch in self.branches:
            if branch.kind is Kind.STRUCT:
                names += [f"{branch.name}.{member}" for member in _members(schema, branch.name)]
            else:
                names += [branch.name, branch.name + OFFSETS] if branch.kind is Kind.JAGGED else [branch.name]
        self.tensor_names = tuple(names)
        self._tensors = frozenset(names)
        self._known = {branch.name for branch in self.branches}.union(schema.ignored)
        self._common = all(branch.kind in _COMMON for branch in self.branches)
        # events whose inputs are plain numbers and lists become inputs at once; most models are so
        flat = [column.branch for column in schema.flat if not column.member and column.index < 0]
        self._jagged = [column.name for column in schema.jagged]
        plain = self._common and {*flat, *self._jagged} == {branch.name for branch in self.branches}
        self._flat: _Picker | None = itemgetter(*flat) if direct and plain and len(flat) > 1 else None

    def from_tensors(self, tensors: Mapping[str, NDArray[Any]]) -> Block | Inputs:
        """Events given as tensors. Raises UsageError for wrong, missing and unknown ones (with near misses)."""
        if tensors.keys() != self._tensors:
            self._explain(tensors)
        if self._flat is not None and not self._jagged:
            arrays = self._flat(tensors)
            if arrays[0].ndim and arrays[0].size == len(arrays[0]) and len({array.shape for array in arrays}) == 1:
                return self._inputs(np.concatenate(arrays, axis=None).reshape(len(arrays), -1).T, ())
        columns: dict[str, Column] = {}
        for branch in self.branches:
            name = branch.name
            if branch.kind is Kind.JAGGED:
                columns[name] = _jagged(name, tensors[name], tensors[name + OFFSETS])
            elif branch.kind is Kind.STRUCT:
                members = {member: tensors[f"{name}.{member}"] for member in _members(self.schema, name)}
                columns[name] = _struct(name, members)
            else:
                columns[name] = FlatValues(_flat(self.schema, branch, tensors[name]))
        return _block(columns)

    def from_json(self, data: Any) -> Block | Inputs:
        """Events given as JSON. Raises UsageError for wrong, missing and unknown branches (with near misses)."""
        if isinstance(data, Mapping):
            data = _rows(data) if self._is_columns(data) else [data]
        if not isinstance(data, list):
            raise UsageError("The body is no JSON object and no list of them.", 'Write [{"branch": value, ...}, ...].')
        if data and self._common and (found := self._pivoted(data)) is not None:
            return found
        try:
            return events_block(self.schema, data)
        except RecursionError as error:
            raise UsageError("The events have lists within lists without end.") from error

    def _explain(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        """Say which names are wrong or missing; branches of the training files that are no input may be there."""
        for name in tensors:
            if name not in self._tensors and name.removesuffix(OFFSETS) not in self.schema.ignored:
                known = list(self.tensor_names)
                raise UsageError(f"The model has no input {name[:100]}.", did_you_mean(name, known, "inputs"))
        if lacking := [name for name in self.tensor_names if name not in tensors]:
            raise UsageError(f"The input {listing(lacking)} is not there.", "An event needs every input of the model.")

    def _pivoted(self, events: Sequence[Any]) -> Block | Inputs | None:
        """Events of the common form; None for all others, whose errors `events_block` explains."""
        columns: dict[str, Column] = {}
        try:
            if not all(map(self._known.issuperset, events)):
                return None
            if self._flat is not None:
                return self._rows(events, self._flat)
            for branch in self.branches:
                name = branch.name
                found = [event[name] for event in events]
                column = _lists(found) if branch.kind is Kind.JAGGED else _values(found)
                if column is None:
                    return None
                columns[name] = column
        except (KeyError, TypeError):
            return None
        return Block(0, len(events), columns)

    def _rows(self, events: Sequence[Any], flat: _Picker) -> Inputs | None:
        rows = [flat(event) for event in events]
        if not all(_NUMBERS.issuperset(map(type, row)) for row in rows):
            return None
        lists = [_lists([event[name] for event in events]) for name in self._jagged]
        known = [column for column in lists if column is not None]
        return self._inputs(np.array(rows, dtype=np.float64), known) if len(known) == len(lists) else None

    def _inputs(self, flat: NDArray[Any], jagged: Sequence[JaggedValues]) -> Inputs:
        with np.errstate(over="ignore", invalid="ignore"):
            # a double beyond the range of float32 becomes infinite, as in a file
            matrix = np.ascontiguousarray(flat, dtype=np.float32)
            lists = tuple(JaggedValues(column.offsets, column.values.astype(np.float32)) for column in jagged)
        return without_missing(Inputs(matrix, lists), self.schema.missing)

    def _is_columns(self, data: Mapping[str, Any]) -> bool:
        """Whether an object has the values of many events: lists for single numbers, lists of lists for others."""
        for branch in self.branches:
            if branch.kind in (Kind.FLAT, Kind.BOOL):
                return isinstance(data.get(branch.name), list)
            if branch.kind is Kind.STRUCT:
                members = _members(self.schema, branch.name)
                return any(isinstance(data.get(f"{branch.name}.{member}"), list) for member in members)
        first = data.get(self.branches[0].name)
        return isinstance(first, list) and bool(first) and isinstance(first[0], list)


def _rows(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Columns as events."""
    lengths = {len(values) if isinstance(values, list) else -1 for values in data.values()}
    if len(lengths) != 1 or -1 in lengths:
        raise UsageError("The columns have different lengths.", "Give a list with one value an event for each branch.")
    return [dict(zip(data, row, strict=True)) for row in zip(*data.values(), strict=True)]


def _values(found: list[Any]) -> FlatValues | None:
    if not _NUMBERS.issuperset(map(type, found)):
        return None
    return FlatValues(np.array(found, dtype=np.float64))


def _lists(found: list[Any]) -> JaggedValues | None:
    if set(map(type, found)) != {list}:
        return None
    offsets = np.zeros(len(found) + 1, dtype=np.int64)
    np.cumsum([len(values) for values in found], out=offsets[1:])
    values = _values([value for values in found for value in values])
    return None if values is None else JaggedValues(offsets, values.values)


def _block(columns: dict[str, Column]) -> Block:
    sizes = {
        name: column.offsets.size - 1 if isinstance(column, JaggedValues) else column.values.shape[0]
        for name, column in columns.items()
    }
    events = next(iter(sizes.values()))
    for name, size in sizes.items():
        if size != events:
            first = next(iter(sizes))
            raise UsageError(f"The input {name} has {size} events, but {first} has {events}.")
    return Block(0, events, columns)


def _jagged(name: str, values: NDArray[Any], offsets: NDArray[Any]) -> JaggedValues:
    if values.ndim != 1 or offsets.ndim != 1 or offsets.dtype.kind not in "iu" or not offsets.size:
        raise UsageError(
            f"The input {name} has the shape {list(values.shape)} with offsets of {list(offsets.shape)}.",
            "Give the values of all events one after another, and the integers where each event begins.",
        )
    begins = offsets.astype(np.int64)
    if begins[0] != 0 or begins[-1] != values.size or (np.diff(begins) < 0).any():
        raise UsageError(f"{name}{OFFSETS} does not lead from 0 to the {values.size} values in ascending order.")
    return JaggedValues(begins, values)


def _flat(schema: Schema, branch: InputBranch, values: NDArray[Any]) -> NDArray[Any]:
    if branch.kind is not Kind.FIXED:
        # a column of shape [n, 1] is what several clients make of one value an event
        if values.ndim == 1 or (values.ndim == 2 and values.shape[1] == 1):
            return values.reshape(-1)
        raise UsageError(f"The input {branch.name} has the shape {list(values.shape)}, but it has one value an event.")
    needed = 1 + max(column.index for column in schema.flat if column.branch == branch.name)
    if values.ndim < 2 or values[:1].size < needed:
        raise UsageError(f"The input {branch.name} has the shape {list(values.shape)}, but {needed} values an event.")
    return values


def _struct(name: str, members: Mapping[str, NDArray[Any]]) -> FlatValues:
    lengths = {values.shape for values in members.values()}
    if len(lengths) != 1 or len(next(iter(lengths))) != 1:
        raise UsageError(f"The members of {name} have different shapes.", "Give one value an event.")
    result = np.empty(next(iter(lengths)), dtype=[(member, values.dtype) for member, values in members.items()])
    for member, values in members.items():
        result[member] = values
    return FlatValues(result)


def _members(schema: Schema, branch: str) -> list[str]:
    return [column.member for column in schema.flat if column.branch == branch and column.member]
