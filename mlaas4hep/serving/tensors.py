"""Requests and answers of the Open Inference Protocol V2 over HTTP: JSON, and JSON with binary tensors behind it.

The binary form is that of Triton's extension `binary_tensor_data`: the header `Inference-Header-Content-Length` says
where the JSON ends; each tensor with `binary_data_size` follows in its order, little-endian and row-major.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import orjson
from numpy.typing import NDArray

from mlaas4hep.errors import UsageError
from mlaas4hep.names import did_you_mean

DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(form)
    for name, form in {
        "BOOL": "?",
        "INT8": "<i1",
        "INT16": "<i2",
        "INT32": "<i4",
        "INT64": "<i8",
        "UINT8": "<u1",
        "UINT16": "<u2",
        "UINT32": "<u4",
        "UINT64": "<u8",
        "FP16": "<f2",
        "FP32": "<f4",
        "FP64": "<f8",
    }.items()
}
DATATYPES = {dtype: name for name, dtype in DTYPES.items()}
JSON_BYTES = 8 * 2**20  # while JSON is read nobody else is answered
HEADER_LENGTH = "inference-header-content-length"
_MOST_TENSORS = 4096
_MOST_DIMENSIONS = 8
_FEW = 4
_FLOATS = frozenset({float})
_UNSUPPORTED = ("classification", "shared_memory_region")

_Parameters = dict[str, Any]


class _Input(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    parameters: _Parameters = {}
    data: list[Any] | None = None


class _Output(msgspec.Struct):
    name: str
    parameters: _Parameters = {}


class _Request(msgspec.Struct):
    inputs: list[_Input]
    outputs: list[_Output] = []
    id: str = ""
    parameters: _Parameters = {}


_decoder = msgspec.json.Decoder(_Request)


class InferenceRequest(msgspec.Struct, frozen=True):
    """What is asked for.

    Attributes:
        id: what the client calls the request.
        tensors: the inputs by name.
        outputs: names of the outputs wanted, each with whether it is to be binary; empty for all of them.
        binary: whether outputs that are not named are to be binary.
    """

    id: str
    tensors: dict[str, NDArray[Any]]
    outputs: dict[str, bool]
    binary: bool


def decode(body: bytes | bytearray, header_length: int | None) -> InferenceRequest:
    """Read a request; `header_length` is the size of its JSON where binary tensors follow.

    Raises UsageError for whatever is not of the protocol.
    """
    end = len(body) if header_length is None else header_length
    if not 0 <= end <= len(body):
        raise UsageError(f"Inference-Header-Content-Length is {end}, but the body has {len(body)} bytes.")
    if end > JSON_BYTES:
        raise UsageError(f"The JSON has {end} bytes, more than {JSON_BYTES}.", "Send binary tensors, or fewer events.")
    try:
        request = _decoder.decode(body if end == len(body) else memoryview(body)[:end])
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise UsageError(f"The body is no inference request: {error}.") from error
    if len(request.inputs) > _MOST_TENSORS:
        raise UsageError(f"There are {len(request.inputs)} inputs, more than {_MOST_TENSORS}.")
    with np.errstate(over="ignore", invalid="ignore"):
        tensors = _columns(request.inputs)
        if tensors is None:
            tensors = {}
            for item in request.inputs:
                if item.name in tensors:
                    raise UsageError(f"The input {item.name} is there twice.")
                array, end = _array(item, body, end)
                tensors[item.name] = array
    if end != len(body):
        raise UsageError(f"{len(body) - end} bytes follow after the last tensor.", "Correct binary_data_size.")
    outputs = {}
    for output in request.outputs:
        if refused := [name for name in _UNSUPPORTED if name in output.parameters]:
            raise UsageError(f"The output {output.name} asks for {refused[0]}, which there is not.")
        outputs[output.name] = bool(output.parameters.get("binary_data", False))
    return InferenceRequest(request.id, tensors, outputs, bool(request.parameters.get("binary_data_output", False)))


def _columns(inputs: Sequence[_Input]) -> dict[str, NDArray[Any]] | None:
    """Inputs that are columns of the same events in JSON, which are read together; None where they are not."""
    if len(inputs) < _FEW:
        return None
    datatype, shape = inputs[0].datatype, inputs[0].shape
    if datatype not in ("FP32", "FP64") or len(shape) != 1:
        return None
    values = []
    for item in inputs:
        if item.data is None or item.parameters or item.datatype != datatype or item.shape != shape:
            return None
        values.append(item.data)
    if not _FLOATS.issuperset(map(type, itertools.chain.from_iterable(values))):
        return None
    try:
        found = np.array(values, dtype=DTYPES[datatype])
    except ValueError:
        return None
    tensors = dict(zip([item.name for item in inputs], found, strict=True))
    return tensors if found.shape == (len(tensors), *shape) else None


def _array(item: _Input, body: bytes | bytearray, start: int) -> tuple[NDArray[Any], int]:
    """The values of an input, and where the next binary one begins."""
    dtype = dtype_of(item.datatype, item.name)
    if len(item.shape) > _MOST_DIMENSIONS or (item.shape and min(item.shape) < 0):
        raise UsageError(f"The input {item.name} has the shape {item.shape}.")
    if "shared_memory_region" in item.parameters:
        raise UsageError(f"The input {item.name} is in shared memory, which is not read.")
    count = math.prod(item.shape)
    size = item.parameters.get("binary_data_size")
    if size is None:
        if item.data is None:
            raise UsageError(f"The input {item.name} has no data.")
        return shaped(_numbers(item.data, dtype, item.name), item.shape, item.name), start
    if item.data is not None or size != count * dtype.itemsize or start + count * dtype.itemsize > len(body):
        raise UsageError(
            f"The input {item.name} of {count} times {item.datatype} has {size} bytes of {len(body) - start}."
        )
    array = np.frombuffer(body, dtype=dtype, count=count, offset=start)
    return (array if array.flags.aligned else array.copy()).reshape(item.shape), start + size


def dtype_of(datatype: str, name: str) -> np.dtype[Any]:
    """NumPy's type of a datatype of the protocol; raises UsageError for one that models do not take."""
    dtype = DTYPES.get(datatype)
    if dtype is None:
        raise UsageError(
            f"The input {name} has the datatype {datatype[:20]!r}.", did_you_mean(datatype, list(DTYPES), "datatypes")
        )
    return dtype


def shaped(array: NDArray[Any], shape: Sequence[int], name: str) -> NDArray[Any]:
    """An array of numbers in a shape; raises UsageError where it has another number of them."""
    if array.size != math.prod(shape):
        raise UsageError(f"The input {name} has {array.size} values for the shape {list(shape)}.")
    return array.reshape(shape)


def _numbers(data: list[Any], dtype: np.dtype[Any], name: str) -> NDArray[Any]:
    """Numbers of JSON; null is NaN where the type has it."""
    if dtype.kind == "f" and _FLOATS.issuperset(map(type, data)):
        return np.array(data, dtype=dtype)
    try:
        found = np.array(data)
        if found.dtype.kind == "O" and dtype.kind == "f":
            if not all(value is None or isinstance(value, int | float) for value in found.ravel()):
                raise UsageError(f"The input {name} has values that are no numbers.")
            found = found.astype(np.float64)
    except (ValueError, OverflowError) as error:
        raise UsageError(f"The input {name} has lists of different lengths or no numbers.") from error
    if not found.size:
        return np.empty(found.shape, dtype=dtype)
    if found.dtype.kind not in "biuf":
        raise UsageError(f"The input {name} has values that are no numbers.")
    return converted(found, dtype, name)


def converted(array: NDArray[Any], dtype: np.dtype[Any], name: str) -> NDArray[Any]:
    """Numbers of another type; raises UsageError where an integer type cannot hold them."""
    if array.dtype == dtype:
        return array
    with np.errstate(over="ignore", invalid="ignore"):
        result = array.astype(dtype)
        if dtype.kind != "f" and not np.array_equal(result, array):
            raise UsageError(f"The input {name} has values that {DATATYPES[dtype]} cannot hold.")
    return result


def encode(
    request: InferenceRequest, model: str, version: str, outputs: Mapping[str, NDArray[Any]]
) -> tuple[bytes, int | None]:
    """The body of an answer, and the size of its JSON where binary tensors follow."""
    described: list[dict[str, Any]] = []
    binary: list[bytes] = []
    for name, array in outputs.items():
        entry: dict[str, Any] = {"name": name, "datatype": DATATYPES[array.dtype], "shape": array.shape}
        if request.outputs.get(name, request.binary):
            content = array.tobytes()
            entry["parameters"] = {"binary_data_size": len(content)}
            binary.append(content)
        else:
            entry["data"] = np.ascontiguousarray(array, np.float32 if array.dtype == np.float16 else None).ravel()
        described.append(entry)
    answer: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": described}
    if request.id:
        answer["id"] = request.id
    header = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
    return (b"".join([header, *binary]), len(header)) if binary else (header, None)


def wanted(names: Sequence[str], request: InferenceRequest) -> list[str]:
    """The outputs to give, of those that there are. Raises UsageError for others, with near misses."""
    for name in request.outputs:
        if name not in names:
            raise UsageError(f"There is no output {name[:100]}.", did_you_mean(name, list(names), "outputs"))
    return list(request.outputs) or list(names)
