"""What a user may hand over, and the one sentence that answers a mistake."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from mlaas4hep.errors import UsageError
from mlaas4hep.training.parameters import Parameters, parse_parameters
from mlaas4hep.training.workflow import load_folder, load_workflow


def test_the_defaults_are_those_of_the_original() -> None:
    parameters = Parameters()
    assert (parameters.nevts, parameters.shuffle, parameters.chunk_size) == (-1, False, 1000)
    assert (parameters.epochs, parameters.batch_size, parameters.split) == (10, 256, 0.3)
    assert (parameters.branch, parameters.hist, parameters.training) == ("Events", "pdfs", "standard")
    assert math.isnan(parameters.nan)
    assert parameters.fill == 0.0


def test_names_come_as_a_list_a_string_or_a_file(tmp_path: Path) -> None:
    listed = tmp_path / "names"
    listed.write_text("a\nb # second\n")
    for given in (["a", "b"], "a, b", str(listed)):
        assert parse_parameters({"exclude_branches": given}, "params").exclude_branches == ("a", "b")
    assert parse_parameters({"identifier": "event", "selected_branches": ""}, "params").identifier == ("event",)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"epoch": 3}, "unknown parameter epoch. Did you mean epochs?"),
        ({"epochs": 0}, "epochs = 0 is wrong"),
        ({"split": 1.0}, "split = 1.0 is wrong"),
        ({"chunk_size": 0}, "must be positive, or -1"),
        ({"training": "chunk"}, "training"),
        ({"folds": 2}, "must be 3 or more"),
        ({"max_multiplicity": 2.5}, "a whole number, or a fraction below 1"),
        ({"hist": "all"}, 'hist = "all" is wrong'),
        ({"metrics": {"treshold": 0.5}}, "metrics = "),
    ],
)
def test_a_wrong_parameter_is_refused_by_name(given: dict, said: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_parameters(given, "params.json")
    assert said in str(refused.value)


def test_labels_by_file_by_item_or_by_branch(workflow_folder: Path) -> None:
    def labels(text: str, files: str = str(workflow_folder / "files.txt")):
        return load_workflow(files, text, str(workflow_folder / "model.py"), "").labels

    assert labels("1,0").by_source == ("1", "0")
    assert labels(str(workflow_folder / "labels.txt")).by_source == ("1", "0")
    assert labels("signal,background").by_source == ("signal", "background")
    both = f"{workflow_folder}/*.root,{workflow_folder}/signal.root:Other"
    assert labels("0,1", both).by_source == ("0", "0", "1")
    assert labels("isSignal").branch == "isSignal"


def test_labels_and_files_that_do_not_match_in_number(workflow_folder: Path) -> None:
    (workflow_folder / "labels.txt").write_text("1\n0\n1\n")
    with pytest.raises(UsageError, match=r"There are 3 labels for 2 files\."):
        load_folder(workflow_folder)


def test_a_label_file_with_one_name_is_a_branch(workflow_folder: Path) -> None:
    (workflow_folder / "labels.txt").write_text("# the branch\nisSignal\n")
    assert load_folder(workflow_folder).labels.branch == "isSignal"


def test_parameters_may_be_left_out_and_replaced(workflow_folder: Path) -> None:
    assert load_folder(workflow_folder, seed=5, epochs=None).parameters.seed == 5
    (workflow_folder / "params.json").unlink()
    assert load_folder(workflow_folder, seed=5).parameters == Parameters(seed=5)


@pytest.mark.parametrize("removed", ["model.py", "labels.txt"])
def test_an_incomplete_folder(workflow_folder: Path, removed: str) -> None:
    (workflow_folder / removed).unlink()
    with pytest.raises(UsageError, match=f"has no {removed}"):
        load_folder(workflow_folder)


def test_a_folder_may_hold_one_preprocessing(workflow_folder: Path) -> None:
    (workflow_folder / "preproc.json").write_text('{"flat_cut": {"MET_pt": {"cut": "MET_pt>20"}}}')
    preprocessing = load_folder(workflow_folder).preprocessing
    assert preprocessing is not None
    assert preprocessing.cuts == ("MET_pt>20",)
    (workflow_folder / "preproc.py").write_text("def preprocessing(record):\n    return record\n")
    with pytest.raises(UsageError, match=r"has preproc\.json and preproc\.py"):
        load_folder(workflow_folder)


@pytest.mark.parametrize("text", ["{", "[1]", json.dumps({"epochs": "many"})])
def test_parameters_that_are_no_parameters(workflow_folder: Path, text: str) -> None:
    (workflow_folder / "params.json").write_text(text)
    with pytest.raises(UsageError, match=r"params\.json"):
        load_folder(workflow_folder)
