"""An experiment: what it learns, how it stops, and that a killed run ends as an undisturbed one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlaas4hep.data.ingest import ingest, scan
from mlaas4hep.data.schema import select
from mlaas4hep.data.sources import resolve_files
from mlaas4hep.errors import MlaasError, UsageError
from mlaas4hep.training.experiment import train
from mlaas4hep.training.parameters import Parameters
from mlaas4hep.training.progress import Epoch, Event, Note, Step, silent
from mlaas4hep.training.targets import make_targets
from mlaas4hep.training.workflow import Labels, load_folder

REGRESSION = """
import keras

def model(idim):
    network = keras.Sequential([keras.Input((idim,)), keras.layers.Dense(16, activation="relu"), keras.layers.Dense(1)])
    network.compile(optimizer=keras.optimizers.Adam(0.02), loss="mse")
    return network
"""

# ten epochs of learning, then of unlearning: where it is best does not hang on a computer's rounding
TURNING = """
import keras

def model(idim):
    network = keras.Sequential([keras.Input((idim,)), keras.layers.Dense(8, activation="relu"),
                                keras.layers.Dense(1, activation="sigmoid")])
    rate = keras.optimizers.schedules.PiecewiseConstantDecay([100], [0.01, -0.01])
    network.compile(optimizer=keras.optimizers.SGD(rate), loss="binary_crossentropy")
    return network
"""


@pytest.fixture
def run(workflow_folder: Path, tmp_path: Path, set_parameters) -> Callable[..., dict[str, Any]]:
    """Train the workflow with some parameters; returns its metrics."""

    def do(name: str = "model", tell: Callable[[Event], None] = silent, **parameters: Any) -> dict[str, Any]:
        set_parameters(workflow_folder, **{"identifier": "event", "batch_size": 32, "epochs": 2} | parameters)
        bundle = train(load_folder(workflow_folder), tmp_path / name, tell)
        assert bundle is not None
        found: dict[str, Any] = json.loads((bundle.folder / "metrics.json").read_text())
        return found

    return do


def without_times(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in entry.items() if name != "seconds"} for entry in history]


def test_a_value_is_learned_from_its_branch(run, workflow_folder: Path) -> None:
    (workflow_folder / "labels.txt").write_text("MET_pt\n")
    (workflow_folder / "model.py").write_text(REGRESSION)
    with pytest.raises(UsageError, match=r"too many for classes\. Set \"task\": \"regression\""):
        run()
    learned = run(task="regression", epochs=3, scaling="standard")
    assert set(learned["final"]["test"]) == {"loss", "events", "mse", "mae", "r2"}
    assert learned["history"][-1]["val_loss"] < learned["history"][0]["val_loss"]


def test_training_ends_when_patience_does_and_keeps_the_best_epoch(run, workflow_folder: Path) -> None:
    (workflow_folder / "model.py").write_text(TURNING)
    told: list[Event] = []
    found = run(epochs=60, patience=2, tell=told.append)
    losses = [entry["val_loss"] for entry in found["history"]]
    assert 2 < len(losses) < 60
    assert found["kept"] == int(np.argmin(losses)) + 1 == len(losses) - 2
    assert found["final"]["validation"]["loss"] == pytest.approx(min(losses), rel=1e-6)
    assert any(isinstance(event, Note) and "has not fallen for 2 epochs" in event.text for event in told)


def test_every_fold_is_measured_by_a_model_of_its_own(run) -> None:
    found = run(folds=3)
    assert [entry["fold"] for entry in found["folds"]] == [1, 2, 3]
    assert sum(entry["events"] for entry in found["folds"]) == 900


def test_chunks_are_trained_one_after_the_other(run) -> None:
    found = run(training="chunks", chunk_size=200, epochs=2)
    training = 900 - found["final"]["validation"]["events"] - found["final"]["test"]["events"]
    assert len(found["history"]) == -(-training // 200)


def test_preprocessing_cuts_events_and_its_flow_is_kept(run, workflow_folder: Path, tmp_path: Path) -> None:
    rules = {
        "new_branch": {"log_MET": {"def": "log(MET_pt)", "type": "flat", "cut": "log_MET>0"}},
        "flat_cut": {"MET_pt": {"cut": "20<=MET_pt<=30", "remove": "True"}},
    }
    (workflow_folder / "preproc.json").write_text(json.dumps(rules))
    found = run()
    schema = json.loads((tmp_path / "model" / "schema.json").read_text())
    assert "log_MET" in [column["name"] for column in schema["flat"]]
    assert "MET_pt" not in [column["name"] for column in schema["flat"]]
    assert "MET_pt" in [branch["name"] for branch in schema["inputs"]]
    assert schema["preprocessing"] == rules
    assert sum(part["events"] for part in found["final"].values()) < 900


def test_a_cut_that_leaves_nothing_is_refused(run, workflow_folder: Path) -> None:
    (workflow_folder / "preproc.json").write_text('{"flat_cut": {"MET_pt": {"cut": "MET_pt>1e9"}}}')
    with pytest.raises(MlaasError, match="No event is left after the cuts"):
        run()


def test_balanced_classes_weigh_the_same_and_keep_the_events_weights(tmp_path: Path, write_tree) -> None:
    columns = {"x": np.arange(90.0), "w": np.linspace(0.5, 1.5, 90)}
    one = write_tree(tmp_path / "one.root", columns)
    two = write_tree(tmp_path / "two.root", {name: values[:30] for name, values in columns.items()})
    files, branches, _ = scan(resolve_files(f"{one},{two}", "Events"))
    store = ingest(files, select(branches, weight="w"), split=0.3)
    targets = make_targets(store, Labels(("b", "s")), Parameters(class_weight="balanced", weight="w"))
    assert targets.weights is not None
    sums = np.bincount(targets.values, weights=targets.weights)
    assert sums[0] == pytest.approx(sums[1], rel=1e-5)
    assert targets.weights.mean() == pytest.approx(1.0, rel=1e-5)
    assert targets.measured == pytest.approx(store.weights / store.weights.mean(), rel=1e-5)


def test_a_weight_branch_that_is_not_there_is_named(run) -> None:
    with pytest.raises(UsageError, match=r"weight names MET_p, .* Did you mean MET_pt"):
        run(weight="MET_p")


TORCH = """
import torch

def model(idim):
    return torch.nn.Sequential(torch.nn.Linear(idim, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1), torch.nn.Sigmoid())
"""


def test_two_workers_train_one_model_together(workflow_folder: Path, tmp_path: Path, set_parameters) -> None:
    (workflow_folder / "model.py").write_text(TORCH)
    set_parameters(workflow_folder, identifier="event", batch_size=32, epochs=2, workers=2, runtime="native")
    words = [sys.executable, "-m", "mlaas4hep.cli", "train", "--folder", str(workflow_folder)]
    done = subprocess.run([*words, "--fout", str(tmp_path / "m")], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "m" / "metrics.json").read_text())
    assert [entry["epoch"] for entry in found["history"]] == [1, 2]
    assert done.stderr.count("epoch 2/2") == 1


def test_workers_of_a_framework_without_them_are_refused(workflow_folder: Path, tmp_path: Path, set_parameters) -> None:
    set_parameters(workflow_folder, identifier="event", batch_size=32, epochs=2, workers=2)
    words = [sys.executable, "-m", "mlaas4hep.cli", "train", "--folder", str(workflow_folder)]
    done = subprocess.run([*words, "--fout", str(tmp_path / "m")], check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert "Set workers to 1" in done.stderr


XGBOOST = """
def model():
    return {"n_estimators": 20, "max_depth": 3, "subsample": 0.5, "nthread": 1}
"""

KILLED = """
import os, signal, sys
from pathlib import Path
from mlaas4hep.training.experiment import train
from mlaas4hep.training.progress import Epoch, Step
from mlaas4hep.training.workflow import load_folder
def tell(event):
    part = sys.argv[4:] and isinstance(event, Step) and event.done > event.total * float(sys.argv[4])
    if part or (isinstance(event, Epoch) and event.epoch == int(sys.argv[3])):
        os.kill(os.getpid(), signal.SIGKILL)
train(load_folder(Path(sys.argv[1])), Path(sys.argv[2]), tell)
"""


@pytest.mark.parametrize("patience", [0, 3])
def test_a_killed_run_that_is_repeated_ends_as_an_undisturbed_one(
    run, workflow_folder: Path, tmp_path: Path, set_parameters, monkeypatch: pytest.MonkeyPatch, patience: int
) -> None:
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    parameters = {"epochs": 4, "shuffle": True, "seed": 3, "patience": patience}
    set_parameters(workflow_folder, identifier="event", batch_size=32, **parameters)
    words = [sys.executable, "-c", KILLED, str(workflow_folder), str(tmp_path / "killed"), "3"]
    assert subprocess.run(words, check=False, stderr=subprocess.DEVNULL).returncode == -signal.SIGKILL
    epochs: list[int] = []
    after = run("killed", lambda event: epochs.append(event.epoch) if isinstance(event, Epoch) else None, **parameters)
    assert epochs == [3, 4]
    monkeypatch.setenv("MLAAS4HEP_CACHE", str(tmp_path / "other"))
    undisturbed = run("undisturbed", **parameters)
    assert without_times(after["history"]) == without_times(undisturbed["history"])
    assert after["final"] == undisturbed["final"]
    assert not any((tmp_path / "store" / "runs").glob("*/"))


def test_boosting_that_was_killed_goes_on_in_the_middle(
    run, workflow_folder: Path, tmp_path: Path, set_parameters, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workflow_folder / "model.py").write_text(XGBOOST)
    set_parameters(workflow_folder, identifier="event", batch_size=32, epochs=1)
    words = [sys.executable, "-c", KILLED, str(workflow_folder), str(tmp_path / "killed"), "1", "0.5"]
    assert subprocess.run(words, check=False, stderr=subprocess.DEVNULL).returncode == -signal.SIGKILL
    steps: list[Step] = []
    after = run("killed", lambda event: steps.append(event) if isinstance(event, Step) else None, epochs=1)
    assert steps[0].done > 0.5 * steps[0].total
    monkeypatch.setenv("MLAAS4HEP_CACHE", str(tmp_path / "other"))
    undisturbed = run("undisturbed", epochs=1)
    assert after["rounds"] == undisturbed["rounds"]
    assert len(after["rounds"]) == 20
    assert after["final"] == undisturbed["final"]
    assert "after each round" in (tmp_path / "killed" / "report.html").read_text()


def test_a_changed_model_does_not_take_up_an_older_checkpoint(
    run, workflow_folder: Path, tmp_path: Path, set_parameters
) -> None:
    set_parameters(workflow_folder, identifier="event", batch_size=32, epochs=3)
    words = [sys.executable, "-c", KILLED, str(workflow_folder), str(tmp_path / "killed"), "2"]
    subprocess.run(words, check=False, stderr=subprocess.DEVNULL, env=os.environ.copy())
    model = workflow_folder / "model.py"
    model.write_text(model.read_text().replace("Dense(8", "Dense(9"))
    epochs: list[int] = []
    run("other", lambda event: epochs.append(event.epoch) if isinstance(event, Epoch) else None, epochs=3)
    assert epochs == [1, 2, 3]
