"""Where playbooks, roles, templates and lock files are: beside the package in a checkout, inside it once installed."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def share() -> Path:
    """The folder that holds `playbooks`, `roles`, `templates` and `locks`."""
    installed = _PACKAGE / "_share"
    return installed if installed.is_dir() else _PACKAGE.parent
