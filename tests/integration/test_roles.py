"""The roles on machines with a real systemd: check -> converge -> idempotence -> verify, by molecule."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, long
from tests.virtual import machine

pytestmark = pytest.mark.machine

SCENARIOS = sorted(path.parent.name for path in (REPOSITORY / "molecule").glob("*/molecule.yml"))


def test_there_are_scenarios():
    assert SCENARIOS == ["admin", "cvmfs", "mlaas4hep", "service", "slurm", "system"]


# tests/e2e has a personal platform and a shared one made, made again and used in any case
@long
@pytest.mark.parametrize("scenario", [name for name in SCENARIOS if name != "slurm"])
def test_scenario(scenario: str, tmp_path: Path, computer_with_machines: None):
    run_molecule(scenario, PROVISION_HOME=str(tmp_path))
    assert not (tmp_path / "platforms").exists() or list((tmp_path / "platforms").iterdir()) == []


def test_scenario_with_a_kernel_of_its_own(tmp_path: Path):
    """Slurm limits jobs by control groups of version 2, whatever this computer has."""
    if reason := machine.inability():
        pytest.skip(reason)
    with machine.running("molecule-slurm", tmp_path) as made:
        run_molecule("slurm", SLURM_SSH_CONFIG=str(made.ssh_config))


def run_molecule(scenario: str, **environment: str) -> None:
    programs = Path(sys.executable).parent
    done = subprocess.run(
        [programs / "molecule", "test", "--scenario-name", scenario],
        cwd=REPOSITORY,
        env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:]
