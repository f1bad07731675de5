"""Examines this computer and a platform, from the cloud to the services, and says what is wrong and what to do."""

from __future__ import annotations

import shutil
import stat
from dataclasses import dataclass

from provision.clouds.base import Cloud, Platform
from provision.errors import ProvisionError
from provision.record import Home
from provision.remote import Remote

LEAST_DISK_GB = 2
_PROBES = {
    "boot": (["systemctl", "is-system-running"], "running"),
    "framework": (["mlaas4hep", "--version"], ""),
    "XRootD client": (["xrdcp", "--version"], ""),
}


@dataclass(frozen=True)
class Finding:
    """The outcome of one check, and what to do when it is not good."""

    check: str
    good: bool
    words: str
    remedy: str = ""


def examine_computer(home: Home) -> list[Finding]:
    """Check the programs that the toolkit runs, and that private files are private."""
    findings = []
    for program in ("ssh", "ssh-keygen", "tar"):
        path = shutil.which(program)
        findings.append(
            Finding(program, path is not None, path or "missing", f"Install the package that has {program}.")
        )
    for folder in home.folders():
        mode = stat.S_IMODE(folder.key.stat().st_mode) if folder.key.exists() else 0o600
        findings.append(Finding(f"key of {folder.name}", mode == 0o600, f"mode {mode:o}", f"chmod 600 {folder.key}"))
    return findings


def examine_platform(cloud: Cloud, platform: Platform) -> list[Finding]:
    """Check the cloud's word, the SSH connection, the machine's boot, services, disk and GPU."""
    name = platform.name
    try:
        state = cloud.state(platform)
    except ProvisionError as error:
        return [Finding("cloud", False, error.message, error.remedy)]
    asleep = state in ("stopped", "released")
    remedy = f"`provision start {name}`" if asleep else f"`provision create {name}` with the same options"
    findings = [Finding("machine", state == "running", state, remedy)]
    if state != "running":
        return findings
    with Remote(platform.folder) as remote:
        try:
            remote.wait(1)
        except ProvisionError as error:
            console = cloud.console(platform).strip().splitlines()[-1:] or ["the cloud shows no console log"]
            return [*findings, Finding("SSH", False, error.message, f"Last line of its console: {console[0]}")]
        findings.append(Finding("SSH", True, "verified"))
        return findings + _on_the_machine(remote, platform)


def _on_the_machine(remote: Remote, platform: Platform) -> list[Finding]:
    findings = []
    probes = dict(_PROBES) if platform.record.state == "ready" else {"boot": _PROBES["boot"]}
    if platform.record.state == "ready" and platform.spec.jupyter:
        unit = "platform-jupyterhub.service" if platform.spec.domain else "platform-jupyter.service"
        probes["notebooks"] = (["systemctl", "is-active", unit], "active")
    for check, (words, wanted) in probes.items():
        try:
            lines = remote.run(["sh", "-c", '"$@" 2>&1 || true', "sh", *words]).strip().splitlines()
        except ProvisionError as error:
            lines = [error.message]
        said = lines[-1] if lines else "no answer"
        good = said == wanted if wanted else bool(lines) and "not found" not in said
        findings.append(
            Finding(check, good, said, "`systemctl --failed` there tells which unit." if wanted else _AGAIN)
        )
    free = int("".join(c for c in remote.run(["df", "--output=avail", "-BG", "/"]).splitlines()[-1] if c.isdigit()))
    findings.append(Finding("free disk", free >= LEAST_DISK_GB, f"{free} GB", "Remove old jobs or data there."))
    if platform.spec.gpu:
        gpu = remote.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], check=False).strip()
        findings.append(Finding("GPU", bool(gpu), gpu.replace("\n", ", ") or "nvidia-smi shows none", _AGAIN))
    return findings


_AGAIN = "Run `provision create` with the same options again: it applies the roles."
