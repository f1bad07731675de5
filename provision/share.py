"""Where playbooks, roles, templates and lock files are: beside the package in a checkout, inside it once installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).resolve().parent


def share() -> Path:
    """The folder that holds `playbooks`, `roles`, `templates` and `locks`."""
    installed = _PACKAGE / "_share"
    return installed if installed.is_dir() else _PACKAGE.parent


def platform_play() -> dict[str, Any]:
    """The play of `playbooks/platform.yml`, with the variables of its files among its own."""
    import yaml

    playbooks = share() / "playbooks"
    (play,) = yaml.safe_load((playbooks / "platform.yml").read_text(encoding="utf-8"))
    for file in play.pop("vars_files"):
        play["vars"] |= yaml.safe_load((playbooks / file).read_text(encoding="utf-8"))
    return dict(play)
