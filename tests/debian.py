"""Programs of Debian packages that tests need: installed where that is possible, and none of their services started."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from typing import NoReturn

import pytest

from tests.devcloud import packages
from tests.devcloud.commands import DevcloudError


def lacking(programs: Mapping[str, str]) -> str:
    """Why some programs are not there, or "" when they are.

    Args:
        programs: the package of each program.
    """
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    wanted = sorted({package for program, package in programs.items() if not shutil.which(program, path=path)})
    if not wanted:
        return ""
    if os.geteuid() != 0:
        return f"needs the Debian packages {' and '.join(wanted)}"
    try:
        packages.install(wanted)
    except DevcloudError as error:
        return f"the Debian packages {' and '.join(wanted)} cannot be installed: {error}"
    return ""


def do_without(reason: str) -> NoReturn:
    """Skip what this computer lacks something for; under CI, which has to have everything, that is a failure."""
    (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
