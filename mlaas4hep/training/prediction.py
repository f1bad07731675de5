"""Predictions with a bundle: blocks of branches, or events given as JSON, to probabilities or values.

Whatever the events come from, they take the way of the training: preprocessing, choice of inputs, packing, gathering.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mlaas4hep.data.batches import Gatherer, PackedEvents
from mlaas4hep.data.blocks import Block, Column, FlatValues, JaggedValues
from mlaas4hep.data.packing import Inputs, inputs_of, pack
from mlaas4hep.data.preprocessing import Preprocessing
from mlaas4hep.data.schema import InputBranch, Kind, Schema
from mlaas4hep.errors import UsageError
from mlaas4hep.names import did_you_mean, listing
from mlaas4hep.training.adapters import load_adapter
from mlaas4hep.training.bundle import Bundle
from mlaas4hep.training.metrics import decide
from mlaas4hep.training.onnx_model import MODEL_FILE, OnnxModel

_BYTES_AT_A_TIME = 32 * 2**20


class Model(Protocol):
    """What predicts input vectors."""

    def predict(self, values: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Predictions, shape (n, width)."""


@dataclass(frozen=True)
class Predictions:
    """The predictions of a block.

    Attributes:
        values: shape (kept, width): probabilities, or values of a regression.
        kept: shape (n,), which entries the cuts have kept.
        passed: the entries that passed each cut and all before it; empty without preprocessing.
    """

    values: NDArray[np.float64]
    kept: NDArray[np.bool_]
    passed: NDArray[np.int64]


class Predictor:
    """A bundle that is ready to predict blocks of branches; memory is bounded by the size of a block.

    Args:
        bundle: the trained model.
        model: the same, where it is loaded already.

    Raises MlaasError when the model cannot be loaded.
    """

    def __init__(self, bundle: Bundle, model: Model | None = None) -> None:
        self.bundle = bundle
        self.cuts: tuple[str, ...] = ()
        self._preprocessing: Preprocessing | None = bundle.preprocessing()
        if self._preprocessing:
            self.cuts = self._preprocessing.cuts
        self._gatherer = Gatherer(bundle.schema)
        self._idim = bundle.schema.idim
        self._step = max(_BYTES_AT_A_TIME // (4 * self._idim), 1)
        self._model = model or load_model(bundle)

    @property
    def branches(self) -> tuple[InputBranch, ...]:
        """The branches that a block must have."""
        return input_branches(self.bundle.schema)

    @property
    def preprocesses(self) -> bool:
        """Whether anything is done to the branches before they become inputs."""
        return self._preprocessing is not None

    def predict(self, block: Block, origin: str = "") -> Predictions:
        """Predict the entries of a block that has all `branches`; `origin` names their file in errors."""
        events = block.stop - block.start
        columns: Mapping[str, Column] = block.columns
        kept, passed = np.ones(events, dtype=np.bool_), np.empty(0, dtype=np.int64)
        if self._preprocessing:
            if self._preprocessing.needs_sample and events:
                self._preprocessing = self._preprocessing.sampled(block, origin)
            processed = self._preprocessing.apply(block, origin)
            columns, kept, passed = processed.columns, processed.kept, processed.passed
        schema = self.bundle.schema
        names = [column.name for column in schema.jagged]
        inputs = inputs_of(columns, int(kept.sum()), schema.flat, names, schema.missing)
        return Predictions(self.predict_inputs(inputs), kept, passed)

    def predict_inputs(self, inputs: Inputs) -> NDArray[np.float64]:
        """Predictions, shape (n, width), for inputs that are preprocessed already."""
        packed, events = pack(inputs), inputs.flat.shape[0]
        ragged = PackedEvents(packed.values, packed.offsets, packed.counts)
        if 0 < events <= self._step:
            return self._gathered(ragged, np.arange(events))
        found = np.empty((events, self.bundle.task.width), dtype=np.float64)
        for first in range(0, events, self._step):
            rows = np.arange(first, min(first + self._step, events))
            found[rows] = self._gathered(ragged, rows)
        return found

    def _gathered(self, events: PackedEvents, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        values = np.empty((rows.size, self._idim), dtype=np.float32)
        mask = np.empty((rows.size, self._idim), dtype=np.bool_)
        self._gatherer.gather(events, rows, values, mask)
        return self._model.predict(values, mask)


def input_branches(schema: Schema) -> tuple[InputBranch, ...]:
    """The branches to read for a schema, with their kinds."""
    if schema.inputs:
        return schema.inputs
    kinds: dict[str, Kind] = {}
    for column in schema.flat:
        kinds[column.branch] = Kind.STRUCT if column.member else Kind.FIXED if column.index >= 0 else Kind.FLAT
    kinds |= {column.name: Kind.JAGGED for column in schema.jagged}
    return tuple(InputBranch(name, kind) for name, kind in kinds.items())


def predict_events(bundle: Bundle, events: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Class probabilities and the decision for each event, or the value that a regression predicts.

    Args:
        bundle: the trained model.
        events: branch names with raw values: a number for a flat branch, a list for a jagged one or a fixed array, an
            object (or `branch.member` keys) for a struct, null for a missing value. Branches of the training files that
            are no input may be there and do not count.

    An event that the bundle's cuts remove has `cut` true, and null for the rest.

    Raises UsageError for missing and unknown names (with near misses) and for values of the wrong form.
    """
    block = events_block(bundle.schema, events)
    found = Predictor(bundle).predict(block, "the events")
    told = iter(_answers(bundle, found.values))
    empty: dict[str, Any] = {"probabilities": None, "label": None} if bundle.classes else {"prediction": None}
    return [next(told) if kept else empty | {"cut": True} for kept in found.kept]


def _answers(bundle: Bundle, values: NDArray[np.float64]) -> list[dict[str, Any]]:
    if not bundle.classes:
        return [{"prediction": float(value)} for value in values[:, 0]]
    return [
        {
            "probabilities": dict(zip(bundle.classes, map(float, row), strict=True)),
            "label": bundle.classes[decision],
        }
        for row, decision in zip(values, decide(values, bundle.threshold), strict=True)
    ]


def events_block(schema: Schema, events: Sequence[Mapping[str, Any]]) -> Block:
    """Events given as JSON, as the block of a file would hold them; see `predict_events`."""
    if not events:
        raise UsageError("There is no event to predict.", "Give one JSON object, or a list of them.")
    named = [(f"Event {number}" if len(events) > 1 else "The event", event) for number, event in enumerate(events)]
    for where, event in named:
        _check(schema, event, where)
    columns = {branch.name: _column(schema, branch, named) for branch in input_branches(schema)}
    return Block(0, len(events), columns)


def load_model(bundle: Bundle) -> Model:
    """What predicts the input vectors of a bundle. Raises MlaasError when it cannot be loaded."""
    if bundle.runtime == "onnx":
        return OnnxModel(bundle.folder / MODEL_FILE)
    adapter = load_adapter(
        bundle.framework, bundle.folder / bundle.native, bundle.task, bundle.schema, bundle.folder / bundle.code
    )
    idim = bundle.schema.idim
    values = np.full((2, idim), bundle.schema.fill, dtype=np.float32)
    adapter.check(values, np.ones((2, idim), dtype=np.bool_))
    return adapter


def _members(schema: Schema, branch: str) -> list[str]:
    return [column.member for column in schema.flat if column.branch == branch and column.member]


def _check(schema: Schema, event: Any, where: str) -> None:
    """Refuse an event that lacks an input, or has what is neither an input nor a branch of the training files."""
    if not isinstance(event, Mapping):
        raise UsageError(f"{where} is no JSON object.", 'Write {"branch": value, ...}.')
    branches = input_branches(schema)
    members = {f"{branch.name}.{member}" for branch in branches for member in _members(schema, branch.name)}
    known = {branch.name for branch in branches} | members
    for name in event:
        if name not in known and name not in schema.ignored:
            raise UsageError(f"{where} has an unknown branch {name}.", did_you_mean(name, sorted(known), "inputs"))
    missing = sorted(branch.name for branch in branches if not _has(schema, event, branch.name))
    if missing:
        spare = [key for key in event if key in schema.ignored]
        nearest = f"Beside it there is {listing(spare)}." if spare else "An event needs every input of the model."
        raise UsageError(f"{where} lacks {listing(missing)}.", nearest)


def _has(schema: Schema, event: Mapping[str, Any], branch: str) -> bool:
    members = _members(schema, branch)
    if not members:
        return branch in event
    inner = event.get(branch)
    inside = inner if isinstance(inner, Mapping) else {}
    return all(f"{branch}.{member}" in event or member in inside for member in members)


def _column(schema: Schema, branch: InputBranch, events: Sequence[tuple[str, Mapping[str, Any]]]) -> Column:
    """The values of one branch."""
    name = branch.name
    if branch.kind is Kind.JAGGED:
        lists = [_list(event[name], name, where) for where, event in events]
        offsets = np.zeros(len(lists) + 1, dtype=np.int64)
        np.cumsum([len(values) for values in lists], out=offsets[1:])
        return JaggedValues(offsets, np.array([value for values in lists for value in values], dtype=np.float64))
    if branch.kind is Kind.FIXED:
        return FlatValues(_fixed(schema, name, events))
    if branch.kind is Kind.STRUCT:
        members = _members(schema, name) or sorted(events[0][1][name])
        values = np.empty(len(events), dtype=[(member, np.float64) for member in members])
        for row, (where, event) in enumerate(events):
            inner = event.get(name, {})
            for member in members:
                key = f"{name}.{member}"
                values[member][row] = _number(event[key] if key in event else inner.get(member), key, where)
        return FlatValues(values)
    return FlatValues(np.array([_number(event[name], name, where) for where, event in events], dtype=np.float64))


def _fixed(schema: Schema, name: str, events: Sequence[tuple[str, Mapping[str, Any]]]) -> NDArray[np.float64]:
    """Arrays of the same length, row-major, shape (n, length)."""
    rows = [_list(_flattened(event[name]), name, where) for where, event in events]
    needed = max((column.index + 1 for column in schema.flat if column.branch == name), default=len(rows[0]))
    for (where, _), row in zip(events, rows, strict=True):
        if len(row) < needed:
            raise UsageError(f"{where}: {name} has only {len(row)} elements.", "Give the whole array.")
    length = min(len(row) for row in rows)
    return np.array([row[:length] for row in rows], dtype=np.float64)


def _flattened(value: Any) -> Any:
    """Nested lists of an array with several dimensions, row-major."""
    if isinstance(value, list) and value and all(isinstance(part, list) for part in value):
        return [element for part in value for element in _flattened(part)]
    return value


def _list(value: Any, name: str, where: str) -> list[float]:
    if not isinstance(value, list):
        raise UsageError(f"{where}: {name} is {value!r}, but it has a list of numbers.", f'Write "{name}": [...].')
    return [_number(element, name, where) for element in value]


def _number(value: Any, name: str, where: str) -> float:
    if value is None:
        return float("nan")
    if isinstance(value, bool | int | float):
        return float(value)
    raise UsageError(f"{where}: {name} is {value!r}, but it has a number.")
