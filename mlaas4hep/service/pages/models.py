"""Pages of models: what they are, whom they are shared with, and predictions by hand."""

from __future__ import annotations

import json
import shlex
from typing import Annotated, Any, BinaryIO
from urllib.parse import quote

from fastapi import Form, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from mlaas4hep.data.schema import Kind, Schema
from mlaas4hep.errors import MlaasError
from mlaas4hep.service import models_api
from mlaas4hep.service.access import Server, Service, Submitter, TheService
from mlaas4hep.service.archive import open_plain
from mlaas4hep.service.identity import User
from mlaas4hep.service.login import BrowserLogin
from mlaas4hep.service.models_api import ModelCard, ModelView, Name, Promotion, Sharing
from mlaas4hep.service.pages.site import REPORT_HEADERS, UI, Look, TheLook, on_with, page_router
from mlaas4hep.service.problems import Problem
from mlaas4hep.service.workspaces_api import pieces
from mlaas4hep.serving.graph import HEADERS as GRAPH_HEADERS
from mlaas4hep.serving.graph import viewer, viewer_file
from mlaas4hep.serving.repository import UnknownModelError
from mlaas4hep.training.experiment import REPORT
from mlaas4hep.training.onnx_model import MODEL_FILE
from mlaas4hep.training.prediction import input_branches

router = page_router()
_LARGEST_TEXT = 2**24
_SHOWN_INPUTS = 300
_SHOWN_PREDICTIONS = 200
Wanted = Annotated[int | None, Query(ge=1, le=10**9)]
VersionText = Annotated[str, Form(pattern="^[0-9]{0,9}$")]


@router.get(UI + "/models")
def models(look: TheLook, user: Server, service: TheService) -> Response:
    """The models that somebody may use."""
    return look.page("models.html", user, models=models_api.list_models(user, service).models)


@router.get(UI + "/models/{name}")
def model(look: TheLook, name: Name, user: Server, service: TheService, version: Wanted = None) -> Response:
    """One version of a model: measures, report, inputs and card."""
    shown = models_api.show_model(name, user, service)
    chosen = version or _preferred(shown)
    schema = _schema(service, user, name, chosen)
    return look.page(
        "model.html",
        user,
        model=shown,
        chosen=chosen,
        card=_card(name, chosen, user, service),
        inputs=_inputs(schema)[:_SHOWN_INPUTS] if schema else [],
        more=len(schema.names) - _SHOWN_INPUTS if schema else 0,
        has_network=_path(service, user, name, chosen, MODEL_FILE).is_file(),
        has_report=_path(service, user, name, chosen, REPORT).is_file(),
        own=shown.owner == user.key,
        groups=sorted({*user.groups, *shown.groups}),
    )


@router.get(UI + "/models/{name}/versions/{version}/report")
def report(name: Name, version: models_api.Version, user: Server, service: TheService) -> Response:
    """The report of the training, as a page."""
    try:
        stream = open_plain(_path(service, user, name, version, REPORT))
    except OSError as error:
        raise Problem(404, f"The version {version} of the model {name} has no report.") from error
    return StreamingResponse(pieces(stream), media_type="text/html; charset=utf-8", headers=REPORT_HEADERS)


@router.get(UI + "/models/{name}/versions/{version}/graph/")
def graph(request: Request, name: Name, version: models_api.Version, user: Server, service: TheService) -> Response:
    """The network as a picture, by netron."""
    _network(service, user, name, version).close()
    return viewer(request.url.path)


@router.get(UI + "/models/{name}/versions/{version}/graph/{file}")
def graph_file(name: Name, version: models_api.Version, file: str, user: Server, service: TheService) -> Response:
    """The network, or a file of netron."""
    network = _network(service, user, name, version)
    if file == MODEL_FILE:
        return StreamingResponse(pieces(network), media_type="application/octet-stream", headers=GRAPH_HEADERS)
    network.close()
    return viewer_file(file)


@router.post(UI + "/models/{name}/sharing")
def share(
    name: Name, user: Submitter, service: TheService, groups: Annotated[list[str], Form(default_factory=list)]
) -> Response:
    """Share a model with exactly these groups."""
    models_api.share_model(name, Sharing(groups=groups), user, service)
    return on_with(f"{UI}/models/{name}")


@router.post(UI + "/models/{name}/default")
def promote(name: Name, user: Submitter, service: TheService, version: VersionText = "") -> Response:
    """Choose the version that is used when none is named."""
    models_api.promote_model(name, Promotion(version=int(version) if version else None), user, service)
    return on_with(f"{UI}/models/{name}")


@router.post(UI + "/models/{name}/delete")
def delete(name: Name, user: Submitter, service: TheService) -> Response:
    """Delete a model with all its versions."""
    models_api.delete_model(name, user, service)
    return on_with(f"{UI}/models")


@router.post(UI + "/models/{name}/versions/{version}/delete")
def delete_version(name: Name, version: models_api.Version, user: Submitter, service: TheService) -> Response:
    """Delete a version."""
    models_api.delete_version(name, version, user, service)
    return on_with(f"{UI}/models")


@router.get(UI + "/models/{name}/predict")
def prediction_form(look: TheLook, name: Name, user: Server, service: TheService, version: Wanted = None) -> Response:
    """A form with an event to begin with, and commands that do the same."""
    return _prediction(look, name, user, service, version, None, None)


@router.post(UI + "/models/{name}/predict")
async def predict(
    request: Request,
    look: TheLook,
    name: Name,
    user: Server,
    service: TheService,
    events: Annotated[str, Form()] = "",
    version: VersionText = "",
) -> Response:
    """Predict the events of the form."""
    service.repository.find(user, name)
    predictions = request.app.state.predictions
    if predictions is None:
        raise Problem(503, "This process has no models.", "Ask the inference server.")
    found: Any = None
    wrong = ""
    try:
        answer = await predictions.answer(user, name, version, predictions.json_events(events.encode()))
        found = json.loads(answer.body)
    except UnknownModelError:
        raise
    except MlaasError as error:
        wrong = str(error)
    number = int(version) if version else None
    return await run_in_threadpool(_prediction, look, name, user, service, number, events, found, wrong)


def _prediction(
    look: Look,
    name: str,
    user: User,
    service: Service,
    version: int | None,
    events: str | None,
    found: Any,
    wrong: str = "",
) -> Response:
    shown = models_api.show_model(name, user, service)
    chosen = version or _preferred(shown)
    schema = _schema(service, user, name, chosen)
    text = events if events is not None else json.dumps([_example(schema)], indent=1) if schema else ""
    classes = list(found["predictions"][0].get("probabilities") or {}) if found and found["predictions"] else []
    return look.page(
        "predict.html",
        user,
        422 if wrong else 200,
        model=shown,
        chosen=chosen,
        events=text,
        found=found,
        classes=classes,
        most=_SHOWN_PREDICTIONS,
        wrong=wrong,
        takes_events=schema is not None,
        curl=_curl(_address(look.request, service), name, text),
        python=_python(_address(look.request, service), name, text),
    )


def _address(request: Request, service: Service) -> str:
    login = service.login
    return login.public_url if isinstance(login, BrowserLogin) else str(request.base_url).rstrip("/")


def _curl(address: str, name: str, events: str) -> str:
    url = f"{address}/v2/models/{quote(name)}/events"
    lines = (
        'curl -H "Authorization: Bearer $TOKEN"',
        '-H "Content-Type: application/json"',
        f"-d {shlex.quote(_compact(events))}",
        shlex.quote(url),
    )
    return " \\\n  ".join(lines)


def _python(address: str, name: str, events: str) -> str:
    return "\n".join(
        [
            "import json, os",
            "from mlaas4hep.client import Client",
            "",
            f"with Client({address!r}, lambda: os.environ['TOKEN']) as client:",
            f"    events = json.loads({_compact(events)!r})",
            f"    print(client.predict({name!r}, events))",
        ]
    )


def _compact(events: str) -> str:
    try:
        return json.dumps(json.loads(events))
    except (ValueError, RecursionError):
        return events


def _preferred(model: ModelView) -> int:
    if not model.versions:
        raise Problem(404, f"The model {model.name} has no version.")
    return model.default if model.default in model.versions else model.versions[-1]


def _path(service: Service, user: User, name: str, version: int, file: str) -> Any:
    """A file of a version, which may not be there. Raises UnknownModelError."""
    facts = models_api.having(service.repository.find(user, name), version)
    return service.repository.path(facts, version) / file


def _network(service: Service, user: User, name: str, version: int) -> BinaryIO:
    """Raises UnknownModelError, and Problem for a version without a network."""
    try:
        return open_plain(_path(service, user, name, version, MODEL_FILE))
    except OSError as error:
        raise Problem(404, f"The version {version} of the model {name} has no ONNX network.") from error


def _text(service: Service, user: User, name: str, version: int, file: str) -> str:
    try:
        with open_plain(_path(service, user, name, version, file)) as stream:
            return stream.read(_LARGEST_TEXT).decode(errors="replace")
    except OSError:
        return ""


def _card(name: str, version: int, user: User, service: Service) -> ModelCard | None:
    """None for networks that were uploaded, which have none."""
    try:
        return models_api.show_version(name, version, user, service)
    except Problem:
        return None


def _schema(service: Service, user: User, name: str, version: int) -> Schema | None:
    """The layout of the inputs; None for networks that were uploaded."""
    text = _text(service, user, name, version, "schema.json")
    try:
        return Schema.model_validate_json(text) if text else None
    except ValueError:
        return None


def _inputs(schema: Schema) -> list[tuple[int, str, str]]:
    """Place, name and branch of each column of the input vector."""
    kinds = schema.kinds
    slices = schema.slices
    return [
        (place, column, kinds.get(feature, ""))
        for feature, part in slices.items()
        for place, column in enumerate(schema.names[part], part.start)
    ]


def _example(schema: Schema) -> dict[str, Any]:
    """An event with the middle of each input's range: values that a model does not refuse."""
    ranges = zip(schema.features, schema.shift, schema.width, strict=True)
    middle = {name: shift + width / 2 for name, shift, width in ranges}
    event: dict[str, Any] = {}
    for branch in input_branches(schema):
        columns = [column for column in schema.flat if column.branch == branch.name]
        values = [round(middle.get(column.name, 0.0), 4) for column in columns]
        if branch.kind is Kind.JAGGED:
            event[branch.name] = [round(middle.get(branch.name, 0.0), 4)] * 2
        elif branch.kind is Kind.STRUCT:
            event[branch.name] = {column.member: value for column, value in zip(columns, values, strict=True)}
        elif branch.kind is Kind.FIXED:
            event[branch.name] = values
        elif branch.kind is Kind.BOOL:
            event[branch.name] = True
        else:
            event[branch.name] = values[0] if values else 0.0
    return event
