"""What is checked of a model folder before anything of it is loaded.

A model folder is a bundle (see `mlaas4hep.training.bundle`), or an ONNX model that was uploaded:

============  =================================================================================
model.onnx    the network
upload.json   format, SHA-256 of model.onnx, `params` (those of TFaaS) and `labels`
============  =================================================================================

An ONNX model has to be self-contained and to use the operators of ONNX itself: no weights in other files, no operators
from libraries.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlaas4hep.errors import MlaasError
from mlaas4hep.training.bundle import MANIFEST, Bundle, read_bundle
from mlaas4hep.training.onnx_model import MODEL_FILE

UPLOAD = "upload.json"
UPLOAD_FORMAT = 1
_DOMAINS = ("", "ai.onnx", "ai.onnx.ml")
_OPEN_ENDED = ("Loop", "Scan")
_DEEPEST = 50
_REMEDY = "Export the model again with its weights inside and with standard operators."


@dataclass(frozen=True)
class CheckedModel:
    """A model folder that may be loaded.

    Attributes:
        network: the ONNX file, which is not there for a bundle that ONNX cannot express.
        bytes: its size.
        bundle: the bundle, None for an uploaded network.
        params: what an upload said of itself.
        labels: names of the outputs of an uploaded network.
        open_ended: whether the time of a prediction depends on the values (loops).
        takes_mask: whether a bundle that ONNX cannot express takes a mask.
    """

    network: Path
    bytes: int
    bundle: Bundle | None
    params: dict[str, Any]
    labels: tuple[str, ...]
    open_ended: bool
    takes_mask: bool = False


def check_model(folder: Path, largest: int) -> CheckedModel:
    """Check a model folder.

    Args:
        folder: where it is.
        largest: bytes that the network may have.

    Raises MlaasError that says what is wrong.
    """
    network = folder / MODEL_FILE
    if (folder / MANIFEST).is_file():
        bundle = read_bundle(folder)
        if bundle.runtime != "onnx":
            takes_mask = bool(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["takes_mask"])
            return CheckedModel(network, 0, bundle, {}, bundle.classes, False, takes_mask)
        size = _size(network, largest)
        return CheckedModel(network, size, bundle, {}, bundle.classes, check_network(network))
    size = _size(network, largest)
    params, labels = _read_upload(folder)
    return CheckedModel(network, size, None, params, labels, check_network(network))


def write_upload(folder: Path, params: dict[str, Any], labels: tuple[str, ...]) -> None:
    """Make a folder with a model.onnx a model folder."""
    data = {"format": UPLOAD_FORMAT, "sha256": _digest(folder / MODEL_FILE), "params": params, "labels": list(labels)}
    (folder / UPLOAD).write_text(json.dumps(data), encoding="utf-8")


def _read_upload(folder: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    try:
        data = json.loads((folder / UPLOAD).read_text(encoding="utf-8"))
        digest, params, labels = data["sha256"], dict(data["params"]), tuple(map(str, data["labels"]))
        if data["format"] != UPLOAD_FORMAT:
            raise MlaasError("The model folder was written by another version of mlaas4hep.", "Upload it again.")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MlaasError(f"The model folder is damaged ({type(error).__name__}).", "Publish it again.") from error
    if _digest(folder / MODEL_FILE) != digest:
        raise MlaasError("The network was changed after it was published.", "Publish it again.")
    return params, labels


def check_network(path: Path) -> bool:
    """Check an ONNX file; returns whether it has loops. Raises MlaasError for what may not be loaded."""
    import onnx

    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:
        raise MlaasError("The network is no ONNX model.", _REMEDY) from error
    open_ended = False
    for graph in [model.graph, *model.functions]:
        for item in _walk(graph, 0):
            if isinstance(item, onnx.NodeProto):
                if item.domain not in _DOMAINS and not _is_function(model, item):
                    raise MlaasError(f"The network uses {item.op_type} of {item.domain!r}.", _REMEDY)
                open_ended = open_ended or item.op_type in _OPEN_ENDED
            elif item.data_location == onnx.TensorProto.EXTERNAL or item.external_data:
                raise MlaasError(f"The weights {item.name} are in another file.", _REMEDY)
    return open_ended


def _is_function(model: Any, node: Any) -> bool:
    """Whether an operator is defined in the model itself."""
    return any((node.domain, node.op_type) == (function.domain, function.name) for function in model.functions)


def _walk(graph: Any, depth: int) -> Iterator[Any]:
    """All nodes and tensors of a graph or function, those of inner graphs too."""
    if depth > _DEEPEST:
        raise MlaasError(f"The network has graphs within graphs, more than {_DEEPEST} deep.", _REMEDY)
    yield from getattr(graph, "initializer", ())
    for sparse in getattr(graph, "sparse_initializer", ()):
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for sparse in [*([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else ())]:
                yield from (sparse.values, sparse.indices)
            for inner in [*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs]:
                yield from _walk(inner, depth + 1)


def _size(path: Path, largest: int) -> int:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise MlaasError(f"The model folder lacks {MODEL_FILE}.", "Publish it again.") from error
    if size > largest:
        raise MlaasError(f"The network has {size} bytes, more than the {largest} that are served.", "Make it smaller.")
    return size


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
