"""Runs `provision` and kills it (SIGKILL) in a step: `python -m tests.integration.killed STEP MOMENT ARGS...`.

MOMENT is `intended` (the ledger says so, nothing was made yet), `made` (it was made, the ledger does not know it), or
the name of a role's task, when it begins.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any

from provision.cli import main
from provision.console import Stage
from provision.record import Folder, Record
from tests.conftest import REPOSITORY, Command


def killed(command: Command, step: str, moment: str, *words: str) -> None:
    """Run `provision WORDS` and have it killed there."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.killed", step, moment, *words],
        cwd=REPOSITORY,
        env=command.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


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

    def die_in_the_task(stage: Stage, text: str) -> None:
        if text == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    Folder.save = save_and_die  # type: ignore[method-assign]
    Record.note = die_before_noting  # type: ignore[method-assign]
    Stage.note = die_in_the_task  # type: ignore[method-assign]


if __name__ == "__main__":
    kill_at(*sys.argv[1:3])
    sys.argv = ["provision", *sys.argv[3:]]
    main()
