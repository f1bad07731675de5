"""Routes of models; predictions are answered by the inference server."""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import APIRouter, Response
from fastapi import Path as InPath
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from mlaas4hep.service.access import Server, Service, Submitter, TheService
from mlaas4hep.service.archive import open_plain, pack
from mlaas4hep.service.identity import NotPermittedError, Role, User
from mlaas4hep.service.problems import Problem
from mlaas4hep.service.workspaces_api import attachment
from mlaas4hep.serving.repository import ModelFacts, UnknownModelError
from mlaas4hep.training.bundle import CARD, MANIFEST

router = APIRouter(prefix="/models", tags=["models"])
Name = Annotated[
    str, InPath(max_length=80, description="A model of yours, or NAMESPACE.NAME of one that is shared with you.")
]
Version = Annotated[int, InPath(ge=1, le=10**9)]
_LARGEST_TEXT = 2**22


class ModelView(BaseModel):
    """A model.

    Attributes:
        name: as you call it.
        owner: key of the user whose it is.
        groups: groups that may use it.
        default: the version that is used when none is named; null for the newest.
        versions: in ascending order.
    """

    name: str
    owner: str
    groups: list[str]
    default: int | None
    versions: list[int]


class ModelList(BaseModel):
    """The models that you may use."""

    models: list[ModelView]


class ModelCard(BaseModel):
    """What a version is.

    Attributes:
        manifest: framework, task, classes and what predicts it.
        metrics: its measures.
        card: the model card, Markdown.
    """

    manifest: dict[str, Any]
    metrics: dict[str, Any]
    card: str


class Sharing(BaseModel):
    """Who may use a model besides its owner."""

    groups: list[Annotated[str, Field(min_length=1, max_length=500)]] = Field(max_length=100, examples=[["/cms/higgs"]])


class Promotion(BaseModel):
    """The version that is used when none is named; null for always the newest."""

    version: Annotated[int, Field(ge=1, le=10**9)] | None = Field(examples=[2])


def _view(facts: ModelFacts, user: User) -> ModelView:
    return ModelView(
        name=facts.called(user),
        owner=facts.owner,
        groups=list(facts.groups),
        default=facts.default,
        versions=list(facts.versions),
    )


@router.get("")
def list_models(user: Server, service: TheService) -> ModelList:
    """The models that you may use, own ones first."""
    return ModelList(models=[_view(facts, user) for facts in service.repository.models(user)])


@router.get("/{name}")
def show_model(name: Name, user: Server, service: TheService) -> ModelView:
    """One model with its versions."""
    return _view(service.repository.find(user, name), user)


@router.get("/{name}/versions/{version}")
def show_version(name: Name, version: Version, user: Server, service: TheService) -> ModelCard:
    """What a version is: manifest, measures and model card."""
    folder = service.repository.path(having(service.repository.find(user, name), version), version)
    try:
        texts = {}
        for file in (MANIFEST, "metrics.json", CARD):
            with open_plain(folder / file) as stream:
                texts[file] = stream.read(_LARGEST_TEXT).decode()
        manifest, metrics = json.loads(texts[MANIFEST]), json.loads(texts["metrics.json"])
        manifest.pop("files")
        return ModelCard(manifest=manifest, metrics=metrics, card=texts[CARD])
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise Problem(409, f"The version {version} of the model {name} has no card.") from error


@router.get("/{name}/versions/{version}/bundle", response_class=StreamingResponse)
def download_version(name: Name, version: Version, user: Server, service: TheService) -> Response:
    """Download a version as a tar.gz."""
    facts = having(service.repository.find(user, name), version)
    packed = pack(service.repository.path(facts, version), facts.name)
    return StreamingResponse(
        packed, media_type="application/gzip", headers=attachment(f"{facts.name}-{version}.tar.gz")
    )


@router.put("/{name}/sharing")
def share_model(name: Name, wanted: Sharing, user: Submitter, service: TheService) -> ModelView:
    """Let the members of exactly these groups use a model; you may name your own groups."""
    facts = _own(service, user, name)
    foreign = set(wanted.groups) - set(facts.groups) - set(user.groups)
    if foreign and Role.ADMINISTER not in user.roles:
        raise NotPermittedError(f"You are no member of {min(foreign)}.")
    service.repository.share(facts.namespace, facts.name, wanted.groups)
    return _view(service.repository.find(user, name), user)


@router.put("/{name}/default")
def promote_model(name: Name, wanted: Promotion, user: Submitter, service: TheService) -> ModelView:
    """Choose the version that is used when none is named."""
    facts = _own(service, user, name)
    service.repository.promote(facts.namespace, facts.name, wanted.version)
    return _view(service.repository.find(user, name), user)


@router.delete("/{name}", status_code=204)
def delete_model(name: Name, user: Submitter, service: TheService) -> Response:
    """Delete a model with all its versions."""
    facts = _own(service, user, name)
    service.repository.delete(facts.namespace, facts.name)
    return Response(status_code=204)


@router.delete("/{name}/versions/{version}", status_code=204)
def delete_version(name: Name, version: Version, user: Submitter, service: TheService) -> Response:
    """Delete a version."""
    facts = having(_own(service, user, name), version)
    service.repository.delete(facts.namespace, facts.name, version)
    return Response(status_code=204)


def having(facts: ModelFacts, version: int) -> ModelFacts:
    """The facts of a model that has a version. Raises UnknownModelError."""
    if version not in facts.versions:
        raise UnknownModelError(facts.name, str(version))
    return facts


def _own(service: Service, user: User, name: str) -> ModelFacts:
    facts = service.repository.find(user, name)
    if facts.owner != user.key and Role.ADMINISTER not in user.roles:
        raise NotPermittedError("The model is somebody else's.")
    return facts
