"""Programs that print what those of a platform print, for what no computer of the tests has: GPUs, nodes, jobs."""

from __future__ import annotations

from pathlib import Path

# as the driver prints it: two whole GPUs, the second one in use by instances (MIG), of which it tells less
NVIDIA = """\
0, Tesla T4, GPU-1d1e3ba8-0b1e-4d9d-8a3f-0f0f0f0f0f0f, 550.90.07, 87, 10240, 15360, 63, 69.42, 0
1, NVIDIA A100-PCIE-40GB, GPU-2c3f, 550.90.07, [N/A], 512, 40960, 31, 35.10, [N/A]
"""
# NODE|STATE|ALLOCATED/IDLE/OTHER/TOTAL, n1 in two partitions, n2 out of reach
SINFO = "n1|mixed|2/2/0/4\nn1|mixed|2/2/0/4\nn2|down*|0/0/8/8\n"
SQUEUE_STATES = "RUNNING\nPENDING\nPENDING\n"
SQUEUE = "7|RUNNING|2|2000M|1:02|mlaas4hep|j1-1\n8|PENDING|1|100M|0:00|ada|a|b\n"
UNITS = """\
Id=mlaas4hep-job@higgs_1.service
ActiveState=active
ActiveEnterTimestampMonotonic=1000000
CPUUsageNSec=2500000000
MemoryCurrent=1048576

Id=mlaas4hep-job@old.service
ActiveState=inactive
CPUUsageNSec=[not set]
MemoryCurrent=[not set]

Id=mlaas4hep-job@new_2.service
ActiveState=activating
ActiveEnterTimestampMonotonic=0
CPUUsageNSec=18446744073709551615
MemoryCurrent=[not set]
"""


class Programs:
    """A folder of programs, for the front of a PATH."""

    def __init__(self, parent: Path) -> None:
        self.folder = parent / "programs"
        self.folder.mkdir()

    def put(self, name: str, *cases: tuple[str, str], fails: bool = False) -> None:
        """A program that prints the text of the first case whose words are among its arguments."""
        found = [f'case "$*" in *{words!r}*) cat <<"END"\n{text}END\nexit;; esac' for words, text in cases]
        path = self.folder / name
        path.write_text("\n".join(["#!/bin/sh", *found, "exit 1" if fails else "exit 0", ""]))
        path.chmod(0o755)

    def put_all(self) -> None:
        """Those of a platform with GPUs, Slurm and jobs."""
        self.put("nvidia-smi", ("--query-gpu", NVIDIA))
        self.put("slurmctld")
        self.put("sinfo", ("--Node", SINFO))
        self.put("squeue", ("--format=%T", SQUEUE_STATES), ("--sort", SQUEUE))
        self.put("systemctl", ("mlaas4hep-job@", UNITS))
