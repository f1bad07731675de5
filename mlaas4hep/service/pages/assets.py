"""Scripts and styles, as they are in the package; what is not our own is pinned in `static/pins.json`."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from functools import cache
from importlib import resources

from fastapi import APIRouter, Request, Response

_TYPES = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8", "svg": "image/svg+xml"}
_FOR_EVER = "public, max-age=31536000, immutable"

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True)
class _Asset:
    content: bytes
    packed: bytes
    media_type: str
    digest: str


@cache
def _assets() -> dict[str, _Asset]:
    found = {}
    for file in resources.files(__package__).joinpath("static").iterdir():
        media_type = _TYPES.get(file.name.rpartition(".")[2])
        if media_type:
            content = file.read_bytes()
            digest = hashlib.sha256(content).hexdigest()[:16]
            found[file.name] = _Asset(content, gzip.compress(content, mtime=0), media_type, digest)
    return found


def asset_path(name: str) -> str:
    """The address of a file, which changes with its contents."""
    return f"/ui/static/{name}?v={_assets()[name].digest}"


@router.get("/ui/static/{name}")
def asset(name: str, request: Request) -> Response:
    """A script or style."""
    found = _assets().get(name)
    if found is None:
        return Response(status_code=404)
    current = request.query_params.get("v") == found.digest
    headers = {
        "Cache-Control": _FOR_EVER if current else "no-cache",
        "Vary": "Accept-Encoding",
        "X-Content-Type-Options": "nosniff",
    }
    if "gzip" in request.headers.get("accept-encoding", ""):
        return Response(found.packed, media_type=found.media_type, headers={**headers, "Content-Encoding": "gzip"})
    return Response(found.content, media_type=found.media_type, headers=headers)
