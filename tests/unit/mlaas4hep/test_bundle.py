"""Bundles: what is in them, what is refused, and that prediction needs no framework."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlaas4hep.errors import MlaasError, UsageError
from mlaas4hep.training import onnx_export
from mlaas4hep.training.bundle import Bundle, read_bundle
from mlaas4hep.training.experiment import train
from mlaas4hep.training.onnx_export import ExportError
from mlaas4hep.training.onnx_network import Inexpressible
from mlaas4hep.training.prediction import predict_events
from mlaas4hep.training.progress import silent
from mlaas4hep.training.workflow import load_folder

BOOSTED = """
from settings import rounds
from xgboost import XGBClassifier

def model():
    return XGBClassifier(n_estimators=rounds, max_depth=3, n_jobs=1)
"""
EVENT = {"MET_pt": 21.0, "trigger": True, "Muon_pt": [30.0, None], "Muon_eta": [0.1, 0.2], "nMuon": 2}


@pytest.fixture
def boosted(workflow_folder: Path) -> Path:
    """A workflow that XGBoost trains, with a module of the user beside the model."""
    (workflow_folder / "model.py").write_text(BOOSTED)
    (workflow_folder / "settings.py").write_text("rounds = 8\n")
    sys.modules.pop("settings", None)
    return workflow_folder


def trained(folder: Path, out: Path, **more: Any) -> Bundle:
    return train(load_folder(folder), out, silent, **more)


def test_a_bundle_holds_the_model_twice_and_where_it_came_from(boosted: Path, tmp_path: Path) -> None:
    bundle = trained(boosted, tmp_path / "m")
    manifest = json.loads((bundle.folder / "bundle.json").read_text())
    assert (manifest["format"], manifest["framework"], manifest["runtime"]) == (2, "xgboost", "onnx")
    assert manifest["onnx_check"]["largest_difference"] <= manifest["onnx_check"]["tolerance"]
    assert {"model.ubj", "model.onnx", "schema.json", "provenance.json", "code/model.py", "code/settings.py"} <= set(
        manifest["files"]
    )
    provenance = json.loads((bundle.folder / "provenance.json").read_text())
    assert [file["entries_used"] for file in provenance["files"]] == [600, 300]
    assert all(file["uuid"] and file["size"] for file in provenance["files"])
    assert set(provenance["code"]) == {"model.py", "settings.py"}
    assert provenance["versions"]["xgboost-cpu"]
    assert not list(tmp_path.glob(".*partial"))


def test_the_card_says_what_a_physicist_asks(boosted: Path, tmp_path: Path) -> None:
    bundle = trained(boosted, tmp_path / "m")
    card = (bundle.folder / "README.md").read_text()
    for heading in ("Data", "Measures", "Inputs", "Limits", "Use", "Made with"):
        assert f"\n## {heading}\n" in card
    assert "tells apart the classes 0, 1" in card
    assert "| `MET_pt` | flat |" in card
    assert "+-" in card
    (bundle.folder / "README.md").write_text(card + "\nLicence: CC-BY-4.0\n")
    assert read_bundle(bundle.folder) == bundle


def test_onnx_runtime_and_the_framework_predict_the_same(boosted: Path, tmp_path: Path) -> None:
    bundle = trained(boosted, tmp_path / "m")
    by_onnx = predict_events(bundle, [EVENT])[0]
    native = Bundle(**{**vars(bundle), "runtime": "native"})
    by_framework = predict_events(native, [EVENT])[0]
    assert by_onnx["label"] == by_framework["label"]
    assert by_onnx["probabilities"] == pytest.approx(by_framework["probabilities"], abs=1e-5)


def test_prediction_loads_no_framework(boosted: Path, tmp_path: Path) -> None:
    bundle = trained(boosted, tmp_path / "m")
    (tmp_path / "event.json").write_text(json.dumps(EVENT))
    program = (
        "import sys, runpy\n"
        f"sys.argv = ['mlaas4hep', 'predict', {str(bundle.folder)!r}, {str(tmp_path / 'event.json')!r}]\n"
        "from mlaas4hep.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = {'tensorflow', 'keras', 'torch', 'xgboost', 'sklearn', 'onnx', 'uproot', 'numba'}\n"
        "loaded = heavy & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)["probabilities"]) == {"0", "1"}


def test_a_changed_file_is_refused_before_anything_is_loaded(boosted: Path, tmp_path: Path, command: Any) -> None:
    bundle = trained(boosted, tmp_path / "m")
    for name in ("model.onnx", "model.ubj", "schema.json", "code/model.py"):
        written = (bundle.folder / name).read_bytes()
        (bundle.folder / name).write_bytes(written + b" ")
        done = command("predict", bundle.folder, "-")
        assert done.status == 1
        assert f"{name} was changed after the model was written" in done.err
        (bundle.folder / name).write_bytes(written)
    assert read_bundle(bundle.folder) == bundle


def test_damaged_and_other_folders_are_refused_in_one_sentence(boosted: Path, tmp_path: Path) -> None:
    bundle = trained(boosted, tmp_path / "m")
    manifest = json.loads((bundle.folder / "bundle.json").read_text())

    def refused(changed: object, what: str, error: type[MlaasError] = MlaasError) -> None:
        (bundle.folder / "bundle.json").write_text(json.dumps(changed))
        with pytest.raises(error, match=what):
            read_bundle(bundle.folder)

    refused(manifest | {"format": 1}, "another version of mlaas4hep .its format is 1, not 2")
    refused(manifest | {"files": manifest["files"] | {"../secret": "0"}}, "outside of it")
    refused(manifest | {"files": {"schema.json": manifest["files"]["schema.json"]}}, "it lacks model.ubj")
    refused(manifest | {"files": manifest["files"] | {"gone": "0"}}, "it lacks gone")
    refused([], "is damaged .TypeError")
    refused({name: value for name, value in manifest.items() if name != "classes"}, "is damaged .KeyError")
    shutil.rmtree(bundle.folder)
    with pytest.raises(UsageError, match="is not a model folder"):
        read_bundle(bundle.folder)


def test_a_model_that_onnx_cannot_express_is_predicted_by_its_framework(
    boosted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise Inexpressible("the moon is in the wrong phase")

    monkeypatch.setattr(onnx_export, "xgboost_graph", refused)
    bundle = trained(boosted, tmp_path / "m")
    manifest = json.loads((bundle.folder / "bundle.json").read_text())
    assert (bundle.runtime, manifest["onnx_check"]) == ("native", None)
    assert "the moon is in the wrong phase" in manifest["runtime_reason"]
    assert "the moon is in the wrong phase" in (bundle.folder / "README.md").read_text()
    assert not (bundle.folder / "model.onnx").exists()
    assert sum(predict_events(bundle, [EVENT])[0]["probabilities"].values()) == pytest.approx(1.0)


def test_a_model_whose_export_differs_is_not_published(
    boosted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "TOLERANCE", 0.0)
    with pytest.raises(ExportError, match="so it is not published"):
        trained(boosted, tmp_path / "m")
    assert not (tmp_path / "m").exists()
    assert not list(tmp_path.glob(".m*"))


def test_an_event_that_the_cuts_remove_gets_no_prediction(boosted: Path, tmp_path: Path) -> None:
    rules = {
        "new_branch": {"MET_twice": {"def": "2 * MET_pt", "type": "flat", "remove": "False"}},
        "flat_cut": {"MET_pt": {"cut": "MET_pt > 15", "remove": "False"}},
    }
    (boosted / "preproc.json").write_text(json.dumps(rules))
    bundle = trained(boosted, tmp_path / "m")
    assert "MET_twice" in bundle.schema.features
    kept, cut = predict_events(bundle, [EVENT, EVENT | {"MET_pt": 1.0}])
    assert set(kept["probabilities"]) == {"0", "1"}
    assert cut == {"probabilities": None, "label": None, "cut": True}
    flow = json.loads((bundle.folder / "provenance.json").read_text())["cut_flow"]
    assert flow[0]["events"] == 900 > flow[1]["events"]
    assert "MET_pt > 15" in (bundle.folder / "README.md").read_text()


def test_the_user_function_of_the_preprocessing_travels_with_the_model(boosted: Path, tmp_path: Path) -> None:
    (boosted / "preproc.py").write_text(
        "def preprocessing(record):\n"
        "    record['MET_half'] = record['MET_pt'] / 2\n"
        "    return record if record['MET_pt'] > 15 else None\n"
    )
    bundle = trained(boosted, tmp_path / "m")
    (boosted / "preproc.py").unlink()
    assert bundle.preprocessing_file == "code/preproc.py"
    event = EVENT | {"event": 7}
    kept, cut = predict_events(bundle, [event, event | {"MET_pt": 1.0}])
    assert kept["label"] in bundle.classes
    assert cut["cut"]


def test_a_regression_predicts_values(boosted: Path, tmp_path: Path, set_parameters: Any) -> None:
    (boosted / "model.py").write_text(
        "from xgboost import XGBRegressor\n\ndef model():\n    return XGBRegressor(n_estimators=20, n_jobs=1)\n"
    )
    (boosted / "labels.txt").write_text("MET_pt\n")
    set_parameters(boosted, identifier="event", task="regression")
    bundle = trained(boosted, tmp_path / "m")
    event = {name: value for name, value in EVENT.items() if name != "MET_pt"}
    (answer,) = predict_events(bundle, [event])
    assert np.isfinite(answer["prediction"])
    assert "predicts a value" in (bundle.folder / "README.md").read_text()
