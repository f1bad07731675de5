"""The roles on machines with a real systemd: check -> converge -> idempotence -> verify, by molecule."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

pytestmark = pytest.mark.machine

SCENARIOS = sorted(path.parent.name for path in (REPOSITORY / "molecule").glob("*/molecule.yml"))


def test_there_are_scenarios():
    assert SCENARIOS == ["mlaas4hep", "service", "slurm", "system"]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_scenario(scenario: str, tmp_path: Path, computer_with_machines: None):
    if scenario == "slurm" and not Path("/sys/fs/cgroup/cgroup.controllers").exists():
        pytest.skip("the role slurm needs control groups of version 2")
    programs = Path(sys.executable).parent
    done = subprocess.run(
        [programs / "molecule", "test", "--scenario-name", scenario],
        cwd=REPOSITORY,
        env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "PROVISION_HOME": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:]
    assert not (tmp_path / "platforms").exists() or list((tmp_path / "platforms").iterdir()) == []
