"""`mlaas4hep specs`: the specs files of MLaaS4HEP, written and read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uproot

from mlaas4hep.data.specs import from_specs, read_specs
from mlaas4hep.errors import UsageError

GOOD: dict[str, Any] = {
    "jdim": {"Muon_pt": 3},
    "minv": {"MET": -1.0, "Muon_pt": 0.0},
    "maxv": {"MET": 3.0, "Muon_pt": 50.0},
    "fkeys": ["MET"],
    "jkeys": ["Muon_pt"],
    "nans": {"MET": 0.25, "Muon_pt": 0.0},
    "events": {"a.root": 10, "total": 10},
}


def test_specs_hold_the_extremes_of_each_file_and_of_all(workflow_folder: Path, tmp_path: Path, command: Any) -> None:
    done = command(
        *("specs", "--files", workflow_folder / "files.txt"),
        *("--params", workflow_folder / "params.json", "--fout", tmp_path / "specs"),
    )
    assert done.status == 0, done.err
    names = ["specs-signal.json", "specs-background.json", "global-specs.json"]
    assert [Path(line).name for line in done.out.splitlines()] == names
    signal, background, whole = (json.loads((tmp_path / "specs" / name).read_text()) for name in names)
    assert set(whole) == {"jdim", "minv", "maxv", "fkeys", "jkeys", "nans", "events"}
    assert whole["jkeys"] == ["Muon_eta", "Muon_pt"]
    assert "event" not in whole["fkeys"]
    assert whole["events"]["total"] == 900
    with uproot.open(workflow_folder / "signal.root") as file:
        met = file["Events"]["MET_pt"].array(library="np").astype(np.float32)
        most = int(file["Events"]["nMuon"].array(library="np").max())
    assert (signal["minv"]["MET_pt"], signal["maxv"]["MET_pt"]) == (met.min(), met.max())
    assert signal["jdim"]["Muon_pt"] == most
    assert signal["nans"]["MET_pt"] == pytest.approx(-met.min() / (met.max() - met.min()))
    for name in whole["minv"]:
        assert whole["minv"][name] == min(signal["minv"][name], background["minv"][name])
        assert whole["maxv"][name] == max(signal["maxv"][name], background["maxv"][name])


def test_specs_give_a_schema_their_dimensions_and_scaling(
    workflow_folder: Path, tmp_path: Path, command: Any, stored: Any
) -> None:
    command(
        *("specs", "--files", workflow_folder / "signal.root"),
        *("--params", workflow_folder / "params.json", "--fout", tmp_path),
    )
    specs = read_specs(tmp_path / "specs-signal.json")
    store = stored([workflow_folder / "signal.root"], identifiers=["event"])
    schema = store.schema()
    assert specs.applied(schema) == schema
    data = json.loads((tmp_path / "specs-signal.json").read_text())
    data["jdim"]["Muon_pt"] = 2
    data["maxv"]["MET_pt"] = data["minv"]["MET_pt"] + 4.0
    changed = from_specs(data, "specs").applied(schema)
    assert changed.multiplicities["Muon_pt"] == 2
    assert changed.width[changed.features.index("MET_pt")] == 4.0
    del data["minv"]["MET_pt"]
    data["minv"]["MET_Pt"] = 0.0
    data["maxv"]["MET_Pt"] = 1.0
    with pytest.raises(UsageError, match=r"no minimum and maximum of MET_pt. Did you mean MET_Pt"):
        from_specs(data, "specs").applied(schema)


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"jdim": {"Muon_pt": -1}}, "jdim of Muon_pt is negative"),
        ({"minv": {"MET": 9.0, "Muon_pt": 0.0}}, "MET lies between 9.0 and 3.0"),
        ({"minv": ["MET"]}, "wrong form"),
        ({"maxv": {"MET": "much"}}, "wrong form"),
    ],
)
def test_specs_that_make_no_sense_are_refused(changed: dict[str, Any], what: str) -> None:
    assert from_specs(GOOD, "s.json").multiplicities == {"Muon_pt": 3}
    with pytest.raises(UsageError, match=f"s.json.*{what}"):
        from_specs(GOOD | changed, "s.json")


def test_files_that_are_no_specs_are_refused(tmp_path: Path) -> None:
    for text, what in (("{}", "lacks jdim"), ("[]", "no JSON object"), ("{", "not valid JSON")):
        (tmp_path / "s.json").write_text(text)
        with pytest.raises(UsageError, match=what):
            read_specs(tmp_path / "s.json")
    with pytest.raises(UsageError, match="cannot be read"):
        read_specs(tmp_path / "none.json")
