"""Uploads of TFaaS: a network with its params.json and labels, checked and published as a version of a model."""

from __future__ import annotations

import asyncio
import shutil
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import orjson
from starlette.datastructures import UploadFile
from starlette.requests import Request

from mlaas4hep.errors import UsageError
from mlaas4hep.names import listing
from mlaas4hep.service.identity import User
from mlaas4hep.service.workspaces import size_of
from mlaas4hep.serving.answers import TooLargeError
from mlaas4hep.serving.checks import check_network, write_upload
from mlaas4hep.serving.conversions import convert
from mlaas4hep.serving.predictions import Predictions
from mlaas4hep.serving.repository import NAME
from mlaas4hep.serving.requests import bounded_form
from mlaas4hep.training.onnx_model import MODEL_FILE

_TEXT_BYTES = 2**20
_MOST_MEMBERS = 1000
_FILES = ("params", "model", "labels")
_OPTIONS = ("name", "model", "labels", "options", "inputNode", "outputNode", "description", "timestamp", "features")


@dataclass(frozen=True)
class _Parts:
    """The files of an upload, beside each other in a folder."""

    params: bytes
    model: Path
    labels: bytes


async def published(request: Request, predictions: Predictions, user: User) -> tuple[str, int]:
    """Publish what a request uploads; returns the model's name and version.

    Raises UsageError for what is not complete, cannot be served, or has a name that is none.
    """
    folder = predictions.repository.folder
    folder.mkdir(parents=True, exist_ok=True)
    largest, most = predictions.settings.upload, predictions.settings.stored
    if await asyncio.to_thread(size_of, folder / user.key) >= most:
        raise TooLargeError(
            f"Your models have the {most} bytes that you may store.", "Delete versions that nobody needs."
        )
    with tempfile.TemporaryDirectory(prefix=".upload-", dir=folder) as temporary:
        place = Path(temporary)
        if request.headers.get("content-type", "").startswith("multipart/form-data"):
            name, parts = await _of_form(request, place, largest)
        else:
            archive = place / "archive"
            await _saved(request, archive, largest)
            parts = await asyncio.to_thread(_of_archive, archive, place, largest)
            name = ""
        return await asyncio.to_thread(_publish, predictions, user, name, parts, place)


def _publish(predictions: Predictions, user: User, name: str, parts: _Parts, place: Path) -> tuple[str, int]:
    params = _params(parts.params)
    name = name or str(params.get("name", ""))
    if not NAME.fullmatch(name):
        raise UsageError(f"{name[:100]!r} is no name for a model.", "Use letters, digits, - and _.")
    if params.get("name", name) != name:
        raise UsageError(f"The form has the name {name}, but params.json has {str(params['name'])[:100]}.")
    network = parts.model if parts.model.suffix == ".onnx" else convert(parts.model, params, place)
    check_network(network)
    ready = place / "ready"
    ready.mkdir()
    network.rename(ready / MODEL_FILE)
    labels = tuple(line.strip() for line in parts.labels.decode("utf-8", "replace").splitlines() if line.strip())
    write_upload(ready, {key: params[key] for key in _OPTIONS if key in params}, labels)
    return name, predictions.repository.publish(user.key, name, ready)


def _params(content: bytes) -> dict[str, Any]:
    try:
        params = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise UsageError(f"params.json is no JSON: {error}.") from error
    if not isinstance(params, dict):
        raise UsageError("params.json is no JSON object.")
    return params


async def _of_form(request: Request, place: Path, largest: int) -> tuple[str, _Parts]:
    async with bounded_form(request, largest) as form:
        name = str(form.get("name", ""))
        files = {part: file for part in _FILES if isinstance(file := form.get(part), UploadFile)}
        if lacking := [*([] if name else ["name"]), *(part for part in _FILES if part not in files)]:
            raise UsageError(
                f"The form lacks {listing(lacking)}.", "Send name, and the files params, model and labels."
            )
        target = place / _plain(files["model"].filename or "")
        with target.open("wb") as stream:
            shutil.copyfileobj(files["model"].file, stream)
        params, labels = await files["params"].read(_TEXT_BYTES), await files["labels"].read(_TEXT_BYTES)
        return name, _Parts(params, target, labels)


async def _saved(request: Request, path: Path, largest: int) -> None:
    size = 0
    with path.open("wb") as stream:
        async for piece in request.stream():
            size += len(piece)
            if size > largest:
                raise TooLargeError(f"The upload has more than {largest} bytes.")
            stream.write(piece)


def _of_archive(archive: Path, place: Path, largest: int) -> _Parts:
    """The files of a .tar.gz; no path of it is used, only regular files are read, and their sizes are bounded."""
    names: dict[str, Path] = {}
    left = largest
    try:
        with tarfile.open(archive, "r|gz") as tar:
            for number, member in enumerate(tar):
                if number >= _MOST_MEMBERS:
                    raise UsageError(f"The archive has more than {_MOST_MEMBERS} members.")
                stream = tar.extractfile(member) if member.isfile() else None
                if stream is None:
                    continue
                left -= member.size
                if left < 0:
                    raise TooLargeError(f"The archive unpacks to more than {largest} bytes.")
                target = place / f"{number}-{_plain(member.name)}"
                _copied(stream, target)
                names.setdefault(PurePosixPath(member.name).name, target)
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise UsageError("The body is no .tar.gz archive.", "Send a form, or tar -czf - FILES.") from error
    if "params.json" not in names:
        raise UsageError("The archive has no params.json.")
    params = names["params.json"].read_bytes()[:_TEXT_BYTES]
    told = _params(params)
    model, labels = (names.get(PurePosixPath(str(told.get(part, ""))).name) for part in ("model", "labels"))
    if model is None:
        raise UsageError(f"The archive has no {str(told.get('model', 'model'))[:100]}, which params.json names.")
    return _Parts(params, model, labels.read_bytes()[:_TEXT_BYTES] if labels else b"")


def _copied(stream: Any, target: Path) -> None:
    file: BinaryIO
    with target.open("wb") as file:
        shutil.copyfileobj(stream, file)


def _plain(name: str) -> str:
    """A file name without folders, and with no more than letters, digits, dots, - and _."""
    last = PurePosixPath(name.replace("\\", "/")).name
    return "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in last)[-100:] or "file"
