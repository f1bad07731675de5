"""What an existing machine is examined for: the probe as this computer answers it, and how answers are judged."""

from __future__ import annotations

import subprocess
import time

import pytest

from provision.clouds._precheck import PROBE, examine

GOOD = {
    "system": "debian 12",
    "sudo": "yes",
    "cpus": "4",
    "memory": str(8 * 2**20),
    "disk /": str(50 * 2**20),
    "disk /opt": str(50 * 2**20),
    "disk /var": str(50 * 2**20),
    "python": "3.11.2",
    "time": "1000",
}


def judged(**changes: str) -> dict[str, tuple[bool, str]]:
    """The checks of a good machine with changes; an empty value is what a command that fails leaves."""
    lines = [f"{name}={value}" for name, value in (GOOD | {k.replace("_", " "): v for k, v in changes.items()}).items()]
    return {check.name: (check.good, check.found) for check in examine("\n".join(lines), 1000.5, 1001.5).checks}


def test_a_good_machine_has_nothing_wrong():
    assert {name for name, (good, _) in judged().items() if not good} == set()
    host = examine("\n".join(f"{name}={value}" for name, value in GOOD.items()), 1000, 1000)
    assert host.facts == "debian 12, 4 CPU, 8 GB memory, 50 GB free disk"


@pytest.mark.parametrize(
    ("change", "value", "check", "words"),
    [
        ("system", "debian 11", "system", "debian 11"),
        ("system", "rocky 9.3", "system", "rocky 9.3"),
        ("system", "", "system", "unknown"),
        ("sudo", "sudo: a password is required", "sudo", "a password is required"),
        ("sudo", "", "sudo", "not there"),
        ("memory", str(2**19), "memory", "0.5 GB of memory"),
        ("disk_/", str(2**20), "disk of /", "1.0 GB of free disk"),
        ("disk_/opt", str(5 * 2**20), "disk of /opt", "5.0 GB of free disk"),
        ("python", "3.6.9", "python3", "3.6.9"),
        ("python", "", "python3", "not there"),
        ("time", "1600", "clock", "598 s off this computer's"),
        ("time", "400", "clock", "600 s off this computer's"),
    ],
)
def test_what_does_not_serve_is_named(change: str, value: str, check: str, words: str):
    assert judged(**{change: value})[check] == (False, words)


def test_another_package_manager_is_told_and_waited_for():
    good, words = judged(lock="/var/lib/dpkg/lock-frontend by unattended-upgr 4711")["package managers"]
    assert good and "unattended-upgr 4711" in words and "wait" in words


def test_a_folder_that_is_not_there_is_not_examined():
    assert "disk of /opt" not in judged(**{"disk_/opt": ""})


def test_an_answer_that_is_none_has_all_wrong():
    checks = examine("Welcome!\n", 0, 0).checks
    assert {check.name for check in checks if check.good} == {"package managers"}


def test_the_probe_tells_all_of_this_computer():
    before = time.time()
    done = subprocess.run(["sh"], input=PROBE, capture_output=True, text=True, check=True)
    host = examine(done.stdout, before, time.time())
    assert {"system", "sudo", "python3", "memory", "disk of /", "clock"} <= {check.name for check in host.checks}
    good = {check.name for check in host.checks if check.good}
    assert {"python3", "memory", "clock"} <= good, host
