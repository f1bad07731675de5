"""Keras models and torch modules as ONNX graphs.

A graph has the input `values`, and `mask` for a model that takes it, both float32 of shape (n, idim), and one output:
what the network itself gives. Keras is exported on TensorFlow by tf2onnx and on PyTorch by torch's own exporter; a
model of JAX, and one that the first cannot express, is saved and exported by another process on another backend.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
from onnx import helper

from mlaas4hep.training.onnx_model import MASK, VALUES

OPSET = 18
_EXPORTERS = {"tensorflow": "tf2onnx", "torch": "onnxscript"}
_LOGGERS = ("torch.onnx", "tf2onnx", "onnxscript", "onnx_ir")
_HALF = 0.5
_EXAMPLES = 3  # events to trace with: 0 and 1 would be taken for constants


class Inexpressible(Exception):  # noqa: N818 (an answer rather than an error)
    """A model that no exporter can write; the text says why."""


def keras_graph(model: Any, idim: int, code: Path | None = None) -> onnx.ModelProto:
    """A Keras model as a graph.

    Args:
        model: the model; an input named `mask` makes the graph take it.
        idim: width of the input vector.
        code: the user's file, which another process runs first so that layers of the user are known there.

    Raises Inexpressible when no backend with an exporter can write it.
    """
    import keras

    present = keras.backend.backend()
    reasons = []
    if present in _EXPORTERS:
        try:
            return _keras_here(model, idim)
        except Exception as error:
            reasons.append(f"{present}: {reason(error)}")
    for other, exporter in _EXPORTERS.items():
        if other != present and all(importlib.util.find_spec(name) for name in (other, exporter)):
            try:
                return _keras_elsewhere(model, idim, other, code)
            except Inexpressible as error:
                reasons.append(f"{other}: {error}")
    raise Inexpressible("; ".join(reasons) or "neither TensorFlow with tf2onnx nor PyTorch with onnxscript is there")


def torch_graph(module: Any, idim: int, takes_mask: bool) -> onnx.ModelProto:
    """A torch module as a graph; it is called with the values, and with `mask=` (bool) where it takes it.

    Raises Inexpressible when torch cannot export it.
    """
    import torch

    class Called(torch.nn.Module):
        """The module as the exporter calls it: by place, and never with a keyword."""

        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, *inputs: Any) -> Any:
            return self.module(inputs[0], mask=inputs[1] > _HALF) if takes_mask else self.module(inputs[0])

    try:
        return _traced(Called(), idim, takes_mask)
    except Exception as error:
        raise Inexpressible(reason(error)) from error


def reason(error: BaseException) -> str:
    """The first line of an exporter's complaint, without its colours."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0].partition("\x1b")[0].strip().rstrip(".:") if lines else ""
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporters from telling users what only their authors can mend."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _keras_here(model: Any, idim: int) -> onnx.ModelProto:
    """Export on the backend that Keras runs on."""
    import keras

    tensors = getattr(model, "inputs", None) or []
    types = {str(tensor.name): keras.backend.standardize_dtype(tensor.dtype) for tensor in tensors}
    takes_mask = len(types) == 2

    def called(*inputs: Any) -> Any:
        if not takes_mask:
            return model(inputs[0], training=False)
        fed = [keras.ops.cast(inputs[1], types[MASK]) if name == MASK else inputs[0] for name in types]
        return model(fed, training=False)

    if keras.backend.backend() == "tensorflow":
        return _frozen(called, idim, takes_mask)
    import torch

    class Called(torch.nn.Module):
        """The Keras model, which is a module as well, called as for a prediction."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *inputs: Any) -> Any:
            return called(*inputs)

    return _traced(Called(), idim, takes_mask)


def _frozen(called: Any, idim: int, takes_mask: bool) -> onnx.ModelProto:
    """A function of TensorFlow with its weights as constants, written by tf2onnx."""
    import tensorflow as tf

    names = [VALUES, MASK] if takes_mask else [VALUES]
    with quiet():
        import tf2onnx

        signature = [tf.TensorSpec((None, idim), tf.float32, name=name) for name in names]
        function = tf.function(called, input_signature=signature, autograph=False)
        model, _ = tf2onnx.convert.from_function(function, input_signature=signature, opset=OPSET)
    _write_erfc(model)
    _check_operators(model)
    return model


def _traced(module: Any, idim: int, takes_mask: bool) -> onnx.ModelProto:
    """A torch module in evaluation mode, written by torch's exporter with any number of events."""
    import torch

    names = [VALUES, MASK] if takes_mask else [VALUES]
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    examples = tuple(torch.zeros((_EXAMPLES, idim), dtype=torch.float32, device=device) for _ in names)
    training = module.training
    module.eval()
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                module,
                examples,
                dynamo=True,
                opset_version=OPSET,
                input_names=names,
                dynamic_shapes=(tuple({0: torch.export.Dim("n")} for _ in names),),
                external_data=False,
                verbose=False,
            )
    finally:
        module.train(training)
    if program is None:
        raise Inexpressible("torch gave no program")
    model: onnx.ModelProto = program.model_proto
    return model


def _write_erfc(model: onnx.ModelProto) -> None:
    """erfc(x) = 1 - erf(x): TensorFlow's gelu uses the first, ONNX has only the second."""
    nodes = []
    for node in model.graph.node:
        if node.op_type != "Erfc":
            nodes.append(node)
            continue
        one, inner = f"{node.output[0]}/one", f"{node.output[0]}/erf"
        nodes += [
            helper.make_node("Constant", [], [one], value=helper.make_tensor(one, onnx.TensorProto.FLOAT, [], [1.0])),
            helper.make_node("Erf", [node.input[0]], [inner]),
            helper.make_node("Sub", [one, inner], [node.output[0]]),
        ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _check_operators(model: onnx.ModelProto) -> None:
    """tf2onnx leaves operators as they are that it does not know."""
    for node in model.graph.node:
        if node.domain in ("", "ai.onnx") and not onnx.defs.has(node.op_type, ""):
            raise Inexpressible(f"ONNX has no operator {node.op_type}")


def _keras_elsewhere(model: Any, idim: int, backend: str, code: Path | None) -> onnx.ModelProto:
    """Save the model and export it in a process of its own, on another backend."""
    with tempfile.TemporaryDirectory(prefix="mlaas4hep-") as name:
        saved, written = Path(name) / "model.keras", Path(name) / "model.onnx"
        try:
            with quiet():
                model.save(saved)
        except Exception as error:
            raise Inexpressible(reason(error)) from error
        words = [sys.executable, "-m", __name__, str(saved), str(written), str(idim), str(code or "")]
        found = subprocess.run(
            words,
            env=os.environ | {"KERAS_BACKEND": backend, "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
            check=False,
        )
        if found.returncode or not written.is_file():
            lines = [line for line in found.stderr.splitlines() if line.strip()]
            raise Inexpressible(lines[-1].strip()[:200] if lines else f"the process ended with {found.returncode}")
        return onnx.load(written)


def _main(saved: str, written: str, idim: str, code: str) -> None:
    """What the other process does."""
    import keras

    if code:
        from mlaas4hep.training.user_model import load_user_model

        load_user_model(Path(code))
    model = keras.models.load_model(saved, compile=False)
    onnx.save(_keras_here(model, int(idim)), written)


if __name__ == "__main__":
    _main(*sys.argv[1:])
