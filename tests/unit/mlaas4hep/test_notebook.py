"""What a notebook shows, and the functions that it calls."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pytest
from typer.testing import CliRunner

from mlaas4hep import notebook as ml
from mlaas4hep.cli import app
from mlaas4hep.client import Job
from mlaas4hep.data.schema import FlatColumn, JaggedColumn, Schema
from mlaas4hep.errors import MlaasError, UsageError
from mlaas4hep.example.notebooks import FOLDER
from mlaas4hep.example.servers import DataServer
from mlaas4hep.service.inspection import BranchContents, FileContents, TreeContents, histogram
from mlaas4hep.training.bundle import Bundle
from mlaas4hep.training.contract import Task
from tests.serving_parts import collisions, write_tree

EVIL = "<script>alert('x')</script>"
SCHEMA = Schema(
    flat=(FlatColumn("MET_pt", "MET_pt"),),
    jagged=(JaggedColumn(EVIL, 3),),
    shift=(0.0, 5.0),
    width=(1.0, 100.0),
    ignored=("event",),
)
JOB = {
    "id": "j" + "0" * 20,
    "process_name": "higgs_1",
    "state": "out-of-memory",
    "reason": EVIL,
    "submitted": "2026-11-27T15:00:00+00:00",
    "started": "",
    "ended": "",
    "model": None,
}


def shown(thing: Any) -> str:
    """Its HTML, which must have neither scripts nor anything from elsewhere."""
    html: str = thing._repr_html_()
    assert "<script" not in html
    assert not re.search(r"(?:src|href)=|url\(|@import|https?://", html)
    return html


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A model folder as far as it is shown."""
    history = [{"epoch": epoch, "loss": 1 / epoch, "val_loss": 1.1 / epoch} for epoch in (1, 2, 3)]
    final = {"test": {"events": 100, "auc": 0.9, "auc_error": 0.01, "accuracy": 0.8, "loss": 0.3}}
    metrics = {"history": history, "kept": 3, "rounds": [], "final": final}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    (tmp_path / "report.html").write_text(f"<!DOCTYPE html><p>{EVIL}</p>")
    return Bundle(tmp_path, "keras", Task("classification", (EVIL, "signal")), SCHEMA, 0.5, "onnx", "m.keras", "m.py")


def test_a_file_is_shown_with_its_branches_and_histograms() -> None:
    drawn = histogram(np.array([1.0, 2.0, np.nan]))
    branches = [
        BranchContents(name="MET_pt", kind="flat", type="float", histogram=drawn),
        BranchContents(name=EVIL, kind="string", type="std::string"),
    ]
    tree = TreeContents(name="Events", type="TTree", entries=3, sampled=3, branches=branches, problem="")
    broken = TreeContents(name="Runs", type="TTree", entries=0, sampled=0, branches=[], problem="it is cut off")
    html = shown(FileContents(path="a.root", bytes=1_500_000, trees=[tree, broken], problem=""))
    assert "Events (TTree): 3 entries, 2 branches" in html and "1.5 MB" in html
    assert html.count('class="plot small"') == 1 and "1 without a number" in html
    assert "Runs (TTree) cannot be read: it is cut off" in html


def test_an_input_vector_is_shown_with_the_place_of_each_input() -> None:
    html = shown(SCHEMA)
    assert "Input vector of 4 columns" in html and "1 to 3" in html and "No inputs: event." in html


def test_a_model_is_shown_with_measures_and_the_report_s_curves(bundle: Bundle) -> None:
    html = shown(bundle)
    assert "A model of Keras that tells apart" in html and "0.9000 +- 0.0100" in html
    assert "Loss after each epoch" in html and "kept: epoch 3" in html
    assert bundle.metrics["final"]["test"]["events"] == 100


def test_a_report_is_shown_in_a_frame_where_no_script_runs(bundle: Bundle) -> None:
    html = shown(ml.report(bundle))
    assert re.search(r'<iframe srcdoc="[^"]*" sandbox="" ', html)
    assert "&lt;script&gt;alert" in html
    (bundle.folder / "report.html").unlink()
    with pytest.raises(MlaasError, match="cannot be read"):
        ml.report(bundle)


@pytest.mark.parametrize(
    ("progress", "text"),
    [
        (None, "out of memory"),
        ({"event": "reading", "done": 5, "total": 10}, '<progress value="5" max="10"'),
        ({"event": "step", "epoch": 2, "epochs": 4, "done": 1, "total": 2}, '<progress value="1.5" max="4"'),
        ({"event": "epoch", "epoch": 1, "epochs": 2, "measures": {"loss": 0.5}}, "epoch 1 of 2  loss 0.5000"),
        ({"event": "finished", "measures": {"test auc": 0.9}}, "test auc 0.9000"),
        ({"event": "stage", "text": EVIL}, "&lt;script&gt;alert"),
    ],
)
def test_a_job_is_shown_with_its_state_reason_and_progress(progress: Any, text: str) -> None:
    job = Job(JOB, progress=progress)
    assert text in shown(job)
    assert json.loads(json.dumps(job)) == job


def test_samples_are_drawn_in_one_plot() -> None:
    drawn = ml.histograms({"flat": [1.0, 2.0, np.nan], "jagged": ak.Array([[1.0], [], [3.0, 9.0]])}, "x", limits=(0, 4))
    assert "flat (2)" in shown(drawn) and "jagged (3)" in shown(drawn)
    assert "flat: 2 values, mean 1.5" in repr(drawn)
    with pytest.raises(MlaasError, match="no number"):
        ml.histograms({"nothing": [np.nan]}, "x")


def test_branches_are_read_from_files_and_from_a_server_that_sends_no_more_than_these(tmp_path: Path) -> None:
    columns = [collisions(20_000, shift, seed=1) for shift in (0.0, 8.0)]
    files = [write_tree(tmp_path / f"{number}.root", found) for number, found in enumerate(columns)]
    values = ml.read(files, ["MET_pt", "Muon_pt"])
    assert np.array_equal(values["MET_pt"], np.concatenate([found["MET_pt"] for found in columns]))
    assert ak.all(values["Muon_pt"] == ak.concatenate([found["Muon"].pt for found in columns]))
    server = DataServer(tmp_path)
    try:
        remote = ml.read([server.url + "0.root", server.url + "1.root"], ["trigger", "nMuon", "MET_pt"])
        assert np.array_equal(remote["MET_pt"], values["MET_pt"])
        assert 0 < server.sent < 0.75 * sum(file.stat().st_size for file in files)
        with pytest.raises(MlaasError, match=r"2\.root"):
            ml.read(server.url + "2.root", ["MET_pt"])
    finally:
        server.close()
    assert len(ml.read(files[0], ["event"], entries=7)["event"]) == 7
    with pytest.raises(UsageError, match="Did you mean MET_pt"):
        ml.read(files[0], ["MET_pz"])


def test_notebooks_are_copied_and_never_overwritten(tmp_path: Path) -> None:
    mine = tmp_path / "mine" / "2-train.ipynb"
    mine.parent.mkdir()
    mine.write_text("changed")
    done = CliRunner().invoke(app, ["notebooks", str(mine.parent)])
    assert done.exit_code == 0
    assert f"{mine} is there already." in done.output
    assert mine.read_text() == "changed"
    assert {path.name for path in mine.parent.iterdir()} == {path.name for path in FOLDER.glob("*.ipynb")}
