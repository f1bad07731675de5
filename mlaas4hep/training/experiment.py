"""One training from beginning to end: files to store, store to batches, batches to a model, a model to its bundle."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlaas4hep.data.batches import Batches, rows_of_part
from mlaas4hep.data.formats import load_clients
from mlaas4hep.data.ingest import ingest, scan
from mlaas4hep.data.schema import Schema, select
from mlaas4hep.data.split import Part
from mlaas4hep.data.store import PackedStore
from mlaas4hep.errors import MlaasError, UsageError
from mlaas4hep.names import did_you_mean, listing
from mlaas4hep.training.adapters import make_adapter
from mlaas4hep.training.bundle import Bundle, check_target, write_bundle
from mlaas4hep.training.contract import Adapter, Feed, Task
from mlaas4hep.training.histograms import histograms
from mlaas4hep.training.metrics import confusion, decide, macro_area
from mlaas4hep.training.progress import Epoch, Finished, Note, Reading, Stage, Step, Tell
from mlaas4hep.training.random_state import set_seed
from mlaas4hep.training.user_model import load_user_model
from mlaas4hep.training.workflow import Labels, Workflow

_MEASURED_AT_A_TIME = 4096
_MOST_CLASSES = 100


@dataclass(frozen=True)
class Targets:
    """The classes, and the class number of each row of the store (shape (events,), int64)."""

    classes: tuple[str, ...]
    numbers: NDArray[np.int64]


@dataclass(frozen=True)
class Measures:
    """What is measured on one part of the events."""

    loss: float
    auc: float
    auc_error: float
    accuracy: float
    confusion: list[list[int]]
    events: int

    def as_dict(self) -> dict[str, Any]:
        """For metrics.json; NaN, which JSON lacks, becomes null."""
        return {
            name: None if isinstance(value, float) and math.isnan(value) else value
            for name, value in vars(self).items()
        }


def train(workflow: Workflow, out: Path, tell: Tell, *, overwrite: bool = False, cache: Path | None = None) -> Bundle:
    """Run a workflow and write its bundle.

    Args:
        workflow: what to train.
        out: the folder to write; it must not exist, unless it is a bundle and `overwrite` is set.
        tell: listener of the progress.
        overwrite: replace an older bundle.
        cache: folder of the packed stores.

    Raises MlaasError or UsageError for anything the user can mend.
    """
    started = datetime.now(UTC)
    clock = time.monotonic()
    check_target(out, overwrite)
    tell(Stage(f"loading {workflow.model.name}"))
    load_clients(workflow.sources)
    set_seed(workflow.parameters.seed)
    user = load_user_model(workflow.model)
    store, schema = prepare(workflow, tell, cache)
    targets = make_targets(store, workflow.labels)
    _check_parts(store, targets)
    set_seed(workflow.parameters.seed)
    adapter = make_adapter(user.build(schema), Task("classification", targets.classes), user)
    run = _Run(workflow, store, schema, targets, adapter, tell)
    history = run.fit()
    final = run.final_measures()
    drawn = histograms(store, schema, targets.classes, targets.numbers) if workflow.parameters.hist == "pdfs" else None
    bundle = write_bundle(
        out,
        workflow=workflow,
        schema=schema,
        classes=targets.classes,
        save_model=adapter.save,
        metrics={"history": history, "final": {part: measures.as_dict() for part, measures in final.items()}},
        store=store,
        histograms=drawn,
        started=started,
    )
    test = final.get("test")
    shown = {"test auc": test.auc, "+-": test.auc_error, "test accuracy": test.accuracy} if test else {}
    tell(Finished(str(bundle.folder), shown, time.monotonic() - clock))
    return bundle


def prepare(workflow: Workflow, tell: Tell, cache: Path | None = None) -> tuple[PackedStore, Schema]:
    """Read the files of a workflow into a store, and lay out the input vector."""
    parameters = workflow.parameters
    tell(Stage(f"reading {len(workflow.sources)} files"))
    files, branches, notes = scan(workflow.sources)
    label = workflow.labels.branch
    if label and label not in branches:
        raise UsageError(
            f"The labels {label!r} are neither a file nor a branch of {files[0].source}.",
            did_you_mean(label, list(branches), "branches"),
        )
    selection = select(
        branches,
        selected=parameters.selected_branches,
        excluded=parameters.exclude_branches,
        identifiers=parameters.identifier,
        label=label,
        notes=notes,
    )
    for note in selection.notes:
        tell(Note(note))
    store = ingest(
        files,
        selection,
        split=parameters.split,
        nevts=parameters.nevts,
        cache=cache,
        watch=lambda done, total: tell(Reading(done, total)),
    )
    schema = store.schema(parameters.fill, selection.ignored)
    _report(store, schema, tell)
    return store, schema


def _report(store: PackedStore, schema: Schema, tell: Tell) -> None:
    """Tell what the inputs are, and which of them deserve attention."""
    for feature in store.facts.statistics:
        if feature.nan or feature.infinite:
            tell(Note(f"{feature.name}: {feature.nan} NaN and {feature.infinite} infinite values count as missing."))
    constant = [feature.name for feature in store.facts.statistics if feature.minimum == feature.maximum]
    if constant:
        tell(Note(f"Constant over the training events, so of no use: {listing(constant)}."))
    inputs = f"{len(schema.flat)} flat and {len(schema.jagged)} jagged inputs, width {schema.idim}"
    tell(Stage(f"{store.facts.events} events, {inputs}"))


def make_targets(store: PackedStore, labels: Labels) -> Targets:
    """The classes in sorted order, by number where all labels are numbers, and each row's class.

    Raises UsageError for fewer than two classes, and for a label branch that does not hold classes.
    """
    if store.labels is None:
        texts = [labels.by_source[number] for number in _source_numbers(store)]
        classes = sorted(set(texts), key=_label_order)
        by_file = [classes.index(text) for text in texts]
        sizes = [file.stop - file.start for file in store.facts.files]
        numbers = np.repeat(np.array(by_file, dtype=np.int64), sizes)
    else:
        values, numbers = np.unique(store.labels, return_inverse=True)
        if values.size > _MOST_CLASSES:
            raise UsageError(
                f"The label branch {labels.branch} has {values.size} different values.",
                "This version trains on classes only.",
            )
        classes = [f"{value:g}" for value in values]
    if len(classes) < 2:
        raise UsageError(f"All events have the label {classes[0]}.", "Training needs at least two classes.")
    return Targets(tuple(classes), numbers.astype(np.int64))


def _source_numbers(store: PackedStore) -> list[int]:
    return [file.number for file in store.facts.files]


def _label_order(text: str) -> tuple[int, float, str]:
    try:
        return (0, float(text), text)
    except ValueError:
        return (1, 0.0, text)


def _check_parts(store: PackedStore, targets: Targets) -> None:
    """Every class needs events to train, to validate and to test."""
    for part in Part:
        counts = np.bincount(targets.numbers[store.parts == part], minlength=len(targets.classes))
        empty = [name for name, count in zip(targets.classes, counts, strict=True) if not count]
        if empty:
            raise MlaasError(
                f"No event of the class {listing(empty)} is left for {part.name.lower()}.",
                "Read more events (nevts), or change split.",
            )


class _Run:
    """The loop over epochs, and the measures on each part."""

    def __init__(
        self,
        workflow: Workflow,
        store: PackedStore,
        schema: Schema,
        targets: Targets,
        adapter: Adapter,
        tell: Tell,
    ) -> None:
        parameters = workflow.parameters
        self._parameters = parameters
        self._targets = targets
        self._adapter = adapter
        self._tell = tell
        groups = {part: rows_of_part(store, part) for part in Part}
        training = Batches(
            store,
            schema,
            groups[Part.TRAIN],
            batch_size=parameters.batch_size,
            chunk_size=parameters.chunk_size,
            shuffle=parameters.shuffle,
            seed=parameters.seed,
        )
        self._training = Feed(training, targets.numbers)
        validation = sum(group.size for group in groups[Part.VALIDATION])
        sample = _evenly(groups[Part.TRAIN], validation)
        measured = {"train": sample, "validation": groups[Part.VALIDATION], "test": groups[Part.TEST]}
        self._measured = {
            name: Feed(Batches(store, schema, rows, batch_size=_MEASURED_AT_A_TIME), targets.numbers)
            for name, rows in measured.items()
        }

    def fit(self) -> list[dict[str, float]]:
        """Train all epochs; returns the measures after each."""
        first = next(self._training.chunks(0))
        self._adapter.check(first.values[:2], first.mask[:2])
        mask = ", with the mask" if self._adapter.takes_mask else ""
        self._tell(Stage(f"training {self._adapter.size} weights on {self._training.events} events{mask}"))
        return [self._epoch(epoch) for epoch in range(self._parameters.epochs)]

    def _epoch(self, epoch: int) -> dict[str, float]:
        clock = time.monotonic()
        epochs, events = self._parameters.epochs, self._training.events
        self._adapter.fit_epoch(self._training, epoch, lambda done: self._tell(Step(epoch + 1, epochs, done, events)))
        train, validation = self._measure("train"), self._measure("validation")
        measures = {
            "loss": train.loss,
            "auc": train.auc,
            "accuracy": train.accuracy,
            "val_loss": validation.loss,
            "val_auc": validation.auc,
            "val_accuracy": validation.accuracy,
        }
        seconds = time.monotonic() - clock
        self._tell(Epoch(epoch + 1, epochs, measures, seconds))
        return {"epoch": epoch + 1} | measures | {"seconds": round(seconds, 3)}

    def final_measures(self) -> dict[str, Measures]:
        """The finished model on each part; nothing when the user wants no measures."""
        if not self._parameters.measured:
            return {}
        return {name: self._measure(name) for name in self._measured}

    def _measure(self, name: str) -> Measures:
        losses, probabilities, numbers = [], [], []
        for chunk in self._measured[name].chunks(0):
            loss, scores = self._adapter.evaluate(chunk)
            losses.append(loss * chunk.rows.size)
            probabilities.append(scores)
            numbers.append(chunk.targets)
        targets = np.concatenate(numbers)
        scores = np.concatenate(probabilities)
        area = macro_area(targets, scores)
        decisions = decide(scores, self._parameters.threshold)
        return Measures(
            loss=sum(losses) / targets.size,
            auc=area.value,
            auc_error=area.error,
            accuracy=float((decisions == targets).mean()),
            confusion=confusion(targets, decisions, len(self._targets.classes)).tolist(),
            events=int(targets.size),
        )


def _evenly(groups: Sequence[NDArray[np.int64]], events: int) -> list[NDArray[np.int64]]:
    """At most about `events` rows, taken at equal distances from each group."""
    total = sum(group.size for group in groups)
    stride = max(total // max(events, 1), 1)
    return [group[::stride] for group in groups]
