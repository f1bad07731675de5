"""Runs `provision` and kills it (SIGKILL) in a step: `python -m tests.integration.killed STEP MOMENT ARGS...`.

MOMENT is `intended` (the ledger says so, nothing was made yet) or `made` (it was made, the ledger does not know it).
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from provision.cli import main
from provision.record import Folder, Record


def kill_at(step: str, moment: str) -> None:
    """Arrange for this process to be killed there."""
    save, note = Folder.save, Record.note

    def save_and_die(folder: Folder, record: Record) -> None:
        save(folder, record)
        entry = record.entry(step)
        if moment == "intended" and entry and entry.state == "intended":
            os.kill(os.getpid(), signal.SIGKILL)

    def die_before_noting(record: Record, name: str, state: Any, resource: Any = None) -> None:
        entry = record.entry(step)
        if moment == "made" and name == step and state == "done" and entry and entry.state == "intended":
            os.kill(os.getpid(), signal.SIGKILL)
        note(record, name, state, resource)

    Folder.save = save_and_die  # type: ignore[method-assign]
    Record.note = die_before_noting  # type: ignore[method-assign]


if __name__ == "__main__":
    kill_at(*sys.argv[1:3])
    sys.argv = ["provision", *sys.argv[3:]]
    main()
