"""The protobuf messages of inference.proto and tfaas.proto, made from their compiled form.

They live in a pool of their own, so that a client of Triton in the same process, whose messages have the same names,
does not get into their way. `protocols.pb` is written, in this folder, by

    python -m grpc_tools.protoc -I . --descriptor_set_out=protocols.pb inference.proto tfaas.proto
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorSet  # type: ignore[import-untyped]
from google.protobuf.descriptor_pool import DescriptorPool  # type: ignore[import-untyped]
from google.protobuf.message_factory import GetMessageClass  # type: ignore[import-untyped]

COMPILED = Path(__file__).with_name("protocols.pb")
SERVICE = "inference.GRPCInferenceService"

_pool = DescriptorPool()
for _file in FileDescriptorSet.FromString(COMPILED.read_bytes()).file:
    _pool.Add(_file)


def message(name: str) -> Any:
    """The class of a message, by its full name."""
    return GetMessageClass(_pool.FindMessageTypeByName(name))


def methods() -> dict[str, tuple[Any, Any]]:
    """The classes of request and answer of each method of the inference service."""
    found = _pool.FindServiceByName(SERVICE).methods
    return {method.name: (GetMessageClass(method.input_type), GetMessageClass(method.output_type)) for method in found}
