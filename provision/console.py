"""The only place that prints: progress and errors on standard error, data on standard output."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from provision.errors import ProvisionError
from provision.redact import redact

KEPT_LOGS = 50


class Stage:
    """A step in progress; on a terminal a live line with what is happening, else silent until it ends."""

    def __init__(self, status: Any, title: str) -> None:
        self._status = status
        self._title = title

    def note(self, text: str) -> None:
        """Show what is happening now."""
        if self._status is not None:
            from rich.markup import escape

            self._status.update(f"{escape(self._title)} [dim]{escape(redact(text))[:80]}[/dim]")


class _ToLog(logging.Handler):
    """Warnings of the toolkit are shown; those of libraries go to the log file, not between the lines of progress."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Show or write one record."""
        if record.name == "provision":
            self._console.say(f"  {record.getMessage()}")
        else:
            self._console.log(f"{record.name}: {record.getMessage()}")


class Console:
    """Output of one command; with `as_json` only data goes to standard output, as JSON.

    Everything that is shown also goes to a log file, which is named when the command fails.
    """

    def __init__(self, logs: Path, as_json: bool = False) -> None:
        self.as_json = as_json
        self.terminal = sys.stderr.isatty()
        self._log = logs / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
        logging.getLogger().addHandler(_ToLog(self))

    def log(self, text: str) -> None:
        """Write to the log file only."""
        folder = self._log.parent
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not self._log.exists():
            for old in sorted(folder.glob("*.log"))[: -KEPT_LOGS + 1]:
                old.unlink(missing_ok=True)
        with self._log.open("a", encoding="utf-8") as handle:
            handle.write(f"{time.strftime('%H:%M:%S')} {redact(text)}\n")

    def say(self, text: str = "") -> None:
        """A line for people, on standard error."""
        self.log(text)
        print(redact(text), file=sys.stderr, flush=True)

    def data(self, text: str) -> None:
        """A line of the result, on standard output."""
        print(redact(text), flush=True)

    def emit(self, value: Any) -> None:
        """The result as JSON, on standard output."""
        print(redact(json.dumps(value, indent=1, default=str)), flush=True)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """A table on standard output: drawn on a terminal, tabulated plainly elsewhere."""
        words = [[redact(str(cell)) for cell in row] for row in rows]
        if sys.stdout.isatty():
            from rich.console import Console as Rich
            from rich.table import Table
            from rich.text import Text

            table = Table(box=None, pad_edge=False, header_style="bold")
            for column in columns:
                table.add_column(column)
            for row in words:
                table.add_row(*(Text(cell) for cell in row))
            Rich().print(table)
            return
        widths = [max(len(line[i]) for line in [list(columns), *words]) for i in range(len(columns))]
        for line in [list(columns), *words]:
            print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip(), flush=True)

    @contextmanager
    def stage(self, title: str) -> Iterator[Stage]:
        """A step: a live line on a terminal, and a permanent line with its duration when it ends."""
        started = time.monotonic()
        status = None
        if self.terminal:
            from rich.console import Console as Rich
            from rich.markup import escape

            status = Rich(stderr=True).status(escape(title))
            status.start()
        try:
            yield Stage(status, title)
        except BaseException:
            self._end(status, f"  FAILED  {title}  ({time.monotonic() - started:.1f} s)")
            raise
        self._end(status, f"  done    {title}  ({time.monotonic() - started:.1f} s)")

    def _end(self, status: Any, line: str) -> None:
        if status is not None:
            status.stop()
        self.say(line)

    def skipped(self, title: str) -> None:
        """A step that was done already."""
        self.say(f"  there   {title}")

    def confirm(self, question: str) -> bool:
        """Ask on the terminal; without one the answer is no."""
        if not sys.stdin.isatty():
            return False
        print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    def fail(self, error: ProvisionError) -> NoReturn:
        """Show an error with its details and remedy, and end with its exit status."""
        self.log(traceback.format_exc())
        if error.details:
            print("\n".join(f"    | {line}" for line in redact(error.details).splitlines()), file=sys.stderr)
        self.say(f"provision: {error}")
        if error.exit_code != 2:
            print(f"The full log of this command is {self._log}.", file=sys.stderr)
        raise SystemExit(error.exit_code)

    def crash(self, error: Exception) -> NoReturn:
        """Show an error that nobody foresaw: one sentence, the traceback in the log file."""
        self.log(traceback.format_exc())
        print(
            redact(f"provision: an unexpected error, {type(error).__name__}: {' '.join(str(error).split())[:300]}."),
            f"\nThis is a defect of the toolkit; the traceback is in {self._log}.",
            file=sys.stderr,
        )
        raise SystemExit(1)
