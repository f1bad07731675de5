"""Models that the server does not load: predicted with in sandboxes, whatever is in them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from mlaas4hep.training.bundle import read_bundle
from mlaas4hep.training.prediction import predict_events
from tests import serving_parts as parts
from tests.confinement import require_confinement
from tests.slurm.cluster import wait_until

EVENTS = 20
ESTIMATOR = """
from sklearn.ensemble import RandomForestClassifier

def model():
    return RandomForestClassifier(n_estimators=5, max_depth=3, random_state=1)
"""
NETWORK = """
import keras

def model(idim):
    network = keras.Sequential([keras.Input((idim,)), keras.layers.Dense(1, activation="sigmoid")])
    network.compile(optimizer="adam", loss="binary_crossentropy")
    return network
"""
OWN = """
import os, socket, time
from pathlib import Path

HELD = []

def preprocessing(record):
    met = record["MET_pt"]
    if met == 1e6:
        while True:
            HELD.append(os.urandom(2**20) * 8)
    if met == 2e6:
        time.sleep(1000)
    if met == 3e6:
        os._exit(0)
    if met in (5e6, 6e6):
        # what the server reads instead of the answer: too much, and nonsense
        size = 2**60 if met == 5e6 else 9
        for number in range(3, 64):
            try:
                os.write(number, b"\2" + size.to_bytes(8, "big") + b"nonsense!")
            except OSError:
                pass
        time.sleep(1000)
    if met == 4e6:
        for action in (
            lambda: socket.create_connection(("127.0.0.1", PORT)),
            lambda: Path("/etc/shadow").read_text(),
            lambda: os.listdir(REPOSITORY),
        ):
            try:
                action()
            except OSError:
                continue
            raise RuntimeError("it got out")
        raise LookupError("all was refused")
    if met < 15:
        return None
    record["twice"] = 2 * met
    return record
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[httpx.Client, dict[str, Any], Path]]:
    """A server with both kinds of model, what each predicts outside of it, and where their processes have folders."""
    require_confinement()
    folder = tmp_path_factory.mktemp("native")
    with pytest.MonkeyPatch.context() as patch:
        # as after a job: the key that has sealed the estimator is gone
        patch.setenv("MLAAS4HEP_HOME", str(folder / "key"))
        own = OWN.replace("PORT", "1").replace("REPOSITORY", repr(str(folder / "repository")))
        bundles = {
            "forest": parts.trained(folder / "forest", model=ESTIMATOR, runtime="native"),
            "own": parts.trained(folder / "own", own=own),
        }
        events = parts.events_of(folder / "forest" / "workflow" / "signal.root", EVENTS)
        expected = {name: predict_events(read_bundle(bundle), events) for name, bundle in bundles.items()}
        shutil.rmtree(folder / "key")
    repository = parts.repository(folder / "repository")
    for name, bundle in bundles.items():
        repository.publish(parts.ANNA.key, name, bundle)
    with parts.running(folder / "repository", seconds=8, native_memory=600 * 2**20) as client:
        yield client, {"events": events, **expected}, folder / "predicting"


def ask(client: httpx.Client, name: str, events: Any) -> httpx.Response:
    return client.post(f"/v2/models/{name}/events", json=events, timeout=300)


def probabilities(told: list[dict[str, Any]]) -> np.ndarray:
    return np.array([list(entry["probabilities"].values()) for entry in told if entry["probabilities"]])


@pytest.mark.parametrize("name", ["forest", "own"])
def test_events_are_predicted_as_outside_of_the_service(
    served: tuple[httpx.Client, dict[str, Any], Path], name: str
) -> None:
    client, known, _ = served
    answer = ask(client, name, known["events"])
    assert answer.status_code == 200, answer.text
    told = answer.json()["predictions"]
    assert [entry.get("cut", False) for entry in told] == [entry.get("cut", False) for entry in known[name]]
    np.testing.assert_allclose(probabilities(told), probabilities(known[name]), rtol=1e-5)


@pytest.mark.parametrize("name", ["forest", "own"])
def test_prepared_inputs_are_predicted(served: tuple[httpx.Client, dict[str, Any], Path], name: str) -> None:
    client, _, _ = served
    facts = client.get(f"/v2/models/{name}").json()
    width = facts["inputs"][0]["shape"][1]
    inputs = [
        {"name": tensor["name"], "datatype": "FP32", "shape": [3, width], "data": [0.0] * (3 * width)}
        for tensor in facts["inputs"]
    ]
    answer = client.post(f"/v2/models/{name}/infer", json={"inputs": inputs}, timeout=300)
    assert answer.status_code == 200, answer.text
    found = np.array(answer.json()["outputs"][0]["data"]).reshape(3, 2)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)


def one(known: dict[str, Any], met: float) -> list[dict[str, Any]]:
    return [known["events"][0] | {"MET_pt": met}]


@pytest.mark.parametrize(
    ("met", "status", "told"),
    [
        (1e6, 503, "It needed more memory than the 600 MiB that it may use."),
        (2e6, 504, "The prediction takes longer than it may."),
        (3e6, 503, "The process of the model ended while it predicted."),
        (5e6, 503, "The process of the model ended while it predicted."),
        (6e6, 503, "The process of the model answers something else."),
    ],
)
def test_a_model_that_misbehaves_fails_alone_and_is_started_again(
    served: tuple[httpx.Client, dict[str, Any], Path], met: float, status: int, told: str
) -> None:
    client, known, folder = served
    answer = ask(client, "own", one(known, met))
    assert (answer.status_code, told in answer.json()["error"]) == (status, True), answer.text
    assert ask(client, "own", known["events"]).status_code == 200
    assert ask(client, "forest", known["events"]).status_code == 200
    wait_until(lambda: len(list(folder.iterdir())) <= 2, 120)


def test_a_models_code_reaches_nothing(served: tuple[httpx.Client, dict[str, Any], Path]) -> None:
    client, known, _ = served
    answer = ask(client, "own", one(known, 4e6))
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("code/preproc.py, line 36: LookupError: all was refused.")


def test_a_process_makes_room_for_another_one(
    tmp_path: Path, served: tuple[httpx.Client, dict[str, Any], Path]
) -> None:
    _, known, folder = served
    shutil.copytree(folder.with_name("repository"), tmp_path / "repository")
    with parts.running(tmp_path / "repository", native=1) as client:
        for name in ("forest", "own", "forest"):
            assert ask(client, name, known["events"]).status_code == 200
            wait_until(lambda: len(list((tmp_path / "predicting").iterdir())) == 1, 60)


def test_a_keras_model_predicts_by_its_own_file(tmp_path: Path) -> None:
    bundle = parts.trained(tmp_path / "keras", model=NETWORK, runtime="native", epochs=1)
    events = parts.events_of(tmp_path / "keras" / "workflow" / "signal.root", EVENTS)
    expected = predict_events(read_bundle(bundle), events)
    parts.repository(tmp_path / "repository").publish(parts.ANNA.key, "network", bundle)
    with parts.running(tmp_path / "repository") as client:
        answer = ask(client, "network", events)
        assert answer.status_code == 200, answer.text
        assert client.get("/v2/models/network").json()["platform"] == "mlaas4hep_keras"
        assert client.get("/models/network/graph/model.onnx").status_code == 400
    np.testing.assert_allclose(probabilities(answer.json()["predictions"]), probabilities(expected), rtol=1e-4)


def test_no_process_outlives_the_server(tmp_path: Path, served: tuple[httpx.Client, dict[str, Any], Path]) -> None:
    _, known, folder = served
    shutil.copytree(folder.with_name("repository"), tmp_path / "repository")
    with parts.running(tmp_path / "repository") as client:
        assert ask(client, "forest", known["events"]).status_code == 200
        assert len(list((tmp_path / "predicting").iterdir())) == 1
    assert list((tmp_path / "predicting").iterdir()) == []
    assert not any(str(tmp_path) in path.read_text(errors="replace") for path in _commands())


def _commands() -> Iterator[Path]:
    for entry in Path("/proc").glob("[0-9]*"):
        if os.access(entry / "cmdline", os.R_OK) and int(entry.name) != os.getpid():
            yield entry / "cmdline"
