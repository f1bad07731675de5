"""Fixtures: the real data, small generated files, and the command run in this process."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import awkward as ak
import numpy as np
import pytest
import uproot

from mlaas4hep import cli
from mlaas4hep.data.ingest import ingest, scan
from mlaas4hep.data.schema import select
from mlaas4hep.data.sources import resolve_files
from mlaas4hep.data.store import PackedStore
from tests.confinement import require_sandbox

REPOSITORY = Path(__file__).resolve().parents[3]


def data_folder() -> Path | None:
    """The folder of real ROOT files: MLAAS4HEP_TEST_DATA, or shared/data beside the checkout; None without them."""
    folder = Path(os.environ.get("MLAAS4HEP_TEST_DATA") or REPOSITORY.parent / "shared" / "data")
    return folder if folder.is_dir() else None


@pytest.fixture(scope="session")
def real_data() -> Path:
    folder = data_folder()
    if folder is None:
        pytest.skip("needs the real data: set MLAAS4HEP_TEST_DATA")
    return folder


@pytest.fixture
def bubblewrap() -> None:
    """Skips where there are no sandboxes; under CI that is a failure."""
    require_sandbox()


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stores and jobs of a test stay with it."""
    monkeypatch.setenv("MLAAS4HEP_CACHE", str(tmp_path / "store"))
    monkeypatch.setenv("MLAAS4HEP_HOME", str(tmp_path / "home"))
    return tmp_path / "store"


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    status: int
    out: str
    err: str


Command = Callable[..., Outcome]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run `mlaas4hep` with these words, as its entry point does."""

    def run(*words: str | Path) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["mlaas4hep", *map(str, words)])
        monkeypatch.setattr(sys, "path", list(sys.path))
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        shown = capsys.readouterr()
        return Outcome(int(ended.value.code or 0), shown.out, shown.err)

    return run


@pytest.fixture
def stored() -> Callable[..., PackedStore]:
    """Ingest files with the choice of branches that `select` takes."""

    def make(files, *, tree: str = "Events", split: float = 0.3, nevts: int = -1, **choice) -> PackedStore:
        scanned, branches, notes = scan(resolve_files(",".join(map(str, files)), tree))
        return ingest(scanned, select(branches, notes=notes, **choice), split=split, nevts=nevts)

    return make


def _write_tree(path: Path, columns: dict[str, object], tree: str = "Events") -> Path:
    """A ROOT file with one TTree."""
    with uproot.recreate(path) as file:
        types = {name: getattr(values, "dtype", None) or values.type for name, values in columns.items()}
        file.mktree(tree, types).extend(columns)
    return path


def _collisions(events: int, shift: float, seed: int) -> dict[str, object]:
    """Columns of simple events; a larger shift makes them easier to tell from others."""
    generator = np.random.default_rng(seed)
    counts = generator.poisson(2.0, events)
    pt = generator.exponential(10.0 + shift, int(counts.sum())).astype(np.float32)
    return {
        "event": np.arange(events, dtype=np.uint64) + np.uint64(100_000_001),
        "MET_pt": generator.normal(20.0 + shift, 5.0, events),
        "trigger": generator.random(events) < 0.5,
        "Muon": ak.zip({"pt": ak.unflatten(pt, counts), "eta": ak.unflatten(-pt, counts)}),
    }


MODEL = """
import keras

def model(idim):
    network = keras.Sequential([keras.Input((idim,)), keras.layers.Dense(8, activation="relu"),
                                keras.layers.Dense(1, activation="sigmoid")])
    network.compile(optimizer=keras.optimizers.Adam(0.01), loss="binary_crossentropy")
    return network
"""


@pytest.fixture
def write_tree() -> Callable[..., Path]:
    return _write_tree


@pytest.fixture
def collisions() -> Callable[..., dict[str, object]]:
    return _collisions


@pytest.fixture
def set_parameters() -> Callable[..., None]:
    return _set_parameters


@pytest.fixture
def workflow_folder(tmp_path: Path) -> Path:
    """A complete workflow of two small files."""
    folder = tmp_path / "workflow"
    folder.mkdir()
    _write_tree(folder / "signal.root", _collisions(600, 8.0, 1))
    _write_tree(folder / "background.root", _collisions(300, 0.0, 2))
    (folder / "files.txt").write_text("# the files\nsignal.root\nbackground.root\n")
    (folder / "labels.txt").write_text("1\n0\n")
    (folder / "model.py").write_text(MODEL)
    _set_parameters(folder, identifier="event", epochs=2, batch_size=32)
    return folder


def _set_parameters(folder: Path, **parameters: object) -> None:
    """Write the workflow's params.json."""
    (folder / "params.json").write_text(json.dumps(parameters))
