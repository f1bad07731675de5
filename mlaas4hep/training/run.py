"""One training run: epochs, measures, early stopping, and checkpoints that a repeated command goes on from."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlaas4hep.data.batches import Batches, rows_of_part
from mlaas4hep.data.schema import Schema
from mlaas4hep.data.split import Part
from mlaas4hep.data.store import PackedStore
from mlaas4hep.training.contract import Adapter, Feed, Progress, Task
from mlaas4hep.training.launch import Workers
from mlaas4hep.training.measures import Scored, measures, score
from mlaas4hep.training.parameters import Parameters
from mlaas4hep.training.progress import Epoch, Note, Stage, Step, Tell
from mlaas4hep.training.targets import Targets

_MEASURED_AT_A_TIME = 4096
_SHOWN = ("loss", "auc", "accuracy", "mae", "r2")
_STATE = "run.json"


class Feeds:
    """The events of each part, as training and measuring take them."""

    def __init__(self, store: PackedStore, schema: Schema, targets: Targets, parameters: Parameters) -> None:
        self._store, self._schema, self._targets, self._parameters = store, schema, targets, parameters
        self._rows = {part: rows_of_part(store, part) for part in Part}
        self._workers = Workers.here()
        self.train = self.of(self._workers.shard(self._rows[Part.TRAIN]))
        self.validation = self._to_measure(self._rows[Part.VALIDATION])
        self.test = self._to_measure(self._rows[Part.TEST])
        # as many training events as there are to validate, so that both curves have the same precision
        self.sample = self._to_measure(_evenly(self._rows[Part.TRAIN], self.validation.events))

    def of(self, rows: Sequence[NDArray[np.integer[Any]]]) -> Feed:
        """Events to train on, by groups of rows."""
        parameters = self._parameters
        batches = Batches(
            self._store,
            self._schema,
            rows,
            batch_size=self._workers.batch_size(parameters.batch_size),
            shuffle=parameters.shuffle,
            seed=parameters.seed,
        )
        return Feed(batches, self._targets.values, self._targets.weights)

    def pieces(self, events: int) -> list[Feed]:
        """The training events in pieces of a number of events, each with its own feed, for `"training": "chunks"`."""
        order = np.concatenate(list(self.train.batches.order(0)))
        size = events if events > 0 else order.size
        return [self.of([order[start : start + size]]) for start in range(0, order.size, size)]

    def _to_measure(self, rows: Sequence[NDArray[np.integer[Any]]]) -> Feed:
        batches = Batches(self._store, self._schema, rows, batch_size=_MEASURED_AT_A_TIME)
        return Feed(batches, self._targets.values, self._targets.measured)


class Run:
    """One training.

    Args:
        adapter: the model.
        feeds: the events.
        task: what is learned.
        parameters: epochs, patience, kind of training.
        tell: listener of the progress.
        folder: where checkpoints are kept while it runs.
    """

    def __init__(
        self, adapter: Adapter, feeds: Feeds, task: Task, parameters: Parameters, tell: Tell, folder: Path
    ) -> None:
        self._adapter, self._feeds, self._task = adapter, feeds, task
        self._parameters, self._tell, self._folder = parameters, tell, folder
        self.history: list[dict[str, Any]] = []
        self.kept = 0

    def fit(self) -> None:
        """Train; afterwards the model is the last one, or the best one with `patience`."""
        first = next(self._feeds.train.chunks(0))
        self._adapter.check(first.values[:2], first.mask[:2])
        if hasattr(self._adapter, "validation"):
            self._adapter.validation = self._feeds.validation
        if hasattr(self._adapter, "checkpoints"):
            self._adapter.checkpoints = self._folder / "rounds"
        size = f"{self._adapter.size} weights" if self._adapter.size else self._adapter.framework
        mask = ", with the mask" if self._adapter.takes_mask else ""
        self._tell(Stage(f"training {size} on {self._feeds.train.events} events{mask}"))
        steps = self._steps()
        begin = self._resume()
        for number in range(begin, len(steps)):
            clock = time.monotonic()
            more = steps[number](number)
            self._measured(number, len(steps) if more else number + 1, time.monotonic() - clock)
            if not more or self._exhausted():
                break
            self._checkpoint()
        self._take_best()

    @property
    def test(self) -> Feed:
        """The events that nothing was learned or chosen with."""
        return self._feeds.test

    def scored(self) -> dict[str, Scored]:
        """The model's predictions of a sample of the training events, of the validation and of the test events."""
        feeds = {"train": self._feeds.sample, "validation": self._feeds.validation, "test": self._feeds.test}
        return {name: score(self._adapter, feed) for name, feed in feeds.items()}

    def _steps(self) -> list[Callable[[int], bool]]:
        """What is done one after another, with measures and a checkpoint in between."""
        if self._parameters.training == "standard":
            return [self._epoch] * self._parameters.epochs
        pieces = self._feeds.pieces(self._parameters.chunk_size)
        return [self._piece(piece) for piece in pieces]

    def _epoch(self, number: int) -> bool:
        train = self._feeds.train
        return self._adapter.fit_epoch(train, number, self._shown(number, train.events))

    def _piece(self, piece: Feed) -> Callable[[int], bool]:
        def fit(number: int) -> bool:
            epochs = self._parameters.epochs
            for epoch in range(epochs):
                self._adapter.fit_epoch(piece, number * epochs + epoch, self._shown(epoch, piece.events))
            return True

        return fit

    def _shown(self, epoch: int, events: int) -> Progress:
        return lambda done: self._tell(Step(epoch + 1, self._parameters.epochs, done, events))

    def _measured(self, number: int, steps: int, seconds: float) -> None:
        train, validation = (
            measures(score(self._adapter, feed), self._task, self._parameters.threshold)
            for feed in (self._feeds.sample, self._feeds.validation)
        )
        found = {name: train[name] for name in _SHOWN if name in train}
        found |= {f"val_{name}": validation[name] for name in _SHOWN if name in validation}
        self._tell(Epoch(number + 1, steps, {n: math.nan if v is None else v for n, v in found.items()}, seconds))
        self.history.append({"epoch": number + 1} | found | {"seconds": round(seconds, 3)})

    def _best(self) -> int:
        """The epoch, from 0, with the least validation loss."""
        losses = [math.inf if entry["val_loss"] is None else entry["val_loss"] for entry in self.history]
        return int(np.argmin(losses))

    def _exhausted(self) -> bool:
        """Whether `patience` is used up; keeps the best model so far for the end."""
        patience = self._parameters.patience
        if not patience:
            return False
        best, last = self._best(), len(self.history) - 1
        if best == last:
            _replace(self._folder / "best", self._adapter.save_state)
        if last - best < patience:
            return False
        self._tell(Note(f"The validation loss has not fallen for {patience} epochs: training ends."))
        return True

    def _take_best(self) -> None:
        if not self._parameters.patience or len(self.history) < 2:
            return
        best = self._best()
        self.kept = best + 1
        if best < len(self.history) - 1:
            self._adapter.load_state(self._folder / "best")

    def _checkpoint(self) -> None:
        """Keep everything that the next epoch depends on; a killed run is taken up there."""

        def write(folder: Path) -> None:
            self._adapter.save_state(folder)
            (folder / _STATE).write_text(json.dumps(self.history), encoding="utf-8")

        _replace(self._folder / "last", write)

    def _resume(self) -> int:
        """Take up a checkpoint; returns the number of the next step."""
        if not (self._folder / "last" / _STATE).is_file():
            return 0
        self.history = json.loads((self._folder / "last" / _STATE).read_text(encoding="utf-8"))
        self._adapter.load_state(self._folder / "last")
        self._tell(Note(f"Going on after epoch {len(self.history)} of an interrupted run."))
        return len(self.history)


def _replace(folder: Path, write: Callable[[Path], None]) -> None:
    """Write a folder beside its place, and put it there only when it is complete."""
    partial, old = folder.with_name(f"{folder.name}.partial"), folder.with_name(f"{folder.name}.old")
    for left_over in (partial, old):
        shutil.rmtree(left_over, ignore_errors=True)
    partial.mkdir(parents=True)
    write(partial)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _evenly(groups: Sequence[NDArray[np.integer[Any]]], events: int) -> list[NDArray[np.integer[Any]]]:
    """At most about `events` rows, taken at equal distances from each group."""
    total = sum(group.size for group in groups)
    stride = max(total // max(events, 1), 1)
    return [group[::stride] for group in groups]
