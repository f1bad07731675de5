"""What a cluster is for, the same on every cloud: two workers train one model, and the cluster becomes smaller."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from provision.framework import find_framework, further_packages
from tests.conftest import Command
from tests.integration.releases import variant
from tests.slurm.cluster import wait_until

AUC = 0.75
_MODEL = """import torch


def model(idim):
    return torch.nn.Sequential(torch.nn.Linear(idim, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1))
"""
_SLOW = "import time\n\n\ndef model(idim):\n    time.sleep(3600)\n"


def torch_wheel(folder: Path) -> Path:
    """The wheel of PyTorch that pip gets on this computer: that for CPUs where its index has it."""
    requirement = next(word for word in further_packages(["torch"]) if word.startswith("torch=="))
    words = ["-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), requirement]
    subprocess.run([sys.executable, *words], check=True)
    (wheel,) = folder.glob("torch-*.whl")
    return wheel


def make_workflow(provision: Command, folder: Path, model: str = _MODEL) -> Path:
    """The generated example, with a module of PyTorch."""
    make = ["mlaas4hep", "example-data", folder, "--events", "4000"]
    subprocess.run(make, env=provision.environment, check=True, capture_output=True)
    (folder / "model.py").write_text(model)
    return folder


def two_workers_train_one_model(provision: Command, name: str, folder: Path) -> None:
    """The job has a process on each of them, and one model comes of it."""
    log = provision("train", name, str(make_workflow(provision, folder / "together")), "--nodes", "2")
    assert "test auc" in log, log
    job = json.loads(provision("jobs", name, "--json"))[-1]
    assert job["state"] == "finished"
    parts = provision("ssh", name, "--", "sudo", "sh", "-c", "ls /var/lib/mlaas4hep/jobs/*/log.1")
    assert job["identifier"] in parts
    accounts = provision("ssh", name, "--", "scontrol", "show", "jobs", "--oneliner")
    assert f"NodeList={name}-w[1-2]" in accounts, accounts
    provision("fetch", name, "--to", str(folder / "model"))
    metrics = json.loads((folder / "model" / "metrics.json").read_text())
    assert metrics["final"]["test"]["auc"] >= AUC


def it_is_looked_after(provision: Command, name: str, folder: Path) -> None:
    """What administrators do to a platform, they do to its workers too, and the cluster goes on."""

    def admin(verb: str, *words: str) -> dict[str, Any]:
        done = provision.run("admin", verb, name, "--json", "--yes", *words)
        assert done.returncode == 0, f"{done.stdout}{done.stderr}"
        return dict(json.loads(done.stdout)["platforms"][0])

    def on(machine: str, *words: str) -> str:
        config = provision("ssh", name, "--print-config").strip()
        done = subprocess.run(["ssh", "-F", config, machine, *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def environments() -> list[str]:
        return [on(machine, "readlink", "/opt/mlaas4hep/venv") for machine in (name, f"{name}-w1", f"{name}-w2")]

    def nodes() -> str:
        found = admin("health")["report"]["findings"]
        return str(next(finding["words"] for finding in found if finding["check"] == "nodes"))

    assert admin("audit")["changed"] == []
    assert nodes() == "2 at work"
    first = environments()
    assert len(set(first)) == 1
    wheel = find_framework("", Path(os.environ["PROVISION_CACHE"])).wheel
    new = ["--packages", "none", "--wheel", str(variant(wheel, folder / "new", "mlaas4hep/__init__.py", "\n# newer\n"))]
    foretold = set(admin("update", *new, "--check")["changed"])
    assert environments() == first
    assert set(admin("update", *new)["changed"]) == foretold
    newer = environments()
    assert len(set(newer)) == 1 and newer != first
    assert admin("update", *new)["changed"] == []
    admin("update", "--rollback")
    assert environments() == first

    admin("hardening")
    # the controller hears of its nodes through the firewall
    on(f"{name}-w1", "sudo", "systemctl", "restart", "slurmd.service")
    wait_until(lambda: nodes() == "2 at work")


def it_becomes_smaller(provision: Command, name: str, folder: Path) -> None:
    """The worker that goes is waited for no longer than it works; the job on the other one goes on."""
    slow = make_workflow(provision, folder / "slow", _SLOW)
    job = json.loads(provision("train", name, str(slow), "--detach", "--json"))["identifier"]
    before = cpus_of_all(provision, name)
    provision("scale", name, "1", "--yes")
    assert json.loads(provision("list", "--json"))[0]["workers"] == "1 running"
    assert cpus_of_all(provision, name) == before // 2
    assert provision("ssh", name, "--", "sinfo", "--noheader", "--format=%D").strip() == "1"
    states = {one["identifier"]: one["state"] for one in json.loads(provision("jobs", name, "--json"))}
    assert states[job] == "running"
    provision("cancel", name, job)
    refused = provision.fails("train", name, str(folder / "together"), "--nodes", "2", status=1)
    assert "1 node" in refused, refused


def cpus_of_all(provision: Command, name: str) -> int:
    """What the service hands out to jobs in all."""
    settings = tomllib.loads(provision("ssh", name, "--", "sudo", "cat", "/etc/mlaas4hep/service.toml"))
    return int(settings["jobs"]["cpus"])
