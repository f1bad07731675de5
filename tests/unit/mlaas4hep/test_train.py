"""`mlaas4hep train` and `predict`, as a user runs them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import uproot

# Keras hands its weights to NumPy in the way of NumPy 1 when it saves them

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


def read(path: Path):
    return json.loads(path.read_text())


def test_the_example_trains_predicts_and_says_where_it_came_from(command, tmp_path: Path) -> None:
    made = command("example-data", tmp_path / "example", "--events", "6000", "--seed", "3")
    assert (made.status, made.err) == (0, "")
    out = tmp_path / "model"
    done = command("train", "--folder", tmp_path / "example", "--fout", out, "--epochs", "5", "--progress", "json")
    assert done.status == 0, done.err
    events = [json.loads(line) for line in done.err.splitlines()]
    assert [event["epoch"] for event in events if event["event"] == "epoch"] == [1, 2, 3, 4, 5]
    assert events[-1]["event"] == "finished"

    metrics = read(out / "metrics.json")
    test = metrics["final"]["test"]
    assert 0.85 <= test["auc"] <= 0.95
    assert 0 < test["auc_error"] < 0.03
    assert sum(map(sum, test["confusion"])) == test["events"]
    assert metrics["history"][-1]["val_loss"] < metrics["history"][0]["val_loss"]

    provenance = read(out / "provenance.json")
    assert [(file["entries"], file["label"]) for file in provenance["files"]] == [
        (1800, "1"),
        (900, "1"),
        (2100, "0"),
        (1200, "0"),
    ]
    assert all(file["uuid"] and sum(file["parts"]) == file["entries_used"] for file in provenance["files"])
    assert read(out / "params.json")["epochs"] == 5
    assert read(out / "histograms.json")["Muon_pt"]["counts"].keys() == {"0", "1"}

    answer = json.loads(command("predict", out, tmp_path / "example" / "event.json").out)
    assert sum(answer["probabilities"].values()) == pytest.approx(1)
    assert answer["label"] in ("0", "1")


def test_the_same_seed_makes_the_same_example(command, tmp_path: Path) -> None:
    for name in ("one", "two"):
        command("example-data", tmp_path / name, "--events", "200", "--seed", "7")
    with (
        uproot.open(tmp_path / "one/data/signal_1.root") as one,
        uproot.open(tmp_path / "two/data/signal_1.root") as two,
    ):
        assert one.file.uuid == two.file.uuid
        assert one["Events"].arrays().tolist() == two["Events"].arrays().tolist()


def test_ww_against_zz_reaches_the_figure(command, real_data: Path, tmp_path: Path) -> None:
    done = command(
        "train",
        *("--files", f"{real_data}/cms_ww.root,{real_data}/cms_zz.root", "--labels", "1,0"),
        *("--model", EXAMPLES / "ww_zz" / "model.py", "--params", EXAMPLES / "ww_zz" / "params.json"),
        *("--fout", tmp_path / "model"),
    )
    assert done.status == 0, done.err
    assert read(tmp_path / "model" / "metrics.json")["final"]["test"]["auc"] >= 0.81


MASKED = """
import keras

def model(schema):
    values = keras.Input((schema.idim,), name="values")
    mask = keras.Input((schema.idim,), name="mask")
    first = schema.slices["Muon_pt"].start
    hidden = keras.layers.Dense(4)(keras.layers.Concatenate()([values, mask[:, first:]]))
    network = keras.Model([mask, values], keras.layers.Dense(1, activation="sigmoid")(hidden))
    network.compile(loss="binary_crossentropy")
    return network
"""


def test_a_model_of_the_schema_gets_the_mask(command, workflow_folder: Path, tmp_path: Path) -> None:
    (workflow_folder / "model.py").write_text(MASKED)
    done = command("train", "--folder", workflow_folder, "--fout", tmp_path / "m", "--epochs", "1")
    assert done.status == 0, done.err
    assert "with the mask" in done.err


THREE = """
import keras

def model(idim):
    network = keras.Sequential([keras.Input((idim,)), keras.layers.Dense(3)])
    network.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return network
"""


def test_three_classes_from_a_branch(
    command, workflow_folder: Path, tmp_path: Path, write_tree, set_parameters
) -> None:
    kind = np.random.default_rng(1).integers(0, 3, 600).astype(np.int32)
    write_tree(workflow_folder / "all.root", {"kind": kind, "x": kind + 0.1, "y": -kind})
    (workflow_folder / "files.txt").write_text("all.root\n")
    (workflow_folder / "labels.txt").write_text("kind\n")
    (workflow_folder / "model.py").write_text(THREE)
    set_parameters(workflow_folder, epochs=2, batch_size=32)
    done = command("train", "--folder", workflow_folder, "--fout", tmp_path / "m")
    assert done.status == 0, done.err
    (tmp_path / "event.json").write_text(json.dumps([{"x": 0.1, "y": 0}, {"x": 2.1, "y": -2, "kind": 2}]))
    answers = json.loads(command("predict", tmp_path / "m", tmp_path / "event.json").out)
    assert [list(answer["probabilities"]) for answer in answers] == [["0", "1", "2"]] * 2
    assert sum(answers[0]["probabilities"].values()) == pytest.approx(1)


BODY = "import keras\n\ndef model(idim):\n    return {}\n"


@pytest.mark.parametrize(
    ("source", "status", "said"),
    [
        ("import keras\n1 / 0\n", 1, "model.py, line 2: ZeroDivisionError: division by zero."),
        ("def model(idim:\n", 1, "model.py, line 1: SyntaxError"),
        ("raise SystemExit('stop')\n", 1, "model.py, line 1: SystemExit: stop."),
        ("def model(idim):\n    return [][idim]\n", 1, "model.py, line 2: IndexError: list index out of range."),
        ("def modle(idim):\n    pass\n", 2, "has no function model. Did you mean modle?"),
        ("def model():\n    pass\n", 2, "which is no model. Return a compiled Keras model"),
        (BODY.format("keras.layers.Dense(1)"), 2, "not a Keras model"),
        (BODY.format("keras.Sequential([keras.Input((idim,)), keras.layers.Dense(1)])"), 2, "is not compiled"),
        (BODY.format("keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])"), 2, "is not compiled"),
    ],
)
def test_a_model_that_fails_is_explained_by_file_and_line(
    command, workflow_folder: Path, tmp_path: Path, source: str, status: int, said: str
) -> None:
    (workflow_folder / "model.py").write_text(source)
    refused(command, workflow_folder, tmp_path, status, said)


COMPILED = """
import keras

def model(idim):
    network = keras.Sequential([keras.Input(({width},)), keras.layers.Dense({outputs}, activation="{activation}")])
    network.compile(loss="{loss}")
    return network
"""


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"width": 3}, "model.py: ValueError"),
        ({"outputs": 4}, "Training on 2 classes needs 1 or 2 outputs."),
        ({"activation": "linear", "loss": "mse"}, "the model's outputs are no probabilities"),
    ],
)
def test_a_model_that_does_not_fit_the_task(
    command, workflow_folder: Path, tmp_path: Path, changes: dict, said: str
) -> None:
    chosen = {"width": "idim", "outputs": 1, "activation": "sigmoid", "loss": "binary_crossentropy"} | changes
    (workflow_folder / "model.py").write_text(COMPILED.format(**chosen))
    refused(command, workflow_folder, tmp_path, None, said)


@pytest.mark.parametrize(
    ("parameters", "status", "said"),
    [
        ({"branch": "events"}, 1, "has no tree events. Did you mean Events?"),
        ({"exclude_branches": "MET_ptt"}, 2, "Did you mean MET_pt?"),
        ({}, 2, "would round in event. Add them to identifier"),
        ({"identifier": "event", "nevts": 5}, 1, "No event of the class"),
        ({"identifier": "event", "epochs": -1}, 2, "epochs = -1 is wrong"),
    ],
)
def test_wrong_parameters_are_refused(
    command, workflow_folder: Path, tmp_path: Path, set_parameters, parameters: dict, status: int, said: str
) -> None:
    set_parameters(workflow_folder, **parameters)
    refused(command, workflow_folder, tmp_path, status, said)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ("1\n1\n", "All events have the label 1."),
        ("isSignal\n", "neither a file nor a branch"),
        ("1\n", "1 labels for 2"),
    ],
)
def test_wrong_labels_are_refused(command, workflow_folder: Path, tmp_path: Path, labels: str, said: str) -> None:
    (workflow_folder / "labels.txt").write_text(labels)
    refused(command, workflow_folder, tmp_path, 2, said)


def refused(command, folder: Path, tmp_path: Path, status: int | None, said: str) -> None:
    """The training ends with one sentence, and leaves no model folder."""
    done = command("train", "--folder", folder, "--fout", tmp_path / "out", "--progress", "none")
    assert said in done.err
    assert done.status == (status or done.status) != 0
    assert "Traceback" not in done.err
    assert len(done.err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--files", "a.root"], "--labels and --model missing."),
        (["--folder", "x", "--files", "a.root"], "--folder already names files"),
        (["--folder", "x", "--preproc", "p.json"], "--folder already names files"),
    ],
)
def test_wrong_use_of_the_command(command, words: list[str], said: str) -> None:
    done = command("train", *words)
    assert (done.status, said in done.err) == (2, True)


def test_an_existing_folder_is_kept_unless_it_is_a_model_and_may_be_replaced(
    command, workflow_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "m"
    out.mkdir()
    (out / "thesis.tex").write_text("precious")
    words = ("train", "--folder", workflow_folder, "--fout", out, "--epochs", "1")
    assert "m exists." in command(*words).err
    assert "is not a model folder" in command(*words, "--overwrite").err
    assert (out / "thesis.tex").read_text() == "precious"
    shutil.rmtree(out)
    out.mkdir()
    (out / "bundle.json").write_text("{}")
    (out / "old").write_text("an older model")
    assert command(*words, "--overwrite").status == 0
    assert not (out / "old").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    predictions(command, out, tmp_path)


def predictions(command, bundle: Path, tmp_path: Path) -> None:
    """What an event may be, and what is answered to one that is wrong."""
    event = {
        "MET_pt": 25.0,
        "trigger": True,
        "nMuon": 2,
        "Muon_pt": [20.0, None],
        "Muon_eta": [-20.0, -5.0],
        "event": 1,
    }

    def predict(changed: object):
        (tmp_path / "event.json").write_text(json.dumps(changed))
        return command("predict", bundle, tmp_path / "event.json")

    assert json.loads(predict(event).out)["probabilities"].keys() == {"0", "1"}
    assert json.loads(predict(event | {"Muon_pt": [1.0] * 500}).out)
    for wrong, said in (
        (event | {"Muon_ptt": []}, "unknown branch Muon_ptt. Did you mean Muon_pt"),
        ({name: value for name, value in event.items() if name != "MET_pt"}, "lacks MET_pt"),
        (event | {"Muon_pt": 3.0}, "Muon_pt is 3.0, but it has a list"),
        (event | {"MET_pt": "high"}, "MET_pt is 'high', but it has a number"),
        ([], "no event"),
        ([event, 3], "Event 1 is no JSON object"),
    ):
        done = predict(wrong)
        assert (done.status, said in done.err) == (2, True), done.err
    assert "is not a model folder" in command("predict", tmp_path, tmp_path / "event.json").err
