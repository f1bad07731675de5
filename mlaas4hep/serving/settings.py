"""Settings of the inference server: the table `serving` of the service's TOML file."""

from __future__ import annotations

import os

from pydantic import BaseModel, ConfigDict, Field


class ServingSettings(BaseModel):
    """How models are served, and the bounds of what a request may ask for.

    Attributes:
        host: address to listen at.
        port: of HTTP.
        grpc_port: of gRPC; 0 for none.
        workers: processes that answer requests.
        memory: bytes of loaded models that each process holds; the ones used longest ago make room.
        model_bytes: largest size of an ONNX model.
        body: largest size of a request in bytes.
        upload: largest size of an uploaded model in bytes, packed as well as unpacked.
        stored: bytes of models that a user may have, from which on no upload is taken.
        events: most events or rows of a request.
        seconds: longest time that one prediction may take.
        native: processes of models of their own frameworks that each process has at most.
        native_memory: bytes that each of these may use.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    port: int = Field(8081, ge=1, le=65535)
    grpc_port: int = Field(0, ge=0, le=65535)
    workers: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1)
    memory: int = Field(2**30, gt=0)
    model_bytes: int = Field(512 * 2**20, gt=0)
    body: int = Field(32 * 2**20, gt=0)
    upload: int = Field(1024 * 2**20, gt=0)
    stored: int = Field(20 * 2**30, gt=0)
    events: int = Field(1_000_000, gt=0)
    seconds: float = Field(30.0, gt=0)
    native: int = Field(2, ge=1)
    native_memory: int = Field(2 * 2**30, ge=256 * 2**20)
