"""Whether jobs can be confined on this computer: by bubblewrap and by control groups."""

from __future__ import annotations

import os

from mlaas4hep.errors import MlaasError
from mlaas4hep.service.cgroups import make_group
from mlaas4hep.service.executor import Resources
from mlaas4hep.service.sandbox import shortage
from tests.debian import do_without, lacking


def require_sandbox() -> None:
    """Skips where there are no sandboxes; under CI that is a failure."""
    if reason := lacking({"bwrap": "bubblewrap"}) or shortage():
        do_without(reason)


def require_confinement(**programs: str) -> None:
    """Skips where jobs cannot be confined, or a program lacks (each with its package); under CI that is a failure."""
    if reason := lacking({"bwrap": "bubblewrap", **programs}) or _shortage():
        do_without(reason)


def _shortage() -> str:
    try:
        make_group(f"try-{os.getpid()}", Resources()).end()
    except MlaasError as error:
        return str(error)
    return ""
