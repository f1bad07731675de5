"""Scores of files: `mlaas4hep predict BUNDLE FILES`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import uproot

from mlaas4hep.errors import MlaasError, UsageError
from mlaas4hep.training import scoring
from mlaas4hep.training.bundle import Bundle
from mlaas4hep.training.experiment import train
from mlaas4hep.training.prediction import predict_events
from mlaas4hep.training.progress import silent
from mlaas4hep.training.scoring import score_names
from mlaas4hep.training.workflow import load_folder

BOOSTED = """
from xgboost import XGBClassifier

def model():
    return XGBClassifier(n_estimators=8, max_depth=3, n_jobs=1)
"""
RULES = {"flat_cut": {"MET_pt": {"cut": "MET_pt > 15", "remove": "False"}}}


@pytest.fixture
def workflow(workflow_folder: Path) -> Path:
    (workflow_folder / "model.py").write_text(BOOSTED)
    return workflow_folder


@pytest.fixture
def bundle(workflow: Path, tmp_path: Path) -> Bundle:
    return train(load_folder(workflow), tmp_path / "m", silent)


def as_events(path: Path) -> list[dict[str, Any]]:
    """The entries of a file as JSON events."""
    with uproot.open(path) as file:
        return file["Events"].arrays().to_list()


def parquet_of(path: Path, target: Path) -> Path:
    events = as_events(path)
    columns: dict[str, Any] = {name: [event[name] for event in events] for name in events[0]}
    pq.write_table(pa.table(columns), target)
    return target


def test_scores_equal_the_predictions_of_the_same_events(
    bundle: Bundle, workflow: Path, tmp_path: Path, command: Any
) -> None:
    files = [workflow / "signal.root", workflow / "background.root"]
    done = command("predict", bundle.folder, *files, "--out", tmp_path / "s.root")
    assert done.status == 0, done.err
    with uproot.open(tmp_path / "s.root") as file:
        assert file.keys(cycle=False) == ["Events"]
        scores = file["Events"].arrays(library="np")
    events = as_events(files[0]) + as_events(files[1])
    expected = predict_events(bundle, events)
    assert list(scores) == ["event", "file", "entry", "score_0", "score_1", "decision"]
    assert scores["event"].dtype == np.uint64
    assert scores["event"].tolist() == [event["event"] for event in events]
    assert scores["file"].tolist() == [0] * 600 + [1] * 300
    assert scores["entry"].tolist() == [*range(600), *range(300)]
    for name in bundle.classes:
        wanted = [answer["probabilities"][name] for answer in expected]
        np.testing.assert_allclose(scores[f"score_{name}"], wanted, atol=1e-6)
    assert [bundle.classes[decision] for decision in scores["decision"]] == [answer["label"] for answer in expected]


def test_parquet_in_and_out_gives_the_same_scores(
    bundle: Bundle, workflow: Path, tmp_path: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "_ROWS_AT_A_TIME", 100)
    source = parquet_of(workflow / "signal.root", tmp_path / "signal.parquet")
    command("predict", bundle.folder, workflow / "signal.root", "--out", tmp_path / "s.root")
    done = command("predict", bundle.folder, source, "--out", tmp_path / "s.parquet")
    assert done.status == 0, done.err
    table = pq.read_table(tmp_path / "s.parquet")
    with uproot.open(tmp_path / "s.root") as file:
        for name, values in file["Events"].arrays(library="np").items():
            assert table[name].to_numpy().tolist() == values.tolist()


def test_events_that_are_cut_away_are_left_out_and_told(workflow: Path, tmp_path: Path, command: Any) -> None:
    (workflow / "preproc.json").write_text(json.dumps(RULES))
    bundle = train(load_folder(workflow), tmp_path / "m", silent)
    done = command("predict", bundle.folder, workflow / "signal.root", "--out", tmp_path / "s.parquet")
    with uproot.open(workflow / "signal.root") as file:
        met = file["Events"]["MET_pt"].array(library="np")
    kept = np.flatnonzero(met > 15)
    assert 0 < kept.size < 600
    assert pq.read_table(tmp_path / "s.parquet")["entry"].to_numpy().tolist() == kept.tolist()
    assert "600 entries read" in done.err
    assert f"{kept.size} passed MET_pt > 15" in done.err


def test_no_entry_that_passes_gives_a_file_without_rows(
    workflow: Path, tmp_path: Path, command: Any, write_tree: Any, collisions: Any
) -> None:
    (workflow / "preproc.json").write_text(json.dumps(RULES))
    bundle = train(load_folder(workflow), tmp_path / "m", silent)
    columns = collisions(20, 0.0, 1) | {"MET_pt": np.zeros(20)}
    source = write_tree(tmp_path / "low.root", columns)
    for name in ("s.parquet", "s.root"):
        assert command("predict", bundle.folder, source, "--out", tmp_path / name).status == 0
    assert pq.read_table(tmp_path / "s.parquet").num_rows == 0
    assert pq.read_table(tmp_path / "s.parquet").column_names[0] == "event"
    with uproot.open(tmp_path / "s.root") as file:
        assert file["Events"].num_entries == 0


def test_an_unreadable_file_among_others_leaves_no_output(
    bundle: Bundle, workflow: Path, tmp_path: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bad.root").write_bytes((workflow / "background.root").read_bytes()[:2000])
    out = tmp_path / "s.root"
    done = command("predict", bundle.folder, workflow / "signal.root", tmp_path / "bad.root", "--out", out)
    assert done.status != 0
    assert "bad.root" in done.err

    def failing(*_: object) -> None:
        raise MlaasError("the second file breaks off")

    monkeypatch.setattr(scoring, "_refuse_other_length", lambda file, _: failing() if file.source.number else None)
    files = (workflow / "signal.root", workflow / "background.root")
    monkeypatch.setattr(scoring, "_ROWS_AT_A_TIME", 10)
    done = command("predict", bundle.folder, *files, "--out", out)
    assert "the second file breaks off" in done.err
    assert not list(tmp_path.glob("*s.root*"))
    assert not list(tmp_path.glob(".s.root*"))


def test_files_without_the_inputs_are_refused_with_near_misses(
    bundle: Bundle, tmp_path: Path, command: Any, write_tree: Any, collisions: Any
) -> None:
    columns = collisions(20, 0.0, 1)
    columns["MET_Pt"] = columns.pop("MET_pt")
    done = command("predict", bundle.folder, write_tree(tmp_path / "a.root", columns), "--out", tmp_path / "s.root")
    assert done.status == 2
    assert "a.root:Events lacks MET_pt, which the model needs. Did you mean MET_Pt" in done.err


def test_another_type_is_fine_and_another_kind_is_refused(
    bundle: Bundle, tmp_path: Path, command: Any, write_tree: Any, collisions: Any
) -> None:
    columns = collisions(20, 0.0, 1)
    other = columns | {"MET_pt": columns["MET_pt"].astype(np.float32), "trigger": columns["trigger"].astype(np.int32)}
    source = write_tree(tmp_path / "other.root", other)
    assert command("predict", bundle.folder, source, "--out", tmp_path / "s.root").status == 0
    lists = columns | {"MET_pt": columns["Muon"].pt}
    done = command("predict", bundle.folder, write_tree(tmp_path / "b.root", lists), "--out", tmp_path / "t.root")
    assert done.status == 2
    assert "The branch MET_pt of" in done.err
    assert "is jagged, but the model was trained with flat" in done.err


def test_what_exists_is_only_replaced_when_asked(
    bundle: Bundle, workflow: Path, tmp_path: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = workflow / "background.root"
    assert command("predict", bundle.folder, source).status == 0
    assert (tmp_path / "scores.root").is_file()
    assert "scores.root exists" in command("predict", bundle.folder, source).err
    assert command("predict", bundle.folder, source, "--overwrite").status == 0
    assert "is one of the files to read" in command("predict", bundle.folder, source, "--out", source).err
    assert "neither a ROOT nor a Parquet" in command("predict", bundle.folder, source, "--out", "s.csv").err


def test_a_text_file_lists_the_files_and_identifiers_may_be_missing(
    bundle: Bundle, tmp_path: Path, command: Any, write_tree: Any, collisions: Any
) -> None:
    columns = collisions(20, 0.0, 1)
    write_tree(tmp_path / "a.root", columns)
    del columns["event"]
    write_tree(tmp_path / "b.root", columns)
    (tmp_path / "files.txt").write_text("a.root\nb.root\n")
    done = command("predict", bundle.folder, tmp_path / "files.txt", "--out", tmp_path / "s.parquet")
    assert done.status == 0, done.err
    assert "Not in all files, so not written: event." in done.err
    assert pq.read_table(tmp_path / "s.parquet").column_names[:2] == ["file", "entry"]


def test_the_names_of_scores_can_be_branches() -> None:
    assert score_names(["0", "tt+jets"]) == ["score_0", "score_tt_jets"]
    assert score_names(["a+b", "a-b"]) == ["score_0", "score_1"]
    assert score_names([]) == ["prediction"]


def test_a_partial_output_does_not_survive_an_interrupt(
    bundle: Bundle, workflow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlaas4hep.data.sources import resolve_files

    def interrupted(event: object) -> None:
        if type(event).__name__ == "Reading":
            raise KeyboardInterrupt

    monkeypatch.setattr(scoring, "_ROWS_AT_A_TIME", 1)
    sources = resolve_files(str(workflow / "signal.root"), "Events")
    with pytest.raises(KeyboardInterrupt):
        scoring.score_files(bundle, sources, tmp_path / "s.root", interrupted)
    assert not list(tmp_path.glob("*s.root*"))
    with pytest.raises(UsageError, match="does not exist"):
        scoring.score_files(bundle, sources, tmp_path / "nowhere" / "s.root", silent)
