"""What an uninstallation removes is what the roles install: neither more nor less."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import REPOSITORY

ROLES = ("base", "cvmfs", "xrootd_client", "mlaas4hep", "jupyter", "slurm", "web_proxy", "monitoring", "backup")
WRITERS = ("copy", "template", "file")
PACKAGES = ("/etc/cvmfs/", "/etc/nginx/", "/etc/slurm/", "/etc/xrootd/", "/etc/grid-security/", "/etc/prometheus/")
"""Folders of Debian packages: the settings in them stay with the packages."""

BY_SYSTEMD = {f"/var/lib/{name}" for name in ("platform-jupyterhub", "platform-jupyter", "private/platform-jupyter")}
"""Folders that units say they need."""

LISTED = yaml.safe_load((REPOSITORY / "playbooks" / "vars" / "installed.yml").read_text())
PATHS = {*LISTED["installed_paths"], *(f"/etc/systemd/system/{unit}" for unit in LISTED["installed_units"])}


def tasks(role: str) -> Iterator[dict[str, Any]]:
    """All tasks of a role, those in blocks too."""
    for file in sorted((REPOSITORY / "roles" / role / "tasks").glob("*.yml")):
        waiting = list(yaml.safe_load(file.read_text()) or [])
        while waiting:
            task = waiting.pop(0)
            waiting += task.get("block", [])
            yield task


def written(role: str) -> Iterator[str]:
    """The paths that tasks of the role write to, as far as they are paths of the machine's disk."""
    variables = (
        yaml.safe_load((REPOSITORY / "roles" / role / "vars" / "main.yml").read_text()) if _has_vars(role) else {}
    )
    for task in tasks(role):
        for module in WRITERS:
            options = task.get(f"ansible.builtin.{module}")
            if not options or options.get("state") == "absent":
                continue
            loop = task.get("loop")
            items = loop if isinstance(loop, list) else [None]
            for item in items:
                path = str(options.get("dest") or options.get("path"))
                yield _filled(path, {**variables, "item": item})


def _has_vars(role: str) -> bool:
    return (REPOSITORY / "roles" / role / "vars" / "main.yml").exists()


def _filled(path: str, variables: dict[str, Any]) -> str:
    while found := re.search(r"\{\{ (\w+) \}\}", path):
        value = variables.get(found[1])
        if not isinstance(value, str):
            return f"{path[: found.start()]}*{path[found.end() :]}"
        path = path.replace(found[0], value)
    return path


@pytest.mark.parametrize("role", ROLES)
def test_what_a_role_writes_is_removed(role: str):
    for path in written(role):
        if path.startswith((*PACKAGES, "/run/", "/etc/systemd/system/cvmfs-")):  # the role removes the last by itself
            continue
        known = any(path == listed or path.startswith(f"{listed}/") for listed in PATHS)
        folder = path in LISTED["installed_folders"]
        # the name of a unit that a loop over packages' services gives
        looped = any(
            re.fullmatch(re.escape(path).replace(r"\*", "[a-z-]+"), listed) for listed in [*PATHS, *_folders()]
        )
        assert known or folder or looped, f"{role} writes {path}, which playbooks/vars/installed.yml does not know"


def _folders() -> list[str]:
    return list(LISTED["installed_folders"])


@pytest.mark.parametrize("role", ROLES)
def test_accounts_of_a_role_are_removed(role: str):
    made = {task["ansible.builtin.user"]["name"] for task in tasks(role) if "ansible.builtin.user" in task}
    assert {name for name in made if "{{" not in name} <= set(LISTED["installed_accounts"])


def test_nothing_is_removed_that_no_role_writes():
    everything = {path for role in ROLES for path in written(role)}
    for listed in PATHS - BY_SYSTEMD:
        assert any(
            path == listed
            or path.startswith(f"{listed}/")
            or re.fullmatch(re.escape(path).replace(r"\*", "[a-z-]+"), listed)
            for path in everything
        ), f"no role writes {listed}"


def test_only_whole_names_below_known_folders_are_removed():
    for path in map(Path, PATHS):
        assert path.is_absolute() and ".." not in path.parts and len(path.parts) > 2, path
