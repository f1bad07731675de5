"""Simulated collisions in the layout of CMS NanoAOD: a Higgs boson that decays to four muons, and two muons with jets.

The distributions are simple ones with the right shapes and scales (falling momenta, a Z mass, resolution by smearing),
chosen so that a small network separates the classes well but not fully. The same seed gives the same values.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import uproot
from numpy.typing import NDArray

from mlaas4hep.errors import MlaasError, UsageError

_TREE = "Events"
_SHARES = {"signal_1.root": 0.3, "signal_2.root": 0.15, "background_1.root": 0.35, "background_2.root": 0.2}
_NAMESPACE = uuid.UUID("6f0c1a62-5a0e-4f7c-9a60-1b2f1d3c5e77")
_BASKET = 5_000
_MUON_MASS = 0.1057
_RUN = 362_104


@dataclass(frozen=True)
class Process:
    """What differs between the classes; momenta in GeV.

    Attributes:
        muons: mean number of muons beyond two.
        muon_scale: scale of the muons' falling momentum.
        jets: mean number of jets.
        jet_scale: scale of the jets' falling momentum.
        met_scale: scale of the missing momentum.
        b_jets: fraction of jets that look like b jets.
        isolation: scale of the muons' relative isolation.
    """

    muons: float
    muon_scale: float
    jets: float
    jet_scale: float
    met_scale: float
    b_jets: float
    isolation: float


SIGNAL = Process(muons=1.2, muon_scale=24.0, jets=1.5, jet_scale=40.0, met_scale=14.0, b_jets=0.05, isolation=0.045)
BACKGROUND = Process(muons=0.4, muon_scale=16.0, jets=2.3, jet_scale=30.0, met_scale=22.0, b_jets=0.18, isolation=0.09)


def write_example(folder: Path, events: int, seed: int) -> None:
    """Write a complete workflow folder with data.

    Args:
        folder: the folder to make; it must not hold anything yet.
        events: number of events of all files together.
        seed: start of the random numbers.

    Raises UsageError when the folder is not empty, MlaasError when it cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists and is not an empty folder.", "Name another one.")
    try:
        (folder / "data").mkdir(parents=True)
        first: dict[str, Any] = {}
        for number, (name, share) in enumerate(_SHARES.items()):
            process = SIGNAL if name.startswith("signal") else BACKGROUND
            generator = np.random.default_rng([seed, number])
            columns = simulate(process, round(events * share), generator, first_event=10_000_000 * (number + 1))
            _write_root(folder / "data" / name, columns, f"{seed} {events} {name}")
            first = first or columns
        _write_texts(folder, first)
    except OSError as error:
        raise MlaasError(f"The example cannot be written to {folder}: {error.strerror or error}.") from error


def simulate(process: Process, events: int, generator: np.random.Generator, first_event: int) -> dict[str, Any]:
    """Simulated events of one process.

    Returns for each branch a NumPy array of shape (events,), or an awkward array for the jagged ones; those of a
    collection (`Muon`, `Jet`) are fields of one record.
    """
    muons = 2 + generator.poisson(process.muons, events)
    jets = generator.poisson(process.jets, events)
    met = generator.gamma(2.0, process.met_scale / 2.0, events)
    number = np.arange(events, dtype=np.uint64)
    return {
        "run": np.full(events, _RUN, dtype=np.uint32),
        "luminosityBlock": (1 + number // 500).astype(np.uint32),
        "event": first_event + 1 + number * np.uint64(7),
        "HLT_IsoMu24": generator.random(events) < 0.8 + 0.1 * (muons > 2),
        "PV_npvs": generator.poisson(32.0, events).astype(np.int32),
        "MET_pt": met.astype(np.float32),
        "MET_phi": _angle(generator, events),
        "Muon": _muons(process, muons, generator),
        "Jet": _jets(process, jets, generator),
    }


def _muons(process: Process, counts: NDArray[Any], generator: np.random.Generator) -> Any:
    total = int(counts.sum())
    momentum = 5.0 + generator.gamma(1.5, process.muon_scale / 1.5, total)
    return _collection(
        counts,
        pt=momentum.astype(np.float32),
        eta=np.clip(generator.normal(0.0, 1.1, total), -2.4, 2.4).astype(np.float32),
        phi=_angle(generator, total),
        mass=np.full(total, _MUON_MASS, dtype=np.float32),
        charge=generator.choice(np.array([-1, 1], dtype=np.int32), total),
        pfRelIso03_all=generator.exponential(process.isolation, total).astype(np.float32),
        tightId=generator.random(total) < 0.92,
    )


def _jets(process: Process, counts: NDArray[Any], generator: np.random.Generator) -> Any:
    total = int(counts.sum())
    momentum = 20.0 + generator.exponential(process.jet_scale, total)
    tagged = generator.random(total) < process.b_jets
    score = np.where(tagged, generator.beta(5.0, 1.5, total), generator.beta(1.2, 6.0, total))
    return _collection(
        counts,
        pt=momentum.astype(np.float32),
        eta=np.clip(generator.normal(0.0, 1.7, total), -4.7, 4.7).astype(np.float32),
        phi=_angle(generator, total),
        mass=(momentum * generator.uniform(0.08, 0.2, total)).astype(np.float32),
        btagDeepFlavB=score.astype(np.float32),
    )


def _angle(generator: np.random.Generator, size: int) -> NDArray[np.float32]:
    return generator.uniform(-np.pi, np.pi, size).astype(np.float32)


def _collection(counts: NDArray[Any], **fields: NDArray[Any]) -> Any:
    """Objects of an event, hardest first, as one jagged array of records."""
    event = np.repeat(np.arange(counts.size), counts)
    order = np.lexsort((-fields["pt"], event))
    return ak.zip({name: ak.unflatten(values[order], counts) for name, values in fields.items()})


def _write_root(path: Path, columns: dict[str, Any], name: str) -> None:
    """Write a TTree with a counter for each collection (nMuon, nJet); the file's identifier follows from `name`."""
    with uproot.recreate(path, uuid_function=lambda: uuid.uuid5(_NAMESPACE, name)) as file:
        tree = file.mktree(_TREE, {key: getattr(value, "dtype", None) or value.type for key, value in columns.items()})
        for start in range(0, len(columns["event"]), _BASKET):
            tree.extend({key: values[start : start + _BASKET] for key, values in columns.items()})


def _write_texts(folder: Path, columns: dict[str, Any]) -> None:
    names = list(_SHARES)
    labels = ["1" if name.startswith("signal") else "0" for name in names]
    _write(folder / "files.txt", "# one ROOT file a line\n" + "".join(f"data/{name}\n" for name in names))
    _write(folder / "labels.txt", "# one label a line, in the order of files.txt\n" + "".join(f"{x}\n" for x in labels))
    _write(folder / "model.py", resources.files("mlaas4hep.example").joinpath("model.py").read_text(encoding="utf-8"))
    _write(folder / "params.json", json.dumps(_PARAMETERS, indent=1) + "\n")
    _write(folder / "event.json", json.dumps(_first_event(columns), indent=1) + "\n")


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _first_event(columns: dict[str, Any]) -> dict[str, Any]:
    """The first event with the branch names that it has in the file."""
    event: dict[str, Any] = {}
    for name, values in columns.items():
        if isinstance(values, np.ndarray):
            event[name] = values[0].item()
            continue
        event[f"n{name}"] = len(values[0])
        event |= {f"{name}_{field}": values[field][0].to_list() for field in values.fields}
    return event


_PARAMETERS: dict[str, Any] = {
    "nevts": -1,
    "shuffle": True,
    "chunk_size": 8192,
    "epochs": 8,
    "batch_size": 128,
    "split": 0.3,
    "identifier": ["run", "luminosityBlock", "event"],
    "branch": _TREE,
    "selected_branches": "",
    "exclude_branches": "",
    "hist": "pdfs",
    "redirector": "",
    "verbose": 1,
    "metrics": True,
    "training": "standard",
    "seed": 1,
}
