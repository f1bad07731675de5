"""`/models/M/graph`: the network as a picture, by the files of the netron package.

Netron as it is asks a server elsewhere where its reader is, counts its readers, and wants to be updated after half a
year. Here the page has no date and no version, says that nothing has to be agreed to, and its Content-Security-Policy
lets it talk to this server only.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from mlaas4hep.errors import UsageError
from mlaas4hep.serving.requests import predictions_of, user_of
from mlaas4hep.training.onnx_model import MODEL_FILE

_POLICY = (
    "default-src 'none'; script-src 'self'; worker-src 'self'; connect-src 'self'; img-src 'self' data: blob:; "
    "style-src 'self' 'unsafe-inline'; font-src 'self' data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
_FILE = re.compile(r"[a-z0-9][a-z0-9_.-]*\.(?:js|json|css|ico|png)")


def routes() -> Sequence[BaseRoute]:
    """All routes."""
    return [
        Route("/models/{model}/graph", to_page),
        Route("/models/{model}/graph/", page),
        Route("/models/{model}/graph/{file}", file),
        Route("/netron/", of_query),
    ]


async def to_page(request: Request) -> Response:
    """The page's files lie below it."""
    return RedirectResponse("graph/", headers=HEADERS)


async def of_query(request: Request) -> Response:
    """The address that TFaaS has for it: `/netron/?model=M`."""
    user = await user_of(request)
    name = request.query_params.get("model", "")
    predictions_of(request).repository.find(user, name)
    return RedirectResponse(f"../models/{name}/graph/", headers=HEADERS)


async def page(request: Request) -> Response:
    """Netron, which fetches the network from beside the page."""
    user = await user_of(request)
    predictions_of(request).repository.find(user, request.path_params["model"])
    return viewer(request.url.path)


async def file(request: Request) -> Response:
    """The network, or a file of netron."""
    user = await user_of(request)
    name = request.path_params["file"]
    predictions = predictions_of(request)
    if name == MODEL_FILE:
        model = await predictions.model(user, request.path_params["model"])
        if not model.network.is_file():
            raise UsageError("This model has no ONNX network to show.", "Its folder can be downloaded.")
        return FileResponse(model.network, media_type="application/octet-stream", headers=HEADERS)
    predictions.repository.find(user, request.path_params["model"])
    return viewer_file(name)


def viewer(place: str) -> Response:
    """Netron's page, which fetches its files and the network `model.onnx` from beside itself.

    Args:
        place: path of its address.
    """
    answer = Response(_page(), media_type="text/html", headers=HEADERS)
    answer.set_cookie("consent", "none", path=place, samesite="strict")
    return answer


def viewer_file(name: str) -> Response:
    """A file of netron, or 404."""
    path = _folder() / name
    if not _FILE.fullmatch(name) or not path.is_file():
        return Response(status_code=404)
    return FileResponse(path, headers=HEADERS)


@cache
def _folder() -> Path:
    found = importlib.util.find_spec("netron")
    if found is None or found.origin is None:
        raise RuntimeError("The package netron is not installed.")
    return Path(found.origin).parent


@cache
def _page() -> str:
    text = (_folder() / "index.html").read_text(encoding="utf-8")
    facts = f'<meta name="version" content="0.0.0">\n<meta name="file" content="{MODEL_FILE}">'
    text = re.sub(r'<meta name="version" content="[^"]*">', facts, text)
    text = re.sub(r'<meta name="date" content="[^"]*">\n?', "", text)
    return re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>\n?', "", text)
