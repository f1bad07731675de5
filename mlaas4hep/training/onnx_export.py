"""The ONNX model of a bundle: one form for every framework, checked against the trained model before it is published.

==========  ==================  =====================================================================================
input       `values`            float32, (n, idim): the scaled input vectors
input       `mask`              float32, (n, idim): 1 where there is no value; for models that take it
output      `predictions`       float32, (n, width): a probability a class (two for two classes), or one value
metadata    `schema_sha256`     digest of schema.json, and `version`, `framework`, `task`, `classes`
==========  ==================  =====================================================================================

ONNX Runtime has to give what the trained model gives on held-out events, on one without any value and on some beyond
the range of the training, to within TOLERANCE: of probabilities the absolute difference, of values the difference
relative to the largest one. It holds for every event, for trees too: their thresholds are taken over exactly.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

import mlaas4hep
from mlaas4hep.errors import MlaasError
from mlaas4hep.training.contract import Adapter, Feed, Task
from mlaas4hep.training.onnx_estimator import sklearn_graph, xgboost_graph
from mlaas4hep.training.onnx_model import MASK, MODEL_FILE, PREDICTIONS, VALUES, OnnxModel
from mlaas4hep.training.onnx_network import Inexpressible, keras_graph, quiet, torch_graph
from mlaas4hep.training.outputs import identity, sigmoid, softmax

TOLERANCE = 1e-5
CHECKED_EVENTS = 2000
_LARGEST_BYTES = int(1.5e9)  # a protobuf ends at 2 GiB; weights of larger models lie in a file beside it
_BEYOND = (0.0, 1.0, -1.0, 2.0)
_IR_VERSION = 10
_RAW = "raw_predictions"

_HEADS: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "Identity": identity,
    "Sigmoid": sigmoid,
    "Softmax": softmax,
}


class ExportError(MlaasError):
    """The ONNX model does not give what the trained model gives; it is not published."""


@dataclass(frozen=True)
class HeldOut:
    """Events that the model was not trained on.

    Attributes:
        values: shape (n, idim), float32.
        mask: shape (n, idim), bool.
    """

    values: NDArray[np.float32]
    mask: NDArray[np.bool_]

    @classmethod
    def of(cls, feed: Feed, events: int = CHECKED_EVENTS) -> HeldOut:
        """The first events of a feed, copied."""
        values, masks, count = [], [], 0
        for chunk in feed.chunks(0):
            values.append(chunk.values[: events - count].copy())
            masks.append(chunk.mask[: events - count].copy())
            count += values[-1].shape[0]
            if count >= events:
                break
        return cls(np.concatenate(values), np.concatenate(masks))


@dataclass(frozen=True)
class Export:
    """What a model is predicted with, and how that is known to be right.

    Attributes:
        runtime: `onnx`, or `native` for the framework itself.
        reason: why it is native.
        events: number of events of the check.
        difference: the largest difference found (relative to the largest value for a regression).
    """

    runtime: Literal["onnx", "native"]
    reason: str = ""
    events: int = 0
    difference: float = 0.0


def export_onnx(
    adapter: Adapter,
    task: Task,
    folder: Path,
    held_out: HeldOut,
    *,
    schema_digest: str,
    fill: float = 0.0,
    code: Path | None = None,
) -> Export:
    """Write model.onnx into a folder, when ONNX can express the model.

    Args:
        adapter: the trained model.
        task: what it has learned.
        folder: where to write.
        held_out: events to check it with.
        schema_digest: SHA-256 of the schema, to be kept with the model.
        fill: what the model sees where there is no value.
        code: the user's file, for layers of the user.

    Raises ExportError when its predictions differ from those of the trained model by more than TOLERANCE; nothing is
    left in the folder then.
    """
    events = _with_extremes(held_out, fill)
    expected = adapter.predict(events.values, events.mask)
    best: Export | None = None
    try:
        for graph in _graphs(adapter, task, events.values.shape[1], code):
            model = _normalised(graph, task, events, expected)
            _describe(model, adapter, task, schema_digest)
            found = _checked(model, folder / MODEL_FILE, task, events, expected)
            if found.difference <= TOLERANCE:
                return found
            best = min(best or found, found, key=lambda export: export.difference)
    except Inexpressible as error:
        if best is None:
            return Export("native", f"ONNX cannot express the model ({error}).")
    for written in folder.glob(f"{MODEL_FILE}*"):
        written.unlink()
    if best is None:
        return Export("native", f"ONNX has no form for models of {adapter.framework}.")
    raise ExportError(
        f"The ONNX model differs from the trained {adapter.framework} model by {best.difference:.2g} on"
        f" {best.events} events, more than the {TOLERANCE:g} that is tolerated, so it is not published.",
        'Set "runtime": "native" to publish the trained model without it.',
    )


def _graphs(adapter: Adapter, task: Task, idim: int, code: Path | None) -> Iterator[onnx.ModelProto]:
    """The graphs to try, one after another: what the trained model gives, in its own form."""
    native = adapter.native
    if adapter.framework == "keras":
        yield keras_graph(native, idim, code)
    elif adapter.framework == "torch":
        yield torch_graph(native, idim, adapter.takes_mask)
    elif adapter.framework == "xgboost":
        yield xgboost_graph(native.get_booster() if hasattr(native, "get_booster") else native, idim)
    elif adapter.framework == "sklearn":
        if task.kind == "classification" and not hasattr(native, "predict_proba"):
            raise Inexpressible("it gives no probabilities by itself")
        gets_nan = bool(getattr(adapter, "gets_nan", False))
        yield sklearn_graph(native, idim, gets_nan)
        yield sklearn_graph(native, idim, gets_nan, double=True)


def _with_extremes(held_out: HeldOut, fill: float) -> HeldOut:
    """The events, one without any value, and some with the same value everywhere, beyond the range of the training."""
    idim = held_out.values.shape[1]
    rows = np.full((1 + len(_BEYOND), idim), fill, dtype=np.float32)
    rows[1:] = np.array(_BEYOND, dtype=np.float32)[:, None]
    mask = np.zeros(rows.shape, dtype=np.bool_)
    mask[0] = True
    values = held_out.values[:CHECKED_EVENTS]
    return HeldOut(np.concatenate([values, rows]), np.concatenate([held_out.mask[:CHECKED_EVENTS], mask]))


def _normalised(model: onnx.ModelProto, task: Task, events: HeldOut, expected: NDArray[np.float64]) -> onnx.ModelProto:
    """The graph with our names and form of the output.

    What becomes of the model's own output (nothing, sigmoid or softmax) is found by comparison with the predictions
    that are expected: the adapter alone decides what its model's output means.
    """
    _rename(model)
    raw = _run(model, events)
    raw = raw.reshape(raw.shape[0], -1)
    width = raw.shape[1]
    if width not in (1, task.width):
        raise Inexpressible(f"its output has the width {width}")
    best, difference = "Identity", np.inf
    for name, head in _HEADS.items():
        if task.kind == "classification" and (name != "Softmax" or width > 1):
            found = _distance(_columns(head(raw), task), expected)
            if found < difference:
                best, difference = name, found
    _add_head(model, best, width, task)
    return model


def _columns(scores: NDArray[np.float64], task: Task) -> NDArray[np.float64]:
    return np.concatenate([1.0 - scores, scores], axis=1) if scores.shape[1] < task.width else scores


def _distance(found: NDArray[np.float64], expected: NDArray[np.float64]) -> float:
    difference = float(np.abs(found - expected).max(initial=0.0))
    return np.inf if np.isnan(difference) else difference


def _rename(model: onnx.ModelProto) -> None:
    """Give the inputs our form, and the output a name of its own."""
    graph = model.graph
    names = [node.name for node in graph.input]
    if names not in ([VALUES], [VALUES, MASK]):
        raise Inexpressible(f"its graph has the inputs {', '.join(names)}")
    output, kind = graph.output[0].name, graph.output[0].type.tensor_type.elem_type
    del graph.output[1:]
    graph.node.append(helper.make_node("Identity", [output], [_RAW]))
    graph.output[0].CopyFrom(helper.make_tensor_value_info(_RAW, kind, None))
    for node in graph.input:
        idim = node.type.tensor_type.shape.dim[1].dim_value
        node.CopyFrom(helper.make_tensor_value_info(node.name, TensorProto.FLOAT, ["n", idim]))


def _add_head(model: onnx.ModelProto, head: str, width: int, task: Task) -> None:
    """Make float32 predictions of shape (n, width of the task) of the model's own output."""
    shape = helper.make_tensor("predictions_shape", TensorProto.INT64, [2], [-1, width])
    nodes = [
        helper.make_node("Constant", [], ["predictions_shape"], value=shape),
        helper.make_node("Reshape", [_RAW, "predictions_shape"], ["predictions_rows"]),
        helper.make_node("Cast", ["predictions_rows"], ["predictions_scores"], to=TensorProto.FLOAT),
        helper.make_node(head, ["predictions_scores"], ["predictions_head"]),
    ]
    last = "predictions_head"
    if width < task.width:
        one = helper.make_tensor("predictions_one", TensorProto.FLOAT, [], [1.0])
        nodes += [
            helper.make_node("Constant", [], ["predictions_one"], value=one),
            helper.make_node("Sub", ["predictions_one", last], ["predictions_first"]),
            helper.make_node("Concat", ["predictions_first", last], ["predictions_both"], axis=1),
        ]
        last = "predictions_both"
    nodes.append(helper.make_node("Identity", [last], [PREDICTIONS]))
    model.graph.node.extend(nodes)
    output = helper.make_tensor_value_info(PREDICTIONS, TensorProto.FLOAT, ["n", task.width])
    model.graph.output[0].CopyFrom(output)


def _describe(model: onnx.ModelProto, adapter: Adapter, task: Task, schema_digest: str) -> None:
    """Say what the model belongs to; leave out where it was made."""
    model.producer_name, model.producer_version = "mlaas4hep", mlaas4hep.__version__
    model.ir_version = min(model.ir_version, _IR_VERSION)
    model.doc_string = ""
    del model.metadata_props[:]
    facts = {
        "schema_sha256": schema_digest,
        "version": mlaas4hep.__version__,
        "framework": adapter.framework,
        "task": task.kind,
        "classes": json.dumps(list(task.classes)),
    }
    helper.set_model_props(model, facts)


def _checked(model: onnx.ModelProto, path: Path, task: Task, events: HeldOut, expected: NDArray[np.float64]) -> Export:
    """Write the model, and compare what ONNX Runtime makes of the file with what is expected."""
    _save(model, path)
    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        raise Inexpressible(f"its graph is not valid: {str(error).splitlines()[0]}") from error
    found = OnnxModel(path).predict(events.values, events.mask)
    if found.shape != expected.shape:
        raise Inexpressible(f"its predictions have the shape {list(found.shape)}")
    difference = _distance(found, expected)
    if task.kind == "regression":
        difference /= max(float(np.abs(expected).max()), float(np.finfo(np.float32).tiny))
    return Export("onnx", events=events.values.shape[0], difference=difference)


def _save(model: onnx.ModelProto, path: Path) -> None:
    large = sum(len(tensor.raw_data) for tensor in model.graph.initializer) > _LARGEST_BYTES
    if large:
        onnx.save_model(model, path, save_as_external_data=True, location=f"{path.name}.data")
    else:
        path.write_bytes(model.SerializeToString())


def _run(model: onnx.ModelProto, events: HeldOut) -> NDArray[np.float64]:
    """The graph's own output for some events."""
    with tempfile.TemporaryDirectory(prefix="mlaas4hep-") as folder, quiet():
        path = Path(folder) / MODEL_FILE
        _save(model, path)
        try:
            return OnnxModel(path).predict(events.values, events.mask)
        except Exception as error:
            raise Inexpressible(f"ONNX Runtime cannot run its graph: {error}") from error
