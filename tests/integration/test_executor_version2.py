"""Limits by version 2 of control groups, delegated to an account without rights: in a kernel of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.debian import do_without, lacking
from tests.integration import version2_machine

TIMEOUT = 600


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """How the jobs of `version2_machine` have ended."""
    if reason := lacking({"bwrap": "bubblewrap", "ip": "iproute2", "linux.uml": "user-mode-linux"}):
        do_without(reason)
    folder = tmp_path_factory.mktemp("machine")
    workflow, result = folder / "workflow", folder / "result.json"
    subprocess.run(
        [sys.executable, "-m", "mlaas4hep.cli", "example-data", str(workflow), "--events", "200"],
        capture_output=True,
        check=True,
    )
    kernel = ["linux.uml", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "rw", "mem=3000M", "quiet"]
    console = ["con=null", "con0=fd:0,fd:1", f"init={sys.executable}", "--"]
    done = subprocess.run(
        [*kernel, *console, version2_machine.__file__, str(workflow), str(result)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={"PATH": os.environ["PATH"], "TMPDIR": "/dev/shm", "HOME": str(folder)},
        cwd=folder,
        text=True,
        errors="replace",
        timeout=TIMEOUT,
        check=False,
    )
    assert result.exists(), done.stdout
    found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return found


def test_memory_beyond_the_limit_is_recorded_by_a_supervisor_that_lives_on(outcomes: dict[str, Any]) -> None:
    outcome = outcomes["memory"]
    assert outcome["state"] == "out-of-memory", outcome
    assert outcome["group"].startswith("/sys/fs/cgroup/unit-memory/")
    assert (outcome["left"], outcome["held"]) == (["supervisor"], False)


def test_a_cancelled_job_ends_with_all_of_its_processes(outcomes: dict[str, Any]) -> None:
    outcome = outcomes["daemon"]
    assert (outcome["state"], outcome["left"], outcome["held"]) == ("cancelled", ["supervisor"], False), outcome


def test_a_supervisor_without_rights_gives_its_job_an_endpoint_of_any_port(outcomes: dict[str, Any]) -> None:
    outcome = outcomes["endpoint"]
    assert (outcome["state"], outcome["left"], outcome["held"]) == ("failed", ["supervisor"], False), outcome
    assert "b'welcome'" in outcome["reason"], outcome
