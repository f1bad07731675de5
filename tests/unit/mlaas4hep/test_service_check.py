"""The check of a submission: what would be trained, and what the training would refuse."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlaas4hep.errors import UsageError
from mlaas4hep.service.arrangement import Submission
from mlaas4hep.service.checking import SubmissionCheck, look
from mlaas4hep.service.identity import User
from mlaas4hep.service.settings import JobSettings
from tests.serving_parts import collisions, write_tree
from tests.unit.mlaas4hep.service_parts import ALICE, BOB, Running, running, upload

EXECUTED = "raise SystemExit('it was executed')\n"
ENDPOINT = "eos.example:1094"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two small files, of which one has a branch more."""
    folder = tmp_path_factory.mktemp("data")
    write_tree(folder / "a.root", {**collisions(30, 0.0, 1), "signal": np.ones(30)})
    write_tree(folder / "b.root", collisions(20, 1.0, 2))
    return folder


@pytest.fixture
def workspace(tmp_path: Path, data: Path) -> Path:
    folder = tmp_path / "higgs"
    folder.mkdir()
    for name in ("a.root", "b.root"):
        (folder / name).write_bytes((data / name).read_bytes())
    (folder / "files.txt").write_text("a.root\nb.root\n")
    (folder / "labels.txt").write_text("1\n0\n")
    (folder / "model.py").write_text(EXECUTED)
    return folder


def found(folder: Path, **wanted: Any) -> SubmissionCheck:
    place = folder.parent / "place"
    if place.exists():
        shutil.rmtree(place)
    place.mkdir()
    return look(folder, place, Submission(workspace="higgs", **wanted))


def test_what_would_be_trained_is_told(workspace: Path):
    check = found(workspace, parameters={"identifier": ["event"], "selected_branches": ["M*", "nMuon", "trigger"]})
    assert [(file.path, file.tree, file.entries) for file in check.files] == [
        ("a.root", "Events", 30),
        ("b.root", "Events", 20),
    ]
    assert (check.number, check.looked, check.entries, check.servers) == (2, 2, 50, [])
    assert check.inputs == {"flat": ["MET_pt", "nMuon"], "bool": ["trigger"], "jagged": ["Muon_eta", "Muon_pt"]}
    assert (check.width, check.classes, check.label) == (None, ["0", "1"], "")


def test_what_is_known_only_of_flat_inputs_is_the_width(workspace: Path):
    check = found(workspace, files="a.root,", labels="signal", parameters={"exclude_branches": "Muon_*"})
    assert (check.number, check.width, check.label, check.classes) == (1, 4, "signal", [])


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"files": "absent.txt"}, r"no file absent\.txt \(files\)"),
        ({"files": "a.root,c.root"}, r"^c\.root does not exist \(looked in the workspace and "),
        ({"files": "a.root,a.root"}, r"^a\.root:Events is listed twice"),
        ({"files": "a.root,https://u@h.example/b.root"}, "has a user's name"),
        ({"labels": "1,0,1"}, "There are 3 labels for 2 files"),
        ({"labels": "1,1"}, "All events have the label 1"),
        ({"labels": "MET_pz"}, "neither a file nor a branch .* Did you mean MET_pt"),
        ({"labels": "Muon_pt"}, "The label branch Muon_pt of a.root:Events is not one number an event"),
        ({"parameters": {"task": "regression"}}, "A regression needs its values in a branch"),
        ({"parameters": {"branch": "events"}}, "a.root has no tree events. The trees are Events|Did you mean Events"),
        ({"parameters": {"epochz": 1}}, "Did you mean epochs"),
        ({"parameters": {"epochs": 0}}, "epochs = 0 is wrong"),
        ({"parameters": {"weight": "weights"}}, "weight names weights"),
        ({"parameters": {"identifier": "evnt"}}, "identifier names the branch evnt.* Did you mean event"),
        ({"parameters": {"exclude_branches": ["MET_pz"]}}, "exclude_branches names .* Did you mean MET_pt"),
        ({"parameters": {"differing_branches": "error"}}, "signal is not in b.root"),
        ({"parameters": {"selected_branches": ["x*"]}}, "No branch is left as an input"),
        ({"model": "absent.py"}, "no file absent.py"),
    ],
)
def test_what_the_training_would_refuse_is_refused_in_the_same_words(workspace: Path, wanted: dict, said: str):
    with pytest.raises(UsageError, match=said) as refused:
        found(workspace, **wanted)
    assert str(workspace.parent) not in str(refused.value)


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({"new_branch": {"x": {"def": "MET_pz * 2", "type": "flat"}}}, "MET_pz.*Did you mean MET_pt"),
        ({"new_branch": {"x": {"def": "MET_pt *", "type": "flat"}}}, "new_branch x, def"),
        ({"new_branch": {"x": {"def": "Muon_pt * 2", "type": "flat"}}}, "is jagged, and its type says flat"),
        ({"flat_cut": {"MET_pz": {"cut": "MET_pt > 2"}}}, "names MET_pz, which is no branch"),
        ({"flat_cuts": {}}, "unknown key flat_cuts"),
    ],
)
def test_rules_of_the_preprocessing_are_tried_on_the_branches(workspace: Path, rules: dict, said: str):
    (workspace / "preproc.json").write_text(json.dumps(rules))
    with pytest.raises(UsageError, match=re.compile(said, re.DOTALL)):
        found(workspace)


def test_new_branches_are_inputs_and_removed_ones_are_not(workspace: Path):
    rule = {"def": "MET_pt / 2", "type": "flat", "cut": "half > 1", "keys_to_remove": ["MET_pt"]}
    (workspace / "preproc.json").write_text(json.dumps({"new_branch": {"half": rule}}))
    inputs = found(workspace).inputs["flat"]
    assert "half" in inputs and "MET_pt" not in inputs


def test_no_python_file_is_run(workspace: Path):
    (workspace / "preproc.py").write_text(EXECUTED)
    check = found(workspace, parameters={"weight": "made_by_it"})
    assert (check.entries, check.inputs) == (50, {})
    assert any("preproc.py is not run" in note for note in check.notes)


def test_the_files_of_the_workspace_stay_as_they_are(workspace: Path):
    (workspace / "params.json").write_text('{"epochs": 2}')
    (workspace / "other.txt").write_text("a.root\n")
    before = {path: path.read_bytes() for path in workspace.iterdir()}
    found(workspace, files="other.txt", labels="signal", parameters={"epochs": 3})
    assert {path: path.read_bytes() for path in workspace.iterdir()} == before


def test_of_files_on_servers_only_the_rest_is_checked(workspace: Path):
    (workspace / "files.txt").write_text("root://eos.example//x/*.root\nb.root\n")
    check = found(workspace)
    assert [file.entries for file in check.files] == [None, 20]
    assert (check.looked, check.servers, check.classes) == (1, [ENDPOINT], ["0", "1"])
    assert any("which was not asked for them" in note for note in check.notes)
    assert found(workspace, labels="1,0,1").classes == []
    assert found(workspace, files="root://eos.example//x.root,", labels="any").looked == 0
    with pytest.raises(UsageError, match="Did you mean epochs"):
        found(workspace, files="root://eos.example//x.root,", parameters={"epochz": 1})


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    jobs = JobSettings(interval=0.05, cpus=4, memory=2**40, endpoints=(ENDPOINT,))
    with running(tmp_path_factory.mktemp("service"), jobs=jobs) as service:
        yield service


def check(service: Running, user: User = ALICE, **wanted: Any) -> tuple[int, dict]:
    answer = service.client(user).post("/api/v1/jobs/check", json={"workspace": "higgs", **wanted})
    return answer.status_code, answer.json()


def test_a_check_by_the_api_makes_no_job_and_sees_what_a_job_would_see(bubblewrap: None, service: Running, data: Path):
    alice, bob = service.client(ALICE), service.client(BOB)
    files = {name: (data / name).read_bytes() for name in ("a.root", "b.root")}
    lists: dict[str, bytes | str] = {"files.txt": "a.root\nb.root\n", "labels.txt": "1\n0\n", "model.py": EXECUTED}
    upload(alice, files={**files, **lists})
    status, told = check(service)
    assert (status, told["entries"], told["classes"]) == (200, 50, ["0", "1"])
    assert alice.get("/api/v1/jobs").json()["jobs"] == []
    assert not list((service.settings.data / "jobs").iterdir())

    upload(bob, "own", {**files, "secret.txt": "secret_branch\n"})
    own = service.service.workspaces.folder(BOB.key, "own")
    assert check(service, BOB)[0] == 404
    status, told = check(service, files=f"a.root,{own}/b.root")
    assert (status, told["detail"].partition(" (")[0]) == (422, f"{own}/b.root does not exist")
    status, told = check(service, parameters={"identifier": f"{own}/secret.txt"})
    assert status == 422 and "secret_branch" not in told["detail"]

    half = len(files["a.root"]) // 2
    damaged = files["a.root"][:half] + b"\xff" * half
    assert alice.put("/api/v1/workspaces/higgs/files/b.root", content=damaged).is_success
    status, told = check(service)
    assert status == 422 and str(service.settings.data) not in json.dumps(told)


def test_limits_of_a_submission_hold_for_its_check(bubblewrap: None, service: Running):
    upload(service.client(), files={"model.py": EXECUTED})
    assert check(service, resources={"cpus": 5})[1]["detail"] == "The job asks for 5 (cpus), and there are 4."
    assert check(service, name="../x")[0] == 422
    status, told = check(service, files="root://other.example//x.root,", labels="is_signal")
    assert (status, told["detail"].partition(",")[0]) == (422, "The job reads from other.example:1094")
    status, told = check(service, files=f"root://{ENDPOINT}//x.root,", labels="is_signal")
    assert (status, told["looked"], told["servers"]) == (200, 0, [ENDPOINT])
