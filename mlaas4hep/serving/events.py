"""Raw events as they come with a request, turned into a block of branches as a file would give it.

=========================================  ==============================================================
tensors                                    see `inference`
JSON, list of objects                      an object an event: branch names with raw values
JSON, one object                           an event, or columns: each branch with the values of all events
=========================================  ==============================================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlaas4hep.data.blocks import Block, Column, FlatValues, JaggedValues
from mlaas4hep.data.schema import InputBranch, Kind, Schema
from mlaas4hep.errors import UsageError
from mlaas4hep.names import did_you_mean, listing
from mlaas4hep.training.prediction import events_block, input_branches

OFFSETS = ":offsets"


def tensor_names(schema: Schema) -> list[str]:
    """The tensors that a request with raw events has."""
    names: list[str] = []
    for branch in input_branches(schema):
        if branch.kind is Kind.STRUCT:
            names += [f"{branch.name}.{member}" for member in _members(schema, branch.name)]
        else:
            names += [branch.name, branch.name + OFFSETS] if branch.kind is Kind.JAGGED else [branch.name]
    return names


def block_of_tensors(schema: Schema, tensors: Mapping[str, NDArray[Any]]) -> Block:
    """Events given as tensors. Raises UsageError for wrong, missing and unknown ones (with near misses)."""
    names = tensor_names(schema)
    for name in tensors:
        if name not in names and name.removesuffix(OFFSETS) not in schema.ignored:
            raise UsageError(f"The model has no input {name[:100]}.", did_you_mean(name, names, "inputs"))
    if lacking := [name for name in names if name not in tensors]:
        raise UsageError(f"The input {listing(lacking)} is not there.", "An event needs every input of the model.")
    columns: dict[str, Column] = {}
    for branch in input_branches(schema):
        name = branch.name
        if branch.kind is Kind.JAGGED:
            columns[name] = _jagged(name, tensors[name], tensors[name + OFFSETS])
        elif branch.kind is Kind.STRUCT:
            members = {member: tensors[f"{name}.{member}"] for member in _members(schema, name)}
            columns[name] = _struct(name, members)
        else:
            columns[name] = FlatValues(_flat(schema, branch, tensors[name]))
    return _block(columns)


def block_of_json(schema: Schema, data: Any) -> Block:
    """Events given as JSON. Raises UsageError for wrong, missing and unknown branches (with near misses)."""
    if isinstance(data, Mapping):
        return _block_of_columns(schema, data) if _is_columns(schema, data) else events_block(schema, [data])
    if not isinstance(data, list):
        raise UsageError("The body is no JSON object and no list of them.", 'Write [{"branch": value, ...}, ...].')
    if data and (columns := _pivoted(schema, data)) is not None:
        return columns
    return events_block(schema, data)


def _pivoted(schema: Schema, events: Sequence[Any]) -> Block | None:
    """Events of the common form as a block; None for all others, whose errors `events_block` explains."""
    branches = input_branches(schema)
    if any(branch.kind not in (Kind.FLAT, Kind.BOOL, Kind.JAGGED) for branch in branches):
        return None
    known = {branch.name for branch in branches}.union(schema.ignored)
    columns: dict[str, Column] = {}
    try:
        if any(not known.issuperset(event) for event in events):
            return None
        for branch in branches:
            found = [event[branch.name] for event in events]
            column = _lists(found) if branch.kind is Kind.JAGGED else _values(found)
            if column is None:
                return None
            columns[branch.name] = column
    except (KeyError, TypeError):
        return None
    return Block(0, len(events), columns)


def _values(found: list[Any]) -> FlatValues | None:
    if not set(map(type, found)) <= {float, int, bool, type(None)}:
        return None
    return FlatValues(np.array(found, dtype=np.float64))


def _lists(found: list[Any]) -> JaggedValues | None:
    if set(map(type, found)) != {list}:
        return None
    offsets = np.zeros(len(found) + 1, dtype=np.int64)
    np.cumsum([len(values) for values in found], out=offsets[1:])
    values = _values([value for values in found for value in values])
    return None if values is None else JaggedValues(offsets, values.values)


def _is_columns(schema: Schema, data: Mapping[str, Any]) -> bool:
    """Whether an object has the values of many events: a list for a branch of numbers, lists of lists for others."""
    for branch in input_branches(schema):
        if branch.kind in (Kind.FLAT, Kind.BOOL):
            return isinstance(data.get(branch.name), list)
        if branch.kind is Kind.STRUCT:
            return any(
                isinstance(data.get(f"{branch.name}.{member}"), list) for member in _members(schema, branch.name)
            )
    first = next((data.get(branch.name) for branch in input_branches(schema)), None)
    return isinstance(first, list) and bool(first) and isinstance(first[0], list)


def _block_of_columns(schema: Schema, data: Mapping[str, Any]) -> Block:
    lengths = {name: len(values) for name, values in data.items() if isinstance(values, list)}
    if len(lengths) != len(data) or len(set(lengths.values())) != 1:
        raise UsageError("The columns have different lengths.", "Give a list with one value an event for each branch.")
    names = list(data)
    return block_of_json(schema, [dict(zip(names, row, strict=True)) for row in zip(*data.values(), strict=True)])


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
