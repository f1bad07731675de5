"""The program that divides GPUs, with a stand-in for nvidia-smi that speaks as NVIDIA's guide to MIG shows it.

No test of this project has a GPU that could be divided.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

PROGRAM = REPOSITORY / "roles/gpu_driver/files/gpu-partitions"

# state: a file with the mode and one with the instances, each with its profile; the offered ones are those of an A100
STAND_IN = r"""#!/bin/sh
cd {folder}
echo "$*" >>calls
offered="1g.10gb 2g.20gb 3g.40gb 4g.40gb 7g.80gb"
row() {{ printf '|   0  MIG %-14s %s |\n' "$1" "$2"; }}
case "$*" in
  --query-gpu=index,name,mig*) echo "0, $(cat name), $(cat mode), $(test -e asleep && echo Enabled || cat mode)" ;;
  "-i 0 -mig 1") [ -e sleeper ] && touch asleep || echo Enabled >mode ;;
  "-i 0 -mig 0") echo Disabled >mode ;;
  "mig -i 0 -lgip") for p in $offered; do row $p "19   0/7   4.75   No   14"; done ;;
  "mig -i 0 -lgi") [ -s instances ] || {{ echo "No GPU instances found: Not Found"; exit 6; }}
    for p in $(cat instances); do row $p "19   7   0:1"; done ;;
  "mig -i 0 -lci") [ -s instances ] || {{ echo "No compute instances found: Not Found"; exit 6; }}
    for p in $(cat instances); do printf '|   0      7       MIG %-14s 0   0   0:1  |\n' $p; done ;;
  "mig -i 0 -dci") [ ! -e busy ] || {{ echo "Unable to destroy: In use by another client"; exit 19; }} ;;
  "mig -i 0 -dgi") : >instances ;;
  "mig -i 0 -cgi "*" -C") echo "$5" | tr , '\n' >instances ;;
  *) echo "Invalid combination of input arguments."; exit 2 ;;
esac
"""


@dataclass
class Machine:
    """A machine with one GPU."""

    folder: Path

    def divide(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run the program."""
        command = [sys.executable, "-I", PROGRAM, *words]
        environment = {"PATH": f"{self.folder}:/usr/bin:/bin"}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    def has(self) -> list[str]:
        """The profiles of the GPU's partitions."""
        return (self.folder / "instances").read_text().split()

    def set(self, name: str, text: str = "") -> None:
        """Change its state."""
        (self.folder / name).write_text(text)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    program = tmp_path / "nvidia-smi"
    program.write_text(STAND_IN.format(folder=tmp_path))
    program.chmod(0o755)
    found = Machine(tmp_path)
    found.set("name", "NVIDIA A100-SXM4-80GB\n")
    found.set("mode", "Disabled\n")
    found.set("instances")
    return found


def test_a_gpu_is_divided_once_and_made_whole_again(machine: Machine) -> None:
    assert machine.divide("2x3g.40gb").stdout == "changed\n"
    assert machine.has() == ["3g.40gb", "3g.40gb"]
    assert machine.divide("2x3g.40gb").stdout == "unchanged\n"
    calls = (machine.folder / "calls").read_text()
    assert calls.count("-cgi") == 1 and calls.count("-mig 1") == 1 and "-dgi" not in calls
    assert machine.divide("1g.10gb+3x2g.20gb").stdout == "changed\n"
    assert machine.has() == ["1g.10gb", "2g.20gb", "2g.20gb", "2g.20gb"]
    assert machine.divide().stdout == "changed\n"
    assert machine.has() == [] and (machine.folder / "mode").read_text() == "Disabled\n"
    assert machine.divide().stdout == "unchanged\n"


def test_partitions_that_a_start_has_lost_are_made_anew(machine: Machine) -> None:
    machine.set("mode", "Enabled\n")
    assert machine.divide("7x1g.10gb").stdout == "changed\n"
    assert machine.has() == ["1g.10gb"] * 7


@pytest.mark.parametrize(
    ("state", "words", "message"),
    [
        ({"name": "Tesla T4\n", "mode": "[N/A]\n"}, "2x3g.40gb", "GPU 0 (Tesla T4) cannot be divided into partitions"),
        ({}, "2x3g.20gb", "GPU 0 (NVIDIA A100-SXM4-80GB) has no partition 3g.20gb; it has 1g.10gb, 2g.20gb"),
        ({}, "all", "'all' is no partition; write for instance 2x3g.40gb."),
        ({"mode": "Enabled\n", "instances": "7g.80gb\n", "busy": ""}, "2x3g.40gb", "In use by another client"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_in_a_sentence(state: dict[str, str], words: str, message: str, machine: Machine) -> None:
    for name, text in state.items():
        machine.set(name, text)
    done = machine.divide(words)
    assert done.returncode == 1 and message in done.stderr and done.stderr.count("\n") == 1


def test_a_gpu_without_that_mode_is_whole_already(machine: Machine) -> None:
    machine.set("mode", "[N/A]\n")
    assert machine.divide().stdout == "unchanged\n"


def test_a_mode_that_waits_for_the_next_start_is_told(machine: Machine) -> None:
    machine.set("sleeper")
    done = machine.divide("2x3g.40gb")
    assert done.returncode == 3 and "at the next start of the machine" in done.stdout
    assert machine.has() == []


def test_without_a_driver_it_says_so(machine: Machine) -> None:
    (machine.folder / "nvidia-smi").unlink()
    assert machine.divide("2x3g.40gb").stderr == "There is no nvidia-smi: the driver is not installed.\n"
