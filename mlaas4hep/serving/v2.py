"""The routes of the Open Inference Protocol V2, and `events` beside them.

`GET /v2`, `/v2/health/live`, `/v2/health/ready`, `/v2/models/M[/versions/V]`, `.../ready`, `POST .../infer`,
`POST .../events` and `POST /v2/repository/index`; M is `name` or `namespace.name`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

import mlaas4hep
from mlaas4hep.service.identity import Role
from mlaas4hep.serving import metrics
from mlaas4hep.serving.answers import Answer, ok, response
from mlaas4hep.serving.event_files import EventFiles
from mlaas4hep.serving.inference import datatype
from mlaas4hep.serving.requests import body_of, header_length_of, predictions_of, user_of
from mlaas4hep.serving.runtime import LoadedModel, ModelFailedError, TensorSpec
from mlaas4hep.training.prediction import input_branches

NAME, EXTENSIONS = "mlaas4hep", ("binary_tensor_data", "model_repository")


def routes() -> Sequence[BaseRoute]:
    """All routes."""
    both = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")
    return [
        Route("/v2", server_metadata),
        Route("/v2/health/live", alive),
        Route("/v2/health/ready", ready),
        Route("/v2/repository/index", index, methods=["POST"]),
        Route("/metrics", exposition),
        *(Route(path, model_metadata) for path in both),
        *(Route(f"{path}/ready", model_ready) for path in both),
        *(Route(f"{path}/infer", infer, methods=["POST"]) for path in both),
        *(Route(f"{path}/events", events, methods=["POST"]) for path in both),
    ]


async def server_metadata(request: Request) -> Response:
    """What this server is."""
    await user_of(request)
    return response(ok(server_facts()))


def server_facts() -> dict[str, Any]:
    """Name, version and extensions of the server."""
    return {"name": NAME, "version": mlaas4hep.__version__, "extensions": list(EXTENSIONS)}


async def alive(request: Request) -> Response:
    """The process answers."""
    return Response()


async def ready(request: Request) -> Response:
    """The repository can be read."""
    return Response(status_code=200 if predictions_of(request).repository.folder.is_dir() else 503)


async def index(request: Request) -> Response:
    """The models that the user may see, with the state of each version (Triton's extension `model_repository`)."""
    user = await user_of(request)
    predictions = predictions_of(request)
    found = []
    for facts in predictions.repository.models(user):
        for version in facts.versions:
            state, reason = predictions.runtime.state(facts, version)
            entry = {
                "name": facts.called(user),
                "version": str(version),
                "state": state,
                "reason": reason or facts.broken,
            }
            found.append(entry)
    return response(ok(found))


async def model_metadata(request: Request) -> Response:
    """Inputs and outputs of a model."""
    user = await user_of(request)
    name = request.path_params["model"]
    model = await predictions_of(request).model(user, name, request.path_params.get("version", ""))
    return response(ok({"name": name} | model_facts(model)))


def model_facts(model: LoadedModel) -> dict[str, Any]:
    """Versions, tensors, and in `parameters` the classes and the branches of raw events."""
    parameters: dict[str, Any] = {"classes": list(model.labels)}
    if model.predictor is not None and model.bundle is not None:
        parameters["branches"] = [{"name": b.name, "kind": b.kind.value} for b in input_branches(model.bundle.schema)]
    return {
        "versions": [str(version) for version in model.facts.versions],
        "platform": model.platform,
        "inputs": [_described(spec) for spec in model.inputs.values()],
        "outputs": [_described(spec) for spec in model.outputs.values()],
        "parameters": parameters,
    }


def _described(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": datatype(spec.dtype), "shape": list(spec.shape)}


async def model_ready(request: Request) -> Response:
    """Whether a model can be used; it is loaded for that."""
    user = await user_of(request)
    try:
        await predictions_of(request).model(user, request.path_params["model"], request.path_params.get("version", ""))
    except ModelFailedError as error:
        return response(Answer(400, ok({"error": str(error)}).body))
    return Response()


async def infer(request: Request) -> Response:
    """Predict."""
    user = await user_of(request)
    predictions = predictions_of(request)
    name, version = request.path_params["model"], request.path_params.get("version", "")
    # whoever may not use the model does not get to send a body
    predictions.repository.find(user, name)
    body = await body_of(request, predictions.settings.body)
    plan = predictions.inference(name, body, header_length_of(request))
    return response(await predictions.answer(user, name, version, plan))


async def events(request: Request) -> Response:
    """Predict raw events: JSON, Parquet, Arrow (IPC) or ROOT, by the content type."""
    user = await user_of(request)
    predictions = predictions_of(request)
    name, version = request.path_params["model"], request.path_params.get("version", "")
    predictions.repository.find(user, name)
    body = await body_of(request, predictions.settings.body)
    form = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if form == "application/json":
        return response(await predictions.answer(user, name, version, predictions.json_events(body)))
    files: EventFiles = request.app.state.event_files
    model = await predictions.model(user, name, version)
    block = await files.block(model, form, bytes(body), request.query_params.get("tree", ""))
    return response(await predictions.done(predictions.events(model, block)))


async def exposition(request: Request) -> Response:
    """Prometheus' metrics."""
    await user_of(request, Role.ADMINISTER)
    text, content_type = metrics.exposition()
    return Response(text, media_type=content_type)
