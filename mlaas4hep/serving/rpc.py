"""The Open Inference Protocol V2 over gRPC, for the same models and users as over HTTP.

The token is in the metadata entry `authorization`. Tensors come and go as raw contents, or as typed ones.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

import mlaas4hep
from mlaas4hep.errors import UsageError
from mlaas4hep.serving.answers import failed, status_of
from mlaas4hep.serving.inference import is_raw, output_names, planned
from mlaas4hep.serving.messages import SERVICE, message, methods
from mlaas4hep.serving.predictions import Predictions
from mlaas4hep.serving.runtime import ModelFailedError
from mlaas4hep.serving.tensors import DATATYPES, InferenceRequest, converted, dtype_of, shaped, wanted
from mlaas4hep.serving.v2 import EXTENSIONS, NAME, model_facts

_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
# which field of typed contents has the values of a type (KServe's protocol)
_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}
_CALLS = 1000  # at once; more are refused
Handler = Callable[[Any, str], Awaitable[Any]]


async def start(predictions: Predictions, host: str, port: int) -> Any:
    """Listen for gRPC beside the event loop's other work; returns the server, to be stopped.

    Processes of one port share it. Raises RuntimeError when the port is taken by others.
    """
    largest = predictions.settings.body
    options = [("grpc.max_receive_message_length", largest), ("grpc.max_send_message_length", -1)]
    server = grpc.aio.server(options=[*options, ("grpc.so_reuseport", 1)], maximum_concurrent_rpcs=_CALLS)
    service = InferenceService(predictions)
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(
            _answered(getattr(service, name)),
            request_deserializer=asked.FromString,
            response_serializer=answer.SerializeToString,
        )
        for name, (asked, answer) in methods().items()
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_insecure_port(f"{host}:{port}")
    await server.start()
    return server


def _answered(handler: Handler) -> Callable[[Any, Any], Awaitable[Any]]:
    """A handler whose failures become codes of gRPC."""

    async def answer(request: Any, context: Any) -> Any:
        metadata = {str(key).lower(): value for key, value in context.invocation_metadata()}
        try:
            return await handler(request, str(metadata.get("authorization", "")))
        except Exception as error:
            return await context.abort(_CODES.get(status_of(error), grpc.StatusCode.INTERNAL), failed(error).text)

    return answer


class InferenceService:
    """The methods of the service, by the protocol's names."""

    def __init__(self, predictions: Predictions) -> None:
        self._predictions = predictions

    async def ServerLive(self, request: Any, authorization: str) -> Any:  # noqa: N802
        """The process answers."""
        return message("inference.ServerLiveResponse")(live=True)

    async def ServerReady(self, request: Any, authorization: str) -> Any:  # noqa: N802
        """The repository can be read."""
        return message("inference.ServerReadyResponse")(ready=self._predictions.repository.folder.is_dir())

    async def ServerMetadata(self, request: Any, authorization: str) -> Any:  # noqa: N802
        """What this server is."""
        await self._predictions.user(authorization)
        return message("inference.ServerMetadataResponse")(
            name=NAME, version=mlaas4hep.__version__, extensions=EXTENSIONS
        )

    async def ModelReady(self, request: Any, authorization: str) -> Any:  # noqa: N802
        """Whether a model can be used."""
        user = await self._predictions.user(authorization)
        try:
            await self._predictions.model(user, request.name, request.version)
        except ModelFailedError:
            return message("inference.ModelReadyResponse")(ready=False)
        return message("inference.ModelReadyResponse")(ready=True)

    async def ModelMetadata(self, request: Any, authorization: str) -> Any:  # noqa: N802
        """Inputs and outputs of a model."""
        user = await self._predictions.user(authorization)
        facts = model_facts(await self._predictions.model(user, request.name, request.version))
        del facts["parameters"]
        return message("inference.ModelMetadataResponse")(name=request.name, **facts)

    async def ModelInfer(self, request: Any, authorization: str) -> Any:  # noqa: N802
        """Predict."""
        user = await self._predictions.user(authorization)
        model = await self._predictions.model(user, request.model_name, request.model_version)
        asked = _request(request)
        rows, work = planned(model, asked.tensors, self._predictions.settings.events)
        names = wanted(output_names(model, is_raw(model, asked.tensors)), asked)
        outputs = await self._predictions.outputs("grpc", model, rows, work)
        answer = message("inference.ModelInferResponse")(
            model_name=request.model_name, model_version=model.version_text, id=request.id
        )
        for name in names:
            array = np.ascontiguousarray(outputs[name])
            answer.outputs.add(name=name, datatype=DATATYPES[array.dtype], shape=array.shape)
            answer.raw_output_contents.append(array.tobytes())
        return answer


def _request(request: Any) -> InferenceRequest:
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise UsageError(f"There are {len(request.inputs)} inputs, but {len(raw)} raw contents.")
    tensors: dict[str, NDArray[Any]] = {}
    for number, item in enumerate(request.inputs):
        if item.name in tensors:
            raise UsageError(f"The input {item.name} is there twice.")
        if any(size < 0 for size in item.shape):
            raise UsageError(f"The input {item.name} has the shape {list(item.shape)}.")
        dtype = dtype_of(item.datatype, item.name)
        tensors[item.name] = shaped(_content(item, dtype, raw[number] if raw else None), item.shape, item.name)
    return InferenceRequest(request.id, tensors, {output.name: True for output in request.outputs}, True)


def _content(item: Any, dtype: np.dtype[Any], raw: bytes | None) -> NDArray[Any]:
    if raw is not None:
        if len(raw) % dtype.itemsize:
            raise UsageError(f"The input {item.name} has {len(raw)} bytes, no whole number of values.")
        return np.frombuffer(raw, dtype=dtype)
    field = _CONTENTS.get(item.datatype)
    if field is None:
        raise UsageError(f"The input {item.name} needs raw contents for {item.datatype}.")
    found = np.array(getattr(item.contents, field))
    return converted(found, dtype, item.name) if found.size else found.astype(dtype)
