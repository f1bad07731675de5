"""The routes of TFaaS, for its clients' scripts.

`GET /models`, `POST /upload`, `DELETE /delete`, `POST /json`, `/proto`, `/image` (each also below `/predict`) and `GET
/status`; `/netron/` is in `graph`. As there, `values` are normalised and padded by the caller. `keys` names the columns
of the input vector in any order, and may be left out where they are in the model's; null is a missing value. With
`"raw": true` in its JSON a request has an event as it is in the file instead.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from mlaas4hep.errors import UsageError
from mlaas4hep.names import did_you_mean, listing
from mlaas4hep.service.identity import Role
from mlaas4hep.serving.answers import Answer, ok, response
from mlaas4hep.serving.images import image_tensor
from mlaas4hep.serving.inference import events_of, planned, planned_events
from mlaas4hep.serving.messages import message
from mlaas4hep.serving.predictions import Outputs, Plan
from mlaas4hep.serving.repository import UnknownModelError
from mlaas4hep.serving.requests import body_of, bounded_form, predictions_of, user_of
from mlaas4hep.serving.runtime import LoadedModel, TensorSpec
from mlaas4hep.serving.tensors import JSON_BYTES, converted
from mlaas4hep.serving.uploads import published
from mlaas4hep.training.onnx_model import MASK

_MESSAGE_BYTES = 2**20
_IMAGE_BYTES = 16 * 2**20
_BEST = 5  # classes of an image that are told, as in TFaaS
_started = time.time()


def routes() -> Sequence[BaseRoute]:
    """All routes."""
    return [
        Route("/models", models),
        Route("/upload", upload, methods=["POST"]),
        Route("/delete", delete, methods=["DELETE"]),
        Route("/status", status),
        *(Route(f"{base}/json", by_json, methods=["POST"]) for base in ("", "/predict")),
        *(Route(f"{base}/proto", by_protobuf, methods=["POST"]) for base in ("", "/predict")),
        *(Route(f"{base}/image", by_image, methods=["POST"]) for base in ("", "/predict")),
    ]


async def models(request: Request) -> Response:
    """The models that the user may see; null when there is none."""
    user = await user_of(request)
    predictions = predictions_of(request)
    found = []
    for facts in predictions.repository.models(user):
        entry = {
            "name": facts.called(user),
            "model": "model.onnx",
            "labels": "",
            "options": None,
            "inputNode": "values",
            "outputNode": "predictions",
            "description": "",
            "timestamp": "",
        }
        path = predictions.repository.path(facts, facts.preference[0])
        entry["timestamp"] = time.strftime("%Y-%m-%d %H:%M:%S +0000 UTC", time.gmtime(path.stat().st_mtime))
        found.append(entry | uploaded_params(path) | {"name": entry["name"]})
    return response(ok(found or None))


async def upload(request: Request) -> Response:
    """Publish a model: a form with name, params, model and labels, or a .tar.gz with params.json in it."""
    user = await user_of(request, Role.SUBMIT)
    predictions = predictions_of(request)
    name, version = await published(request, predictions, user)
    return response(ok({"name": name, "version": version}))


async def delete(request: Request) -> Response:
    """Remove one of the user's own models."""
    user = await user_of(request, Role.SUBMIT)
    async with bounded_form(request, _MESSAGE_BYTES) as form:
        name = str(form.get("model", ""))
    repository = predictions_of(request).repository
    facts = repository.find(user, name)
    if facts.owner != user.key and Role.ADMINISTER not in user.roles:
        raise UnknownModelError(name)
    repository.delete(facts.namespace, facts.name)
    return Response()


async def status(request: Request) -> Response:
    """How long the server has been there."""
    await user_of(request)
    return response(ok({"Uptime": time.time() - _started}))


async def by_json(request: Request) -> Response:
    """{"keys": [...], "values": [...], "model": NAME} -> [probabilities]."""
    user = await user_of(request)
    body = await body_of(request, JSON_BYTES)
    try:
        data = orjson.loads(body)
        keys, values, name = data.get("keys") or [], data["values"], data["model"]
    except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
        raise UsageError(
            "The body is no JSON object.", 'Write {"keys": [...], "values": [...], "model": ...}.'
        ) from error
    if not (isinstance(keys, list) and isinstance(values, list) and isinstance(name, str)):
        raise UsageError("keys and values are no lists, or model is no text.")
    if not all(isinstance(key, str) for key in keys):
        raise UsageError("keys has something that is no text.", "Give a name for each value.")
    raw = data.get("raw") is True
    _refuse_unequal(keys, values, needed=raw)

    def plan(model: LoadedModel) -> Plan:
        if raw:
            block = events_of(model).from_json([dict(zip(keys, values, strict=True))])
            rows, work = planned_events(model, block, 1)
        else:
            rows, work = planned(model, _vector(model, keys, values), 1)
        return Plan("tfaas", model, rows, work, lambda outputs: ok(_first_row(model, outputs).tolist()))

    return response(await predictions_of(request).answer(user, name, "", plan))


async def by_protobuf(request: Request) -> Response:
    """Row -> Predictions."""
    user = await user_of(request)
    body = await body_of(request, _MESSAGE_BYTES)
    try:
        row = message("tfaaspb.Row").FromString(bytes(body))
    except DecodeError as error:
        raise UsageError("The body is no protobuf message Row.") from error
    keys, values = list(row.key), list(row.value)
    _refuse_unequal(keys, values, needed=False)

    def tell(model: LoadedModel, outputs: Outputs) -> Answer:
        answer = message("tfaaspb.Predictions")()
        for label, probability in _labelled(model, _first_row(model, outputs)):
            answer.prediction.add(label=label, probability=probability)
        return Answer(200, answer.SerializeToString(), "application/octet-stream")

    def plan(model: LoadedModel) -> Plan:
        rows, work = planned(model, _vector(model, keys, values), 1)
        return Plan("tfaas", model, rows, work, lambda outputs: tell(model, outputs))

    return response(await predictions_of(request).answer(user, row.model, "", plan))


async def by_image(request: Request) -> Response:
    """A form with image and model -> the most probable labels."""
    user = await user_of(request)
    predictions = predictions_of(request)
    async with bounded_form(request, _IMAGE_BYTES) as form:
        name, file = str(form.get("model", "")), form.get("image")
        if file is None or isinstance(file, str):
            raise UsageError("The form has no file image.", "Send image=@FILE and model=NAME.")
        content = await file.read()
    model = await predictions.model(user, name)
    spec = _only_input(model)
    tensor = await predictions.runtime.in_thread(image_tensor, content, spec)
    rows, work = planned(model, {spec.name: tensor}, 1)

    def tell(outputs: Outputs) -> Answer:
        best = sorted(_labelled(model, _first_row(model, outputs)), key=lambda pair: -pair[1])[:_BEST]
        labels = [{"label": label, "probability": probability} for label, probability in best]
        return ok({"filename": "input", "labels": labels})

    return response(await predictions.done(Plan("tfaas", model, rows, work, tell)))


def uploaded_params(folder: Any) -> dict[str, Any]:
    """What an upload said of itself; nothing for a bundle."""
    try:
        params = orjson.loads((folder / "upload.json").read_bytes())["params"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return params if isinstance(params, dict) else {}


def _refuse_unequal(keys: list[str], values: list[Any], *, needed: bool) -> None:
    """Without keys, which old clients leave out, values are in the order of the columns."""
    if (keys or needed) and len(keys) != len(values):
        raise UsageError(f"There are {len(keys)} keys for {len(values)} values.", "Give a name for each value.")


def _vector(model: LoadedModel, keys: list[str], values: list[Any]) -> dict[str, NDArray[Any]]:
    """The input vector, with its mask where the network takes it: values by the names of its columns, in any order."""
    try:
        given = np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UsageError("values has something that is no number.", "Normalise and pad, or send raw events.") from error
    if given.ndim != 1 or any(isinstance(value, str) for value in values):
        raise UsageError("values has something that is no number.", "Normalise and pad, or send raw events.")
    columns = _columns(model)
    if columns and keys:
        given = given[_order(keys, columns)]
    feed = {MASK: np.isnan(given)} if MASK in model.inputs else {}
    if model.bundle is not None:
        given = np.where(np.isnan(given), model.bundle.schema.fill, given)
    spec = _only_input(model)
    feed[spec.name] = given
    return {name: _one_row(array, model.inputs[name]) for name, array in feed.items()}


def _one_row(values: NDArray[Any], spec: TensorSpec) -> NDArray[Any]:
    shape = (1, *spec.shape[1:])
    if values.size != np.prod(shape, dtype=np.int64):
        raise UsageError(f"There are {values.size} values, but the model takes {list(spec.shape)}.")
    with np.errstate(over="ignore"):
        return converted(values, spec.dtype, spec.name).reshape(shape)


def _columns(model: LoadedModel) -> Sequence[str]:
    """Names of the input vector's columns; an uploaded network has them in `features` of its params.json, or not."""
    if model.bundle is not None:
        return model.bundle.schema.names
    features = model.params.get("features", ())
    return tuple(map(str, features)) if isinstance(features, list) else ()


def _order(keys: list[str], columns: Sequence[str]) -> list[int]:
    """Where each column is among the keys; `pt[0]` may be called `pt_0`."""
    places = {key: number for number, key in enumerate(keys)}
    if len(places) < len(keys):
        raise UsageError("keys has a name twice.")
    other = {column: column.replace("[", "_").replace("]", "") for column in columns}
    known = {*columns, *other.values()}
    for key in keys:
        if key not in known:
            raise UsageError(f"The model has no column {key[:100]}.", did_you_mean(key, list(columns), "columns"))
    found = [places.get(column, places.get(other[column], -1)) for column in columns]
    if lacking := [column for column, place in zip(columns, found, strict=True) if place < 0]:
        raise UsageError(f"keys lacks {listing(lacking)}.", "Give every column, or send raw events.")
    return found


def _only_input(model: LoadedModel) -> TensorSpec:
    inputs = [spec for spec in model.inputs.values() if spec.name != MASK]
    if len(inputs) != 1:
        raise UsageError(f"The model has the inputs {listing(list(model.inputs))}.", "Use /v2.")
    return inputs[0]


def _first_row(model: LoadedModel, outputs: Outputs) -> NDArray[Any]:
    chosen = model.params.get("outputNode")
    array = outputs[chosen] if isinstance(chosen, str) and chosen in outputs else next(iter(outputs.values()))
    first: NDArray[Any] = array.reshape(array.shape[0] if array.ndim else 1, -1)[0]
    return first


def _labelled(model: LoadedModel, row: NDArray[Any]) -> list[tuple[str, float]]:
    labels = model.labels if len(model.labels) == row.size else [str(number) for number in range(row.size)]
    return list(zip(labels, row.astype(float).tolist(), strict=True))
