"""Predictions: from the bytes of a request to those of its answer, whichever protocol brought them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from mlaas4hep.data.blocks import Block
from mlaas4hep.errors import UsageError
from mlaas4hep.service.identity import Authenticator, NotPermittedError, Role, User
from mlaas4hep.serving import metrics
from mlaas4hep.serving.answers import Answer, failed, ok
from mlaas4hep.serving.events import block_of_json
from mlaas4hep.serving.inference import is_raw, output_names, planned, planned_events
from mlaas4hep.serving.repository import Repository, UnknownModelError
from mlaas4hep.serving.runtime import LoadedModel, Runtime
from mlaas4hep.serving.settings import ServingSettings
from mlaas4hep.serving.tensors import JSON_BYTES, InferenceRequest, decode, encode, wanted
from mlaas4hep.training.metrics import decide

Outputs = dict[str, NDArray[Any]]
Work = Callable[[], Outputs]


class Predictions:
    """The models of a repository, and who may predict with them.

    Args:
        folder: the repository.
        settings: bounds.
        authenticator: finds out who asks.
    """

    def __init__(self, folder: Path, settings: ServingSettings, authenticator: Authenticator) -> None:
        self.settings = settings
        self.repository = Repository(folder)
        self.runtime = Runtime(self.repository, settings)
        self._authenticator = authenticator

    async def user(self, authorization: str, role: Role | None = Role.SERVE) -> User:
        """Who asks. Raises AuthenticationError, and NotPermittedError where the role is missing."""
        user = await self._authenticator.authenticate(authorization)
        if role is not None and role not in user.roles:
            raise NotPermittedError(f"This needs the role {role}, which the policy does not give you.")
        return user

    async def model(self, user: User, name: str, version: str = "") -> LoadedModel:
        """The model of a name and version, "" for the version that is preferred."""
        facts = self.repository.find(user, name)
        number = None
        if version:
            if not version.isascii() or not version.isdigit() or len(version) > 9:
                raise UnknownModelError(name, version[:20])
            number = int(version)
        return await self.runtime.model(facts, number)

    async def run(self, model: LoadedModel, rows: int, work: Work, protocol: str) -> Outputs:
        """Do a piece of work, where it is short at once, else in a thread."""
        started = time.perf_counter()
        outputs = work() if model.quick(rows) else await self.runtime.in_thread(work)
        _counted(protocol, rows, time.perf_counter() - started)
        return outputs

    async def infer(
        self, user: User, name: str, version: str, body: bytes | bytearray, header_length: int | None
    ) -> Answer:
        """The answer to a request of the Open Inference Protocol."""
        model = await self.model(user, name, version)
        request = decode(body, header_length)
        rows, work = planned(model, request.tensors, self.settings.events)
        names = wanted(output_names(model, is_raw(model, request.tensors)), request)
        return _answer(request, name, model, names, await self.run(model, rows, work, "http"))

    def infer_at_once(self, user: User, name: str, body: bytes | bytearray, header_length: int | None) -> Answer | None:
        """The same without waiting for anything; None where something has to be waited for."""
        try:
            facts = self.repository.find(user, name)
            model = self.runtime.at_once(facts)
            if model is None:
                return None
            request = decode(body, header_length)
            rows, work = planned(model, request.tensors, self.settings.events)
            if not model.quick(rows):
                return None
            names = wanted(output_names(model, is_raw(model, request.tensors)), request)
            started = time.perf_counter()
            outputs = work()
            _counted("http", rows, time.perf_counter() - started)
            return _answer(request, name, model, names, outputs)
        except Exception as error:
            metrics.REQUESTS.labels("http", "refused").inc()
            return failed(error)

    async def json_events(self, user: User, name: str, version: str, body: bytes | bytearray) -> Answer:
        """The answer to raw events in JSON: probabilities and decision of each, or the value of a regression."""
        model = await self.model(user, name, version)
        if len(body) > JSON_BYTES:
            raise UsageError(
                f"The JSON has {len(body)} bytes, more than {JSON_BYTES}.", "Send Parquet, or fewer events."
            )
        try:
            data = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise UsageError(f"The body is no JSON: {error}.") from error
        if model.bundle is None:
            raise UsageError("The model takes no raw events.", "Send its own inputs to infer.")
        return await self.events(model, block_of_json(model.bundle.schema, data))

    async def events(self, model: LoadedModel, block: Block) -> Answer:
        """The answer to a block of raw events."""
        rows, work = planned_events(model, block, self.settings.events)
        outputs = await self.run(model, rows, work, "events")
        return ok({"model_version": model.version_text, "predictions": _told(model, outputs)})

    def close(self) -> None:
        """End what runs beside the event loop."""
        self.runtime.close()


def _answer(request: InferenceRequest, name: str, model: LoadedModel, names: list[str], outputs: Outputs) -> Answer:
    chosen = {output: np.ascontiguousarray(outputs[output]) for output in names}
    body, length = encode(request, name, model.version_text, chosen)
    return Answer(200, body) if length is None else Answer(200, body, "application/octet-stream", length)


_predicted = {name: metrics.REQUESTS.labels(name, "predicted") for name in ("http", "events", "grpc", "tfaas")}


def _counted(protocol: str, rows: int, seconds: float) -> None:
    _predicted[protocol].inc()
    metrics.ROWS.inc(rows)
    metrics.SECONDS.inc(seconds)


def _told(model: LoadedModel, outputs: Outputs) -> list[dict[str, Any]]:
    """What `mlaas4hep predict` tells of each event."""
    values = outputs["predictions"].astype(np.float64)
    kept = outputs.get("kept")
    classes = model.labels
    told: list[dict[str, Any]]
    if not classes:
        told = [{"prediction": value} for value in values[:, 0].tolist()]
    else:
        chosen = decide(values, model.bundle.threshold if model.bundle else 0.5).tolist()
        told = [
            {"probabilities": dict(zip(classes, row, strict=True)), "label": classes[decision]}
            for row, decision in zip(values.tolist(), chosen, strict=True)
        ]
    if kept is None:
        return told
    gone: dict[str, Any] = {"probabilities": None, "label": None} if classes else {"prediction": None}
    return [entry if there else gone | {"cut": True} for entry, there in zip(told, kept.tolist(), strict=True)]
