"""The route that tells what a file of a workspace holds."""

from __future__ import annotations

from fastapi import APIRouter

from mlaas4hep.service.access import Submitter, TheService
from mlaas4hep.service.archive import checked_path
from mlaas4hep.service.inspection import FileContents, inspect_in_process
from mlaas4hep.service.workspaces_api import Name

router = APIRouter(prefix="/workspaces", tags=["workspaces"])


@router.get("/{name}/branches/{path:path}")
def show_branches(name: Name, path: str, user: Submitter, service: TheService) -> FileContents:
    """Trees and branches of a file, with histograms of the first entries."""
    service.workspaces.open_file(user.key, name, path).close()
    return inspect_in_process(service.workspaces.folder(user.key, name) / checked_path(path), path)
