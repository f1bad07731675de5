"""Several processes that train one model together: the contract between them, and their start on this computer.

Each process finds in its environment

========================  =========================================================================================
MLAAS4HEP_RENDEZVOUS      where they meet: `file:///...` on one computer, `tcp://HOST:PORT` across computers
RANK, WORLD_SIZE          its number from 0, and how many there are; without them SLURM_PROCID and SLURM_NTASKS, so that
                          `srun` can start the processes itself
GLOO_SOCKET_IFNAME        the network interface between them; `launch` sets the loopback interface
========================  =========================================================================================

A process without MLAAS4HEP_RENDEZVOUS trains alone. Each takes a range of every file's rows (`shard`) and
batch_size / processes of them a step; a step uses the events of all processes, and its result is that of one process
with the same events in its batch, within rounding.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlaas4hep.errors import MlaasError, UsageError

RENDEZVOUS = "MLAAS4HEP_RENDEZVOUS"
_POLL_SECONDS = 0.1
_GRACE_SECONDS = 10.0


@dataclass(frozen=True)
class Workers:
    """This process among those that train together.

    Attributes:
        rank: its number, from 0; number 0 writes the results.
        world: how many there are.
        rendezvous: URL of the place where they meet.
    """

    rank: int = 0
    world: int = 1
    rendezvous: str = ""

    @classmethod
    def here(cls, environment: Mapping[str, str] = os.environ) -> Workers:
        """What the environment says. Raises MlaasError where it is contradictory."""
        rendezvous = environment.get(RENDEZVOUS, "")
        if not rendezvous:
            return cls()
        try:
            rank = int(environment.get("RANK") or environment["SLURM_PROCID"])
            world = int(environment.get("WORLD_SIZE") or environment["SLURM_NTASKS"])
        except (KeyError, ValueError) as error:
            raise MlaasError(f"{RENDEZVOUS} is set, but RANK or WORLD_SIZE is not a number.", "Set them.") from error
        if not 0 <= rank < world:
            raise MlaasError(f"RANK is {rank}, but WORLD_SIZE is {world}.", "Number the processes from 0.")
        return cls(rank, world, rendezvous)

    def shard(self, groups: Sequence[NDArray[np.integer[Any]]]) -> list[NDArray[np.integer[Any]]]:
        """This process's range of each file's rows; all ranges together hold each row once."""
        return [group[self._edge(self.rank, group.size) : self._edge(self.rank + 1, group.size)] for group in groups]

    def _edge(self, rank: int, size: int) -> int:
        return rank * size // self.world

    def batch_size(self, together: int) -> int:
        """Events of this process in a step of `together` events; raises UsageError unless all take equally many."""
        if together % self.world:
            raise UsageError(
                f"batch_size = {together} cannot be shared by {self.world} workers.",
                f"Choose a multiple of {self.world}.",
            )
        return together // self.world


def launch(workers: int, command: Sequence[str]) -> int:
    """Run a command in several processes of this computer that meet; returns 0, or the first failure's exit status.

    When one fails, the others are ended, because they would wait for it.
    """
    with tempfile.TemporaryDirectory(prefix="mlaas4hep-") as folder:
        meeting = {RENDEZVOUS: (Path(folder) / "rendezvous").as_uri(), "WORLD_SIZE": str(workers)}
        meeting |= {"GLOO_SOCKET_IFNAME": "lo", "PYTHONUNBUFFERED": "1"}
        processes: list[subprocess.Popen[bytes]] = []
        try:
            for rank in range(workers):
                environment = os.environ | meeting | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                processes.append(subprocess.Popen(list(command), env=environment))
            return _wait(processes)
        finally:
            _end(processes)


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> int:
    while True:
        states = [process.poll() for process in processes]
        failed = [state for state in states if state]
        if failed:
            return failed[0]
        if None not in states:
            return 0
        time.sleep(_POLL_SECONDS)


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + _GRACE_SECONDS
    for process in processes:
        try:
            process.wait(max(deadline - time.monotonic(), 0.0))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
