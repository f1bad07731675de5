"""Runs playbooks over SSH with ansible-runner and turns its events into progress."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from provision.errors import ProvisionError
from provision.framework import Framework, digest_of, further_packages
from provision.record import DATA_VOLUME, VOLUME_ATTACHMENT, Folder, Record
from provision.share import share
from provision.spec import PlatformSpec

MARKER = "/etc/mlaas4hep/platform.json"
"""Written by the playbook as its last task: the machine itself says what it was configured with."""

IMAGE_MARKER = "/etc/mlaas4hep/image"
"""The digest of a baked image, on the machines made of it: what the roles need not install there any more."""

NOT_BAKED = ("machine", "gpu_driver")
"""Tags of what is not done on the machine of which an image is made."""

_BAKED_ROLES = ("base", "xrootd_client", "mlaas4hep")
_OTHER_ROLES = ("gpu_driver", "cvmfs", "jupyter", "shared_folder", "slurm", "web_proxy", "monitoring")


@dataclass
class PlaybookResult:
    """What a playbook did: counts a state, and seconds a task."""

    counts: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    changed_tasks: list[str] = field(default_factory=list)


def platform_variables(record: Record, framework: Framework) -> dict[str, Any]:
    """The variables of `platform.yml` for this platform; the one place where a spec becomes role inputs."""
    gpus = record.spec.gpu.count if record.spec.gpu else 0
    variables: dict[str, Any] = {
        "platform_name": record.name,
        "platform_uid": record.uid,
        "base_expires_at": record.expires_at.strftime("%Y-%m-%d %H:%M:%S UTC") if record.expires_at else "",
        "base_idle_seconds": int(record.spec.idle_stop.total_seconds()) if record.spec.idle_stop else 0,
        **_volume_variables(record),
        "mlaas4hep_gpus": gpus,
        "slurm_gpus": gpus,
        "gpu_driver_mig": record.spec.gpu.mig if record.spec.gpu else "",
        "cvmfs_repositories": list(record.spec.cvmfs),
        "cvmfs_proxy": record.spec.cvmfs_proxy,
        "monitoring_kind": record.spec.monitoring,
        "jupyter_kind": record.spec.service if record.spec.jupyter else "none",
        "jupyter_user": record.access.user if record.access else "",
        **_installed_variables(record.spec, framework),
        **_service_variables(record.spec),
        **_cluster_variables(record.spec),
    }
    variables["platform_digest"] = _configuration_digest(variables, framework)
    return variables


def _volume_variables(record: Record) -> dict[str, Any]:
    """The id of the data volume, by which the machine knows it, and the device that the cloud names, if it does."""
    volume, attachment = record.resource(DATA_VOLUME), record.resource(VOLUME_ATTACHMENT)
    device = attachment.details.get("device", "") if attachment else ""
    return {"base_data_volume": volume.id if volume else "", "base_data_device": device}


def image_variables(spec: PlatformSpec, framework: Framework) -> dict[str, Any]:
    """The variables with which `platform.yml` bakes an image for platforms of that spec."""
    # a personal service needs nothing that a shared one does not need; roles that no image has are named, for what a
    # role has when it is not told is another thing
    others = {"jupyter_kind": "none", "monitoring_kind": "none", "mlaas4hep_executor": "local"}
    return {**_installed_variables(spec, framework), **others, "mlaas4hep_service": "personal"}


def image_digest(spec: PlatformSpec, framework: Framework) -> str:
    """Digest of all that decides what a baked image for platforms of that spec has, but for its system."""
    base, variables = share(), _installed_variables(spec, framework)
    roles = [base / "roles" / name for name in _BAKED_ROLES]
    files = [path for role in roles for path in sorted(role.rglob("*")) if path.is_file()]
    playbooks = [base / "playbooks" / name for name in ("platform.yml", "vars/cluster.yml", "cloud_image.yml")]
    locks = [Path(variables["mlaas4hep_installer"]), Path(variables["mlaas4hep_lock"])]
    packages = [
        digest_of([Path(name)], Path(name).parent) if name.endswith(".whl") else name
        for name in variables["mlaas4hep_packages"]
    ]
    words = [digest_of([*files, *playbooks, *locks], base), _framework_digest(framework), *packages]
    return hashlib.sha256(" ".join(words).encode()).hexdigest()[:16]


def personal_tags(spec: PlatformSpec) -> tuple[str, ...]:
    """Tags of what is left to do on a machine of a baked image: what is its own, and the roles that no image has."""
    # these may install packages, for which the role `base` fetches the lists
    more = spec.slurm or spec.service == "shared" or spec.gpu is not None or spec.monitoring != "none"
    more = more or bool(spec.cvmfs) or spec.data_volume is not None
    return ("machine", *_OTHER_ROLES, *(("base",) if more else ()))


def _installed_variables(spec: PlatformSpec, framework: Framework) -> dict[str, Any]:
    """What decides which packages are installed; all else is settings."""
    locks, gpu = share() / "locks", spec.gpu is not None
    return {
        "mlaas4hep_gpu": gpu,
        "mlaas4hep_installer": str(locks / "installer.txt"),
        "mlaas4hep_lock": str(locks / ("platform-gpu.txt" if gpu else "platform.txt")),
        "mlaas4hep_wheel": str(framework.wheel or ""),
        "mlaas4hep_version": framework.version,
        "mlaas4hep_packages": further_packages(spec.frameworks),
    }


def _service_variables(spec: PlatformSpec) -> dict[str, Any]:
    if spec.service == "personal":
        return {"mlaas4hep_service": "personal"}
    return {
        "mlaas4hep_service": "shared",
        "mlaas4hep_domain": spec.domain,
        "mlaas4hep_issuer": spec.iam,
        "mlaas4hep_issuer_ca": spec.iam_ca or "",
        "mlaas4hep_client_id": spec.client_id,
        "mlaas4hep_executor": spec.executor,
        "mlaas4hep_endpoints": list(spec.endpoints),
        "mlaas4hep_policy": spec.policy or "",
        "mlaas4hep_groups": list(spec.groups),
        "mlaas4hep_admin_groups": list(spec.admin_groups),
        "web_proxy_domain": spec.domain,
        "web_proxy_tls": "own" if spec.certificate else spec.tls,
        "web_proxy_certificate": spec.certificate or "",
        "web_proxy_key": spec.certificate_key or "",
    }


def _cluster_variables(spec: PlatformSpec) -> dict[str, Any]:
    """What Slurm on workers of their own needs; which machines these are the groups of the inventory say."""
    if not spec.workers:
        return {}
    # the jobs of a platform of one user are held by no limit where its machines have none to offer
    limits = "where possible" if spec.service == "personal" else "required"
    return {"mlaas4hep_executor": "slurm", "slurm_limits": limits}


def _configuration_digest(variables: dict[str, Any], framework: Framework) -> str:
    """Digest of all that decides what is on the machine: when it is there, there is nothing to do."""
    base = share()
    files = [p for d in ("playbooks", "roles") for p in sorted((base / d).rglob("*")) if p.is_file()]
    paths = {"mlaas4hep_installer", "mlaas4hep_lock", "mlaas4hep_wheel"}
    files += [Path(variables["mlaas4hep_installer"]), Path(variables["mlaas4hep_lock"])]
    files += [base / "locks" / "jupyter.txt"] if variables["jupyter_kind"] != "none" else []
    words = {k: v for k, v in variables.items() if k not in paths}
    for name in ("mlaas4hep_policy", "mlaas4hep_issuer_ca", "web_proxy_certificate", "web_proxy_key"):
        if words.get(name):
            words[name] = digest_text(Path(words[name]).read_text(encoding="utf-8"))
    return f"{digest_of(files, base)}-{_framework_digest(framework)}-{digest_text(json.dumps(words, sort_keys=True))}"


def _framework_digest(framework: Framework) -> str:
    return digest_of([framework.wheel], framework.wheel.parent) if framework.wheel else framework.version


def digest_text(text: str) -> str:
    """Short digest of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def run_playbook(
    folder: Folder,
    playbook: str,
    variables: dict[str, Any],
    progress: Callable[[str], None],
    check: bool = False,
    tags: Sequence[str] = (),
    skip_tags: Sequence[str] = (),
    workers: Sequence[str] = (),
) -> PlaybookResult:
    """Run one playbook of the toolkit on the platform, or its tasks with `tags`, or those without `skip_tags`;
    and on its `workers` (names of machines).

    `progress` gets the name of each task as it starts. The whole output is kept in the platform's log folder, and the
    result beside it as JSON. Raises ProvisionError that names the failed task, its message and the log file.
    """
    import ansible_runner

    base = share()
    folder.logs.mkdir(mode=0o700, parents=True, exist_ok=True)
    log = folder.logs / f"{Path(playbook).stem}-{time.strftime('%Y%m%d-%H%M%S')}.log"
    result = PlaybookResult()
    failures: list[tuple[str, str]] = []
    started: dict[str, float] = {}

    def on_event(event: dict[str, Any]) -> bool:
        if event.get("stdout"):
            with log.open("a", encoding="utf-8") as handle:
                handle.write(f"{event['stdout']}\n")
        data = event.get("event_data", {})
        name = task_name(data)
        where = f"{data['host']}: " if workers and "host" in data else ""
        match event["event"]:
            case "playbook_on_task_start" | "playbook_on_handler_task_start":
                started[name] = time.monotonic()
                progress(name)
            case "runner_on_ok":
                result.seconds[name] = time.monotonic() - started.get(name, time.monotonic())
                if data.get("res", {}).get("changed"):
                    result.changed_tasks.append(name)
            case "runner_on_failed" if not data.get("ignore_errors"):
                failures.append((name, where + failure_message(data.get("res", {}))))
            case "runner_on_unreachable":
                failures.append((name, f"{where}the machine was not reached: {failure_message(data.get('res', {}))}"))
            case "playbook_on_stats":
                for state in ("ok", "changed", "failures", "skipped", "dark"):
                    result.counts[state] = sum(data.get(state, {}).values())
        return False

    with tempfile.TemporaryDirectory(prefix="provision-") as private:
        run = ansible_runner.run(
            private_data_dir=private,
            playbook=str(base / "playbooks" / playbook),
            inventory={
                "platform": {"hosts": {folder.name: connection_variables(folder)}},
                "workers": {"hosts": {name: connection_variables(folder) for name in workers}},
            },
            extravars=variables,
            envvars=ansible_environment(base, private),
            cmdline="--check" if check else None,
            tags=",".join(tags),
            skip_tags=",".join(skip_tags),
            event_handler=on_event,
            quiet=True,
        )
    log.with_suffix(".json").write_text(json.dumps(asdict(result), indent=1))
    if run.rc != 0:
        task, message = failures[0] if failures else ("the playbook", f"it ended with status {run.rc}")
        raise ProvisionError(
            f"Configuring {folder.name} failed in the task {task!r}: {message}.",
            f"The log is {log}; the same command again goes on from there.",
        )
    return result


def slowest_tasks(folder: Folder, most: int = 10) -> list[tuple[str, float]]:
    """The tasks that took longest when roles were last applied to the platform, with their seconds."""
    results = sorted(folder.logs.glob("*.json"), key=lambda path: path.stat().st_mtime)
    seconds = json.loads(results[-1].read_text())["seconds"] if results else {}
    return sorted(seconds.items(), key=lambda task: -task[1])[:most]


def task_name(data: dict[str, Any]) -> str:
    """The name of an event's task, with its role."""
    name = str(data.get("task", ""))
    role = data.get("role")
    return name if not role or name.startswith(f"{role} :") else f"{role} : {name}"


def failure_message(result: dict[str, Any]) -> str:
    """The last line of what a failed task said."""
    for key in ("stderr", "msg", "stdout", "reason"):
        text = str(result.get(key) or "").strip()
        if text:
            lines = text.splitlines()
            return lines[-1].strip().rstrip(".")[:500]
    return "no message"


def connection_variables(folder: Folder) -> dict[str, Any]:
    """How Ansible reaches the platform: by its own ssh configuration, with its own key and host key."""
    return {
        "ansible_python_interpreter": "/usr/bin/python3",
        "ansible_ssh_common_args": f'-F "{folder.ssh_config}"',
        "ansible_become": True,
    }


def ansible_environment(base: Path, private: str) -> dict[str, str]:
    """The toolkit's own ansible.cfg, whatever the user has; Ansible's programs are those beside this Python."""
    kept = {"HOME", "LANG", "SSH_AUTH_SOCK", "TMPDIR", "USER"}
    return {
        **{name: value for name, value in os.environ.items() if name in kept},
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "LC_ALL": "C.UTF-8",
        "ANSIBLE_CONFIG": str(base / "playbooks" / "ansible.cfg"),
        # the path of a socket must be short, and a home folder's may be long
        "ANSIBLE_SSH_CONTROL_PATH_DIR": f"{private}/cp",
        "ANSIBLE_HOST_KEY_CHECKING": "True",
        "ANSIBLE_NOCOLOR": "True",
    }
