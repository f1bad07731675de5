"""`mlaas4hep inspect`: what is in a file, for people and for programs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

NO_TREE_TO_READ = {
    "no_tree_histograms.root": "has no tree, only TH1F",
    "not_root_text.root": "is not a ROOT file",
    "old_cs_compression.root": "The tree ntuple",
    "truncated_half_cms_zz.root": "is truncated",
    "truncated_header_cms_ww.root": "is truncated",
    "zero_bytes.root": "is empty",
}


def test_every_file_is_read_or_refused_with_one_sentence_that_names_it(command, real_data: Path) -> None:
    for path in sorted(path for path in real_data.iterdir() if path.name != "rntuple_physlite.root"):
        done = command("inspect", path)
        if done.status:
            assert NO_TREE_TO_READ.get(path.name, "is not a ROOT file") in done.err
            assert str(path) in done.err
            assert len(done.err.splitlines()) == 1
        else:
            assert re.search(r": \d+ entr(y|ies)\b", done.out)
            assert "Traceback" not in done.out + done.err


def test_one_entry_and_one_branch_are_told_in_the_singular(command, tmp_path: Path, write_tree) -> None:
    done = command("inspect", write_tree(tmp_path / "f.root", {"x": np.array([1.0])}))
    assert re.search(r": 1 entry,.*\n  1 branch: 1 flat\n", done.out)


@pytest.mark.parametrize(
    ("name", "tree", "entries", "kinds"),
    [
        ("cms_ww.root", "events", 4580, {"flat": 27, "bool": 1, "jagged": 23}),
        ("vbf_h150.root", "shrinked", 1458, {"struct": 1}),
        ("fixed_arrays_strings.root", "tree", 100, {"flat": 7, "fixed array": 6, "jagged": 6, "string": 1}),
        ("vector_vector_double.root", "t", 5, {"nested": 1}),
        (
            "pdune_nested_dir.root",
            "pduneana/beamana",
            10,
            {"flat": 138, "bool": 7, "jagged": 180, "nested": 60, "string": 13},
        ),
        ("geant4_float_entries.root", "GeneratedTracks", 1000, {"flat": 7}),
        ("rntuple_cms_muons_1000.root", "Events", 1000, {"flat": 1, "jagged": 5}),
    ],
)
def test_json_counts_branches_by_kind(
    command, real_data: Path, name: str, tree: str, entries: int, kinds: dict
) -> None:
    report = json.loads(command("inspect", real_data / name, "--tree", tree, "--json").out)
    assert [(t["name"], t["entries"], t["kinds"]) for t in report["trees"]] == [(tree, entries, kinds)]


def test_a_struct_shows_its_members(command, real_data: Path) -> None:
    assert "{x: float64, y: int32, z: int8}" in command("inspect", real_data / "leaflist.root").out


def test_the_truncated_end_is_told_beside_what_can_be_read(command, real_data: Path) -> None:
    out = command("inspect", real_data / "truncated_tail_nanoaod_dy.root").out
    assert "warning: the file is truncated: 345547 bytes of 352599" in out
    assert "Runs (TTree) cannot be read" in out


def test_sizes_and_types_of_a_generated_file(command, workflow_folder: Path) -> None:
    report = json.loads(command("inspect", workflow_folder / "signal.root", "--json").out)
    branches = {branch["name"]: branch for branch in report["trees"][0]["branches"]}
    assert branches["Muon_pt"]["kind"] == "jagged"
    assert branches["MET_pt"]["dtype"] == "float64"
    assert branches["MET_pt"]["uncompressed"] >= 600 * 8


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["signal.root", "--tree", "events"], "has no tree events. Did you mean Events?"),
        (["nothing.root"], "nothing.root cannot be opened: No such file or directory."),
        (["."], "is a folder"),
    ],
)
def test_what_is_not_there(command, workflow_folder: Path, monkeypatch, words: list[str], said: str) -> None:
    monkeypatch.chdir(workflow_folder)
    done = command("inspect", *words)
    assert (done.status, said in done.err) == (1, True)
