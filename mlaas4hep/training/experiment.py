"""One training from beginning to end: files to store, store to batches, batches to a model, a model to its bundle."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mlaas4hep
from mlaas4hep.data.formats import load_clients
from mlaas4hep.data.ingest import cache_folder
from mlaas4hep.errors import MlaasError
from mlaas4hep.training.adapters import make_adapter
from mlaas4hep.training.bundle import Bundle, check_target, write_bundle
from mlaas4hep.training.contract import Adapter
from mlaas4hep.training.histograms import Histogram, as_json, histograms, multiplicities
from mlaas4hep.training.importance import permutation_importance, sample, score_of
from mlaas4hep.training.launch import Workers
from mlaas4hep.training.measures import Scored, measures
from mlaas4hep.training.onnx_export import HeldOut
from mlaas4hep.training.preparation import Prepared, prepare
from mlaas4hep.training.progress import Finished, Stage, Tell
from mlaas4hep.training.random_state import set_seed
from mlaas4hep.training.report import ReportData, report_on_data, write_report
from mlaas4hep.training.report.curves import history_of_rounds
from mlaas4hep.training.run import Feeds, Run
from mlaas4hep.training.targets import Targets, check_parts, make_targets
from mlaas4hep.training.user_model import UserModel, load_user_model
from mlaas4hep.training.workflow import Workflow

REPORT = "report.html"
_RESULT = ("auc", "auc_error", "accuracy", "mae", "r2")


@dataclass(frozen=True)
class Experiment:
    """A workflow with everything that its trainings have in common."""

    workflow: Workflow
    prepared: Prepared
    targets: Targets
    user: UserModel
    tell: Tell

    def train(self, folder: Path) -> tuple[Adapter, Run]:
        """Train one new model; `folder` keeps its checkpoints."""
        parameters = self.workflow.parameters
        store, schema = self.prepared.store, self.prepared.schema
        check_parts(store, self.targets)
        set_seed(parameters.seed)
        adapter = make_adapter(self.user.build(schema), self.targets.task, self.user)
        run = Run(
            adapter, Feeds(store, schema, self.targets, parameters), self.targets.task, parameters, self.tell, folder
        )
        run.fit()
        return adapter, run

    def key(self) -> str:
        """A digest of all that a training depends on: a checkpoint is only taken up by the same one."""
        content = {
            "version": mlaas4hep.__version__,
            "store": self.prepared.store.facts.key,
            "schema": self.prepared.schema.model_dump(mode="json"),
            "parameters": self.workflow.parameters.model_dump_json(),
            "labels": [self.workflow.labels.by_source, self.workflow.labels.branch],
            "code": {
                path.name: hashlib.sha256(path.read_bytes()).hexdigest()
                for path in sorted(self.workflow.model.parent.glob("*.py"))
            },
            "model": self.workflow.model.name,
            "backend": os.environ.get("KERAS_BACKEND", ""),
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def train(
    workflow: Workflow, out: Path, tell: Tell, *, overwrite: bool = False, cache: Path | None = None
) -> Bundle | None:
    """Run a workflow and write its bundle.

    A run that was killed is taken up after its last complete epoch when it is repeated unchanged. Of several workers
    the first writes the bundle, and the others return None; their runs begin anew when they are repeated.

    Args:
        workflow: what to train.
        out: the folder to write; it must not exist, unless it is a bundle and `overwrite` is set.
        tell: listener of the progress.
        overwrite: replace an older bundle.
        cache: folder of the packed stores and of checkpoints.

    Raises MlaasError or UsageError for anything the user can mend.
    """
    started = datetime.now(UTC)
    timing = _Timing()
    cache = cache or cache_folder()
    check_target(out, overwrite)
    tell(Stage(f"loading {workflow.model.name}"))
    load_clients(workflow.sources)
    set_seed(workflow.parameters.seed)
    user = load_user_model(workflow.model)
    timing.done("loading the framework")
    prepared = prepare(workflow, tell, cache)
    timing.done("reading")
    targets = make_targets(prepared.store, workflow.labels, workflow.parameters)
    experiment = Experiment(workflow, prepared, targets, user, tell)
    with _checkpoints(cache, experiment.key()) as folder:
        folds = _cross_validation(experiment, folder)
        timing.done("cross-validation" if folds else "")
        adapter, run = experiment.train(folder / "final")
        timing.done("training")
        scored = run.scored() if workflow.parameters.measured else {}
        final = {part: measures(found, targets.task, workflow.parameters.threshold) for part, found in scored.items()}
        if Workers.here().rank:
            return None
        history = {"history": run.history, "kept": run.kept, "rounds": list(getattr(adapter, "rounds", []))}
        drawn = _histograms(experiment)
        data = replace(
            _report(experiment, out.name, adapter, run, scored),
            histograms=drawn,
            folds=folds,
            timing=timing.seconds,
        )
        timing.done("measuring")
        bundle = write_bundle(
            out,
            workflow=workflow,
            schema=prepared.schema,
            task=targets.task,
            adapter=adapter,
            held_out=HeldOut.of(run.test),
            metrics=history | {"final": final, "folds": folds},
            store=prepared.store,
            histograms=as_json(drawn, targets.task.classes) if drawn else None,
            started=started,
            runtime=workflow.parameters.runtime,
            more=lambda partial: write_report(partial / REPORT, data),
        )
    tell(Finished(str(bundle.folder), _shown(final), timing.total))
    return bundle


def _report(experiment: Experiment, title: str, adapter: Adapter, run: Run, scored: Mapping[str, Scored]) -> ReportData:
    """What the report shows of the model, beside histograms, folds and timing."""
    workflow, prepared, targets = experiment.workflow, experiment.prepared, experiment.targets
    store, schema, task = prepared.store, prepared.schema, targets.task
    importance = []
    if scored:
        experiment.tell(Stage("measuring what each input is worth"))
        importance = permutation_importance(
            adapter.predict, sample(run.test), schema.slices, score_of(task), seed=workflow.parameters.seed
        )
    history, kept = _by_round(adapter, run) if len(run.history) == 1 else (run.history, run.kept)
    return replace(
        report_on_data(title, store, schema, targets, workflow.labels),
        parts=scored,
        history=history,
        kept=kept,
        threshold=workflow.parameters.threshold,
        model={
            "framework": adapter.framework,
            "trained weights": adapter.size or "",
            "file": workflow.model.name,
            "mask": "used" if adapter.takes_mask else "not used",
        },
        multiplicities=multiplicities(store, schema, task.classes, targets.values, targets.measured),
        importance=importance,
        parameters=workflow.parameters.model_dump(mode="json"),
        provenance={"version": mlaas4hep.__version__, "store": store.facts.key},
        notes=prepared.notes,
    )


def _by_round(adapter: Adapter, run: Run) -> tuple[list[dict[str, Any]], int]:
    """The measures after each round of boosting and the round that was kept; those of the epoch without rounds."""
    rounds = history_of_rounds(getattr(adapter, "rounds", []))
    return (rounds, getattr(adapter, "kept", 0)) if rounds else (run.history, run.kept)


def _histograms(experiment: Experiment) -> list[Histogram]:
    """The inputs by class, where the parameter `hist` asks for them."""
    targets = experiment.targets
    if experiment.workflow.parameters.hist != "pdfs":
        return []
    store, schema = experiment.prepared.store, experiment.prepared.schema
    return histograms(store, schema, targets.task.classes, targets.values, targets.measured)


class _Timing:
    """Seconds of each stage."""

    def __init__(self) -> None:
        self._begin = self._last = time.monotonic()
        self.seconds: dict[str, float] = {}

    def done(self, stage: str) -> None:
        """A stage is over; one without a name does not count."""
        now = time.monotonic()
        if stage:
            self.seconds[stage] = now - self._last
        self._last = now

    @property
    def total(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._begin


def _shown(final: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The test's figures in one line."""
    test = final.get("test", {})
    names = {"auc_error": "+-"}
    return {names.get(name, f"test {name}"): test[name] for name in _RESULT if test.get(name) is not None}


def _cross_validation(experiment: Experiment, folder: Path) -> list[dict[str, Any]]:
    """The measures of each fold's test events, by a model that has not seen them."""
    folds = experiment.workflow.parameters.folds
    found = []
    task, threshold = experiment.targets.task, experiment.workflow.parameters.threshold
    for fold in range(folds):
        experiment.tell(Stage(f"fold {fold + 1} of {folds}"))
        with experiment.prepared.store.using_fold(folds, fold):
            _, run = experiment.train(folder / f"fold-{fold}")
            found.append({"fold": fold + 1} | measures(run.scored()["test"], task, threshold))
    return found


@contextmanager
def _checkpoints(cache: Path, key: str) -> Iterator[Path]:
    """The folder of a training's checkpoints, removed when it succeeds; another one while the same training runs."""
    folder = cache / "runs" / key
    if Workers.here().world > 1:
        with tempfile.TemporaryDirectory(prefix="mlaas4hep-") as own:
            yield Path(own)
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (cache / "runs" / f"{key}.lock").open("w") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                with tempfile.TemporaryDirectory(prefix=f"{key}-", dir=cache / "runs") as own:
                    yield Path(own)
                return
            yield folder
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise MlaasError(
            f"The folder {cache / 'runs'} for checkpoints cannot be used: {error.strerror or error}.",
            "Free some space, or set MLAAS4HEP_CACHE to another folder.",
        ) from error
