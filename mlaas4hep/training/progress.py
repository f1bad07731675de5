"""What a training tells while it runs, and three ways to show it: bars on a terminal, plain lines, JSON lines."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, TextIO

_JSON_INTERVAL = 0.5


@dataclass(frozen=True)
class Stage:
    """A new part of the work begins."""

    text: str


@dataclass(frozen=True)
class Note:
    """Something worth knowing: a branch that is skipped, values that are missing."""

    text: str


@dataclass(frozen=True)
class Reading:
    """Events read so far."""

    done: int
    total: int


@dataclass(frozen=True)
class Step:
    """Training events seen so far in an epoch, which counts from 1."""

    epoch: int
    epochs: int
    done: int
    total: int


@dataclass(frozen=True)
class Epoch:
    """The measures after an epoch, which counts from 1."""

    epoch: int
    epochs: int
    measures: dict[str, float]
    seconds: float


@dataclass(frozen=True)
class Finished:
    """The training is over and its bundle written."""

    bundle: str
    measures: dict[str, float]
    seconds: float


Event = Stage | Note | Reading | Step | Epoch | Finished
Tell = Callable[[Event], None]


def silent(_: Event) -> None:
    """Tell nothing."""


def measures_text(measures: dict[str, float]) -> str:
    """Measures as running text, `loss 0.3120  auc 0.9510`; what is counted is a whole number."""
    return "  ".join(
        f"{name} {value}" if isinstance(value, int) else f"{name} {value:.4f}" for name, value in measures.items()
    )


def plain(stream: TextIO) -> Tell:
    """One line a stage, note and epoch."""

    def tell(event: Event) -> None:
        text = _line(event)
        if text:
            print(text, file=stream, flush=True)

    return tell


def _line(event: Event) -> str:
    match event:
        case Stage(text):
            return text
        case Note(text):
            return f"note: {text}"
        case Epoch(epoch, epochs, measures, seconds):
            return f"epoch {epoch}/{epochs}  {measures_text(measures)}  {seconds:.1f} s"
        case Finished(bundle, measures, seconds):
            return f"{measures_text(measures)}\nwrote {bundle} after {seconds:.1f} s".lstrip()
    return ""


def as_record(event: Event) -> dict[str, Any]:
    """The event as a JSON object: its kind in lower case under `event`, beside its own fields."""
    return {"event": type(event).__name__.lower()} | asdict(event)


def json_lines(stream: TextIO) -> Tell:
    """One JSON object a line; steps and readings at most twice a second."""
    last = -_JSON_INTERVAL

    def tell(event: Event) -> None:
        nonlocal last
        if isinstance(event, Reading | Step) and event.done < event.total:
            now = time.monotonic()
            if now - last < _JSON_INTERVAL:
                return
            last = now
        print(json.dumps(as_record(event)), file=stream, flush=True)

    return tell


def both(first: Tell, second: Tell) -> Tell:
    """Tell two listeners."""

    def tell(event: Event) -> None:
        first(event)
        second(event)

    return tell


@contextmanager
def bars(stream: TextIO) -> Iterator[Tell]:
    """A bar for reading and one an epoch, on a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(file=stream, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", visible=False, total=None)

        def tell(event: Event) -> None:
            match event:
                case Reading(done, total):
                    progress.update(task, description="events", completed=done, total=total, visible=True)
                case Step(epoch, epochs, done, total):
                    progress.update(
                        task, description=f"epoch {epoch}/{epochs}", completed=done, total=total, visible=True
                    )
                case _:
                    progress.update(task, visible=False)
                    console.print(_line(event), markup=False)

        yield tell


@contextmanager
def shown(mode: str) -> Iterator[Tell]:
    """The listener of a mode, on standard error: `auto` (bars on a terminal, else plain), `plain`, `json`, `none`."""
    stream = sys.stderr
    if mode == "auto":
        mode = "bars" if stream.isatty() else "plain"
    if mode == "bars":
        with bars(stream) as tell:
            yield tell
    else:
        yield {"plain": plain(stream), "json": json_lines(stream), "none": silent}[mode]
