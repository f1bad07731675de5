"""From the tensors of a request to those of its answer: prepared inputs as they are, raw events by the model's schema.

Prepared inputs are the tensors of the network itself: `values` (and `mask`) of a bundle, whatever an uploaded network
has. Raw events are one tensor a branch:

==============  ========================================================================================
flat            `branch`, shape [n]
fixed array     `branch`, shape [n, length...]
struct          `branch.member`, shape [n]
jagged          `branch`, the values of all events one after another, and `branch:offsets`, shape [n + 1]:
                event i has the values from offsets[i] to offsets[i + 1]
==============  ========================================================================================

The answer to raw events has a row an event; NaN in the rows of those that the model's cuts remove, and then a tensor
`kept` tells which ones were not removed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlaas4hep.data.blocks import Block
from mlaas4hep.data.packing import Inputs
from mlaas4hep.errors import UsageError
from mlaas4hep.names import did_you_mean, listing
from mlaas4hep.serving.events import EventReader
from mlaas4hep.serving.runtime import LoadedModel, TensorSpec
from mlaas4hep.serving.tensors import DATATYPES, converted
from mlaas4hep.training.onnx_model import PREDICTIONS

Tensors = Mapping[str, NDArray[Any]]
KEPT = "kept"


def output_names(model: LoadedModel, raw: bool) -> list[str]:
    """The outputs that a request can have."""
    names = list(model.outputs)
    return [*names, KEPT] if raw and model.predictor is not None and model.predictor.cuts else names


def is_raw(model: LoadedModel, tensors: Tensors) -> bool:
    """Whether the tensors are raw events rather than the network's own inputs."""
    return model.bundle is not None and model.inputs.keys().isdisjoint(tensors)


def planned(model: LoadedModel, tensors: Tensors, most: int) -> tuple[int, Callable[[], dict[str, NDArray[Any]]]]:
    """The number of rows, and what computes all outputs.

    Args:
        model: which.
        tensors: the inputs, prepared or raw.
        most: rows that a request may have.

    Raises UsageError for names that the model does not have (with near misses), and for wrong shapes.
    """
    if is_raw(model, tensors):
        return planned_events(model, events_of(model).from_tensors(tensors), most)
    if tensors.keys() != model.inputs.keys():
        _refuse_names(model, tensors)
    feed = {name: _fitting(tensors[name], model.inputs[name]) for name in model.inputs}
    counts = {array.shape[0] for array in feed.values() if array.ndim}
    if model.batched and len(counts) != 1:
        raise UsageError("The inputs have different numbers of rows.")
    rows = max(counts, default=1)
    _refuse_many(rows, most)

    def run() -> dict[str, NDArray[Any]]:
        return dict(zip(model.outputs, model.run(feed, rows), strict=True))

    return rows, run


def planned_events(
    model: LoadedModel, events: Block | Inputs, most: int
) -> tuple[int, Callable[[], dict[str, NDArray[Any]]]]:
    """The same for raw events."""
    predictor = model.predictor
    if predictor is None:
        raise UsageError(
            "Raw events of this model go through a Python file of its author, which the inference server does not run.",
            "Send prepared values, or predict with a job.",
        )
    rows = events.flat.shape[0] if isinstance(events, Inputs) else events.stop - events.start
    _refuse_many(rows, most)

    def run() -> dict[str, NDArray[Any]]:
        if isinstance(events, Inputs):
            return {PREDICTIONS: predictor.predict_inputs(events).astype(np.float32)}
        found = predictor.predict(events, "the events")
        if not predictor.cuts:
            return {PREDICTIONS: found.values.astype(np.float32)}
        values = np.full((rows, found.values.shape[1]), np.nan, dtype=np.float32)
        values[found.kept] = found.values
        return {PREDICTIONS: values, KEPT: found.kept}

    return rows, run


def _refuse_names(model: LoadedModel, tensors: Tensors) -> None:
    for name in tensors:
        if name not in model.inputs:
            known = [*model.inputs, *_raw_names(model)]
            raise UsageError(f"The model has no input {name[:100]}.", did_you_mean(name, known, "inputs"))
    lacking = [name for name in model.inputs if name not in tensors]
    raise UsageError(f"The input {listing(lacking)} is not there.", "Send every input of the model.")


def _fitting(array: NDArray[Any], spec: TensorSpec) -> NDArray[Any]:
    shape = tuple([-1 if wanted < 0 else size for size, wanted in zip(array.shape, spec.shape, strict=False)])
    if array.ndim != len(spec.shape) or shape != spec.shape:
        raise UsageError(
            f"The input {spec.name} has the shape {list(array.shape)}, but the model takes {list(spec.shape)}."
        )
    return converted(array, spec.dtype, spec.name)


def _refuse_many(rows: int, most: int) -> None:
    if rows > most:
        raise UsageError(f"There are {rows} events, more than the {most} of one request.", "Send them in parts.")


def _raw_names(model: LoadedModel) -> tuple[str, ...]:
    return model.events.tensor_names if model.events is not None else ()


def events_of(model: LoadedModel) -> EventReader:
    """What reads raw events for the model; raises UsageError for an uploaded network."""
    if model.events is None:
        raise UsageError("The model takes no raw events.", "Send its own inputs to infer.")
    return model.events


def datatype(dtype: np.dtype[Any]) -> str:
    """The protocol's name of a type."""
    return DATATYPES[dtype]
