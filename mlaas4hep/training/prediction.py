"""Predictions of single events, given as JSON with branch names and raw values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlaas4hep.data.batches import Gatherer, PackedEvents
from mlaas4hep.data.schema import FlatColumn, Schema
from mlaas4hep.errors import UsageError
from mlaas4hep.names import did_you_mean, listing
from mlaas4hep.training.adapters import load_adapter
from mlaas4hep.training.bundle import Bundle
from mlaas4hep.training.contract import Task
from mlaas4hep.training.metrics import decide


def predict_events(bundle: Bundle, events: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Class probabilities and the decision for each event.

    Args:
        bundle: the trained model.
        events: branch names with raw values: a number for a flat branch, a list for a jagged one or a fixed array, an
            object (or `branch.member` keys) for a struct, null for a missing value. Branches of the training files that
            are no input may be there and do not count.

    Raises UsageError for missing and unknown names (with near misses) and for values of the wrong form.
    """
    values, mask = input_vectors(bundle.schema, events)
    task = Task("classification", bundle.classes)
    model = load_adapter("keras", bundle.folder / "model.keras", task, bundle.schema, bundle.folder / "model.py")
    model.check(values, mask)
    probabilities = model.predict(values, mask)
    decisions = decide(probabilities, bundle.threshold)
    return [
        {
            "probabilities": dict(zip(bundle.classes, map(float, row), strict=True)),
            "label": bundle.classes[decision],
        }
        for row, decision in zip(probabilities, decisions, strict=True)
    ]


def input_vectors(schema: Schema, events: Sequence[Mapping[str, Any]]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The input vectors and their mask, each of shape (events, idim), gathered as in training."""
    if not events:
        raise UsageError("There is no event to predict.", "Give one JSON object, or a list of them.")
    packed, offsets, counts = [], [], []
    size = 0
    for number, event in enumerate(events):
        where = f"Event {number}" if len(events) > 1 else "The event"
        flat, lists = _event_values(schema, event, where)
        offsets.append(size)
        counts.append([len(values) for values in lists])
        packed += [*flat, *(value for values in lists for value in values)]
        size = len(packed)
    with np.errstate(over="ignore"):
        values32 = np.array(packed, dtype=np.float64).astype(np.float32)
    ragged = PackedEvents(
        values32,
        np.array(offsets, dtype=np.int64),
        np.array(counts, dtype=np.uint32).reshape(len(events), len(schema.jagged)),
    )
    values = np.empty((len(events), schema.idim), dtype=np.float32)
    mask = np.empty((len(events), schema.idim), dtype=np.bool_)
    Gatherer(schema).gather(ragged, np.arange(len(events)), values, mask)
    return values, mask


def _event_values(schema: Schema, event: Mapping[str, Any], where: str) -> tuple[list[float], list[list[float]]]:
    if not isinstance(event, Mapping):
        raise UsageError(f"{where} is no JSON object.", 'Write {"branch": value, ...}.')
    _refuse_unknown(schema, event, where)
    missing = sorted({column.branch for column in schema.flat if not _has(event, column)})
    missing += [column.name for column in schema.jagged if column.name not in event]
    if missing:
        raise UsageError(f"{where} lacks {listing(missing)}.", _nearest(missing[0], schema, event))
    flat = [_flat_value(event, column, where) for column in schema.flat]
    lists = [_list_value(event[column.name], column.name, where) for column in schema.jagged]
    return flat, lists


def _refuse_unknown(schema: Schema, event: Mapping[str, Any], where: str) -> None:
    inputs = {column.branch for column in schema.flat} | {column.name for column in schema.flat if column.member}
    inputs |= {column.name for column in schema.jagged}
    for name in event:
        if name not in inputs and name not in schema.ignored:
            raise UsageError(f"{where} has an unknown branch {name}.", did_you_mean(name, sorted(inputs), "inputs"))


def _nearest(name: str, schema: Schema, event: Mapping[str, Any]) -> str:
    spare = [key for key in event if key in schema.ignored]
    return "An event needs every input of the model." if not spare else f"Beside it there is {listing(spare)}."


def _has(event: Mapping[str, Any], column: FlatColumn) -> bool:
    if column.member:
        inner = event.get(column.branch)
        return column.name in event or (isinstance(inner, Mapping) and column.member in inner)
    return column.branch in event


def _flat_value(event: Mapping[str, Any], column: FlatColumn, where: str) -> float:
    if column.member:
        value = event[column.name] if column.name in event else event[column.branch][column.member]
    elif column.index >= 0:
        elements = _list_value(_flattened(event[column.branch]), column.branch, where)
        if column.index >= len(elements):
            raise UsageError(f"{where}: {column.branch} has only {len(elements)} elements.", "Give the whole array.")
        value = elements[column.index]
    else:
        value = event[column.branch]
    return _number(value, column.name, where)


def _flattened(value: Any) -> Any:
    """Nested lists of an array with several dimensions, row-major."""
    if isinstance(value, list) and value and all(isinstance(part, list) for part in value):
        return [element for part in value for element in _flattened(part)]
    return value


def _list_value(value: Any, name: str, where: str) -> list[float]:
    if not isinstance(value, list):
        raise UsageError(f"{where}: {name} is {value!r}, but it has a list of numbers.", f'Write "{name}": [...].')
    return [_number(element, name, where) for element in value]


def _number(value: Any, name: str, where: str) -> float:
    if value is None:
        return float("nan")
    if isinstance(value, bool | int | float):
        return float(value)
    raise UsageError(f"{where}: {name} is {value!r}, but it has a number.")
