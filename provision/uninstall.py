"""Takes from a host that existed before what the roles have put there: seen first, then removed by a playbook."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from provision.configure import run_playbook
from provision.record import Folder, Resource
from provision.remote import Remote
from provision.share import share

_SEEN = 'for path; do if test -e "$path" || test -L "$path"; then echo "$path"; fi; done'
_UNITS = "/etc/systemd/system"


def installed(remote: Remote) -> list[Resource]:
    """What of the roles is on the machine now: files, folders and accounts of `playbooks/vars/installed.yml`.

    Raises ConnectionLostError when the machine is not reached.
    """
    listed = _listed()
    paths = [*listed["installed_paths"], *(f"{_UNITS}/{unit}" for unit in listed["installed_units"])]
    there = remote.run(["sudo", "sh", "-c", _SEEN, "sh", *paths]).splitlines()
    accounts = remote.run(["getent", "passwd", *listed["installed_accounts"]], check=False).splitlines()
    return [Resource(kind="file", id=path) for path in there] + [
        Resource(kind="account", id=line.partition(":")[0]) for line in accounts
    ]


def uninstall(folder: Folder, progress: Callable[[str], None]) -> None:
    """Remove it; what is gone already is fine. Raises ProvisionError that names the task that failed, and the log."""
    run_playbook(folder, "uninstall.yml", {}, progress)


def _listed() -> dict[str, Any]:
    import yaml

    listed = yaml.safe_load((share() / "playbooks" / "vars" / "installed.yml").read_text(encoding="utf-8"))
    return dict(listed)
