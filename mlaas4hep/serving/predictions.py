"""Predictions: from the bytes of a request to those of its answer, whichever protocol brought them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import orjson
from numpy.typing import NDArray

from mlaas4hep.data.blocks import Block
from mlaas4hep.data.packing import Inputs
from mlaas4hep.errors import UsageError
from mlaas4hep.service.identity import Authenticator, NotPermittedError, Role, User
from mlaas4hep.serving import metrics
from mlaas4hep.serving.answers import Answer, failed, ok
from mlaas4hep.serving.inference import events_of, is_raw, output_names, planned, planned_events
from mlaas4hep.serving.native import Processes
from mlaas4hep.serving.repository import Repository, UnknownModelError
from mlaas4hep.serving.runtime import LoadedModel, Runtime
from mlaas4hep.serving.settings import ServingSettings
from mlaas4hep.serving.tensors import JSON_BYTES, InferenceRequest, decode, encode, wanted
from mlaas4hep.training.metrics import decide

Outputs = dict[str, NDArray[Any]]


class Plan(msgspec.Struct, frozen=True):
    """A prediction that is about to be made.

    Attributes:
        protocol: which one it came by.
        model: which model.
        rows: of how many events.
        work: computes the outputs.
        tell: makes them the answer.
    """

    protocol: str
    model: LoadedModel
    rows: int
    work: Callable[[], Outputs]
    tell: Callable[[Outputs], Answer]


Planner = Callable[[LoadedModel], Plan]


class Predictions:
    """The models of a repository, and who may predict with them.

    Args:
        folder: the repository.
        settings: bounds.
        authenticator: finds out who asks.
        processes: for models that this process must not load; without them these are refused.
    """

    def __init__(
        self,
        folder: Path,
        settings: ServingSettings,
        authenticator: Authenticator,
        processes: Processes | None = None,
    ) -> None:
        self.settings = settings
        self.repository = Repository(folder)
        self._processes = processes
        self.runtime = Runtime(self.repository, settings, processes.load if processes else LoadedModel)
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

    async def answer(self, user: User, name: str, version: str, plan: Planner) -> Answer:
        """The answer of a model to what `plan` makes of a request."""
        return await self.done(plan(await self.model(user, name, version)))

    async def done(self, plan: Plan) -> Answer:
        """Carry out a plan, at once where that is quick, else in a thread."""
        return plan.tell(await self.outputs(plan.protocol, plan.model, plan.rows, plan.work))

    async def outputs(self, protocol: str, model: LoadedModel, rows: int, work: Callable[[], Outputs]) -> Outputs:
        """Do the work of a plan."""
        outputs = work() if model.quick(rows) else await self.runtime.in_thread(work, threads=model.threads)
        _counted(protocol, rows)
        return outputs

    def at_once(self, user: User, name: str, plan: Planner) -> Answer | None:
        """The same without waiting for anything; None where something has to be waited for."""
        try:
            model = self.runtime.at_once(self.repository.find(user, name))
            if model is None:
                return None
            chosen = plan(model)
            if not model.quick(chosen.rows):
                return None
            outputs = chosen.work()
            _counted(chosen.protocol, chosen.rows)
            return chosen.tell(outputs)
        except Exception as error:
            return failed(error)

    def inference(self, name: str, body: bytes | bytearray, header_length: int | None) -> Planner:
        """The plan for a request of the Open Inference Protocol."""

        def plan(model: LoadedModel) -> Plan:
            request = decode(body, header_length)
            rows, work = planned(model, request.tensors, self.settings.events)
            raw = is_raw(model, request.tensors)
            names = wanted(output_names(model, raw), request)
            return Plan("http", model, rows, work, lambda outputs: _tensors(request, name, model, names, outputs))

        return plan

    def json_events(self, body: bytes | bytearray) -> Planner:
        """The plan for raw events in JSON."""

        def plan(model: LoadedModel) -> Plan:
            if len(body) > JSON_BYTES:
                raise UsageError(
                    f"The JSON has {len(body)} bytes, more than {JSON_BYTES}.", "Send Parquet, or fewer events."
                )
            try:
                data = orjson.loads(body)
            except orjson.JSONDecodeError as error:
                raise UsageError(f"The body is no JSON: {error}.") from error
            return self.events(model, events_of(model).from_json(data))

        return plan

    def events(self, model: LoadedModel, events: Block | Inputs) -> Plan:
        """The plan for raw events: probabilities and decision of each, or the value of a regression."""
        rows, work = planned_events(model, events, self.settings.events)
        return Plan("events", model, rows, work, lambda outputs: _told(model, outputs))

    def close(self) -> None:
        """End what runs beside the event loop."""
        self.runtime.close()
        if self._processes:
            self._processes.close()


def _tensors(request: InferenceRequest, name: str, model: LoadedModel, names: list[str], outputs: Outputs) -> Answer:
    body, length = encode(request, name, model.version_text, {output: outputs[output] for output in names})
    return Answer(200, body) if length is None else Answer(200, body, "application/octet-stream", length)


_predicted = {name: metrics.REQUESTS.labels(name) for name in ("http", "events", "grpc", "tfaas")}


def _counted(protocol: str, rows: int) -> None:
    _predicted[protocol].inc()
    metrics.ROWS.inc(rows)


def _told(model: LoadedModel, outputs: Outputs) -> Answer:
    return ok({"model_version": model.version_text, "predictions": _events(model, outputs)})


def _events(model: LoadedModel, outputs: Outputs) -> list[dict[str, Any]]:
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
