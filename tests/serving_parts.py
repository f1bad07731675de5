"""Models to serve, users who ask, and the inference server as tests use them."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import awkward as ak
import httpx
import numpy as np
import onnx
import uproot
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from mlaas4hep.service.identity import AuthenticationError, Role, User
from mlaas4hep.service.local import LocalExecutor, LocalSettings
from mlaas4hep.serving.app import Serving, create_app
from mlaas4hep.serving.checks import write_upload
from mlaas4hep.serving.native import Processes
from mlaas4hep.serving.repository import Repository
from mlaas4hep.serving.server import serve
from mlaas4hep.serving.settings import ServingSettings
from mlaas4hep.training.experiment import train
from mlaas4hep.training.progress import silent
from mlaas4hep.training.workflow import load_folder

ANNA = User("https://iam.example", "anna", groups=("/cms", "/cms/higgs"), roles=frozenset({Role.SUBMIT, Role.SERVE}))
BERT = User("https://iam.example", "bert", groups=("/cms",), roles=frozenset({Role.SUBMIT, Role.SERVE}))
GUEST = User("https://iam.example", "guest", groups=("/cms",))
ADMIN = User("https://iam.example", "admin", roles=frozenset(Role))
USERS = {"Bearer anna": ANNA, "Bearer bert": BERT, "Bearer guest": GUEST, "Bearer admin": ADMIN}
MODEL = """
from xgboost import XGBClassifier

def model():
    return XGBClassifier(n_estimators=8, max_depth=3, n_jobs=1)
"""
RULES = {"flat_cut": {"MET_pt": {"cut": "MET_pt > 12", "remove": "False"}}}


class Tokens:
    """Knows the users of this module by their headers."""

    async def authenticate(self, authorization: str) -> User:
        if authorization not in USERS:
            raise AuthenticationError("A bearer token is needed.")
        return USERS[authorization]


def collisions(events: int, shift: float, seed: int) -> dict[str, Any]:
    """Flat, bool and jagged branches of simple events."""
    generator = np.random.default_rng(seed)
    counts = generator.poisson(2.0, events)
    pt = generator.exponential(10.0 + shift, int(counts.sum())).astype(np.float32)
    return {
        "MET_pt": generator.normal(20.0 + shift, 5.0, events),
        "event": np.arange(events, dtype=np.uint64),
        "trigger": generator.random(events) < 0.5,
        "nMuon": counts.astype(np.int32),
        "Muon": ak.zip({"pt": ak.unflatten(pt, counts), "eta": ak.unflatten(-pt, counts)}),
    }


def write_tree(path: Path, columns: dict[str, Any]) -> Path:
    """A ROOT file with these columns as the tree Events."""
    with uproot.recreate(path) as file:
        types = {name: getattr(values, "dtype", None) or values.type for name, values in columns.items()}
        file.mktree("Events", types).extend(columns)
    return path


def trained(
    folder: Path, *, rules: dict[str, Any] | None = None, seed: int = 1, model: str = MODEL, own: str = "", **more: Any
) -> Path:
    """A bundle, by default of boosted trees; its workflow with the data is beside it.

    Args:
        folder: where.
        rules: the preprocessing.
        seed: of the events.
        model: the model's file.
        own: the preprocessing as a Python file.
        more: parameters.
    """
    workflow = folder / "workflow"
    workflow.mkdir(parents=True)
    write_tree(workflow / "signal.root", collisions(400, 8.0, seed))
    write_tree(workflow / "background.root", collisions(400, 0.0, seed + 1))
    (workflow / "files.txt").write_text("signal.root\nbackground.root\n")
    (workflow / "labels.txt").write_text("1\n0\n")
    (workflow / "model.py").write_text(model)
    parameters: dict[str, Any] = {"branch": "Events", "identifier": ["event"], "nevts": -1, **more}
    if rules:
        (workflow / "preproc.json").write_text(json.dumps(rules))
    if own:
        (workflow / "preproc.py").write_text(own)
    (workflow / "params.json").write_text(json.dumps(parameters))
    train(load_folder(workflow), folder / "bundle", silent)
    return folder / "bundle"


def dense(width: int = 4, outputs: int = 3, seed: int = 1) -> onnx.ModelProto:
    """A network of one layer with softmax: `x` to `y`."""
    generator = np.random.default_rng(seed)
    weights = generator.normal(size=(width, outputs)).astype(np.float32)
    return network(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Softmax", ["h"], ["y"])],
        ["n", width],
        ["n", outputs],
        [numpy_helper.from_array(weights, "w")],
    )


def network(
    nodes: list[onnx.NodeProto], taken: list[Any], given: list[Any], weights: list[Any] | None = None
) -> onnx.ModelProto:
    """A network from `x` to `y`."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, taken)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, given)],
        weights or [],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    return model


def endless() -> onnx.ModelProto:
    """A network that adds 1 to its input for ever."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["on"], ["go"]), helper.make_node("Add", ["v", "one"], ["next"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, None),
        ],
    )
    constants = [
        numpy_helper.from_array(np.array(2**62, dtype=np.int64), "times"),
        numpy_helper.from_array(np.array(True), "true"),
        numpy_helper.from_array(np.array(1, dtype=np.float32), "one"),
    ]
    return network([helper.make_node("Loop", ["times", "true", "x"], ["y"], body=body)], ["n", 2], ["n", 2], constants)


def uploaded(folder: Path, model: onnx.ModelProto, labels: tuple[str, ...] = (), **params: Any) -> Path:
    """A model folder of an uploaded network."""
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    write_upload(folder, params, labels)
    return folder


def softmax_of(model: onnx.ModelProto, values: NDArray[Any]) -> NDArray[Any]:
    """What `dense` gives, computed by NumPy."""
    powers = np.exp(values @ numpy_helper.to_array(model.graph.initializer[0]))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def events_of(path: Path, count: int) -> list[dict[str, Any]]:
    """The first entries of a file as JSON events."""
    with uproot.open(path) as file:
        return list(file["Events"].arrays(entry_stop=count).to_list())


def settings(**changed: Any) -> ServingSettings:
    """Settings with one worker."""
    return ServingSettings(**{"workers": 1, **changed})


def app() -> Serving:
    """The application of a server that a test started: what it serves is in its environment."""
    folder = Path(os.environ["TEST_REPOSITORY"])
    executor = LocalExecutor(LocalSettings(supervisor="process"))
    return create_app(folder, _chosen(), Tokens(), Processes(executor, folder.with_name("predicting"), _chosen()))


def _chosen() -> ServingSettings:
    return ServingSettings.model_validate_json(os.environ["TEST_SETTINGS"])


def main() -> None:
    """Run the server."""
    serve("tests.serving_parts:app", _chosen())


@contextmanager
def running(folder: Path, **changed: Any) -> Iterator[httpx.Client]:
    """A client of a real server in processes of its own; it asks as Anna."""
    chosen = settings(port=free_port(), **changed)
    environment = os.environ | {
        "TEST_REPOSITORY": str(folder),
        "TEST_SETTINGS": chosen.model_dump_json(),
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    words = [sys.executable, "-c", "from tests.serving_parts import main; main()"]
    process = subprocess.Popen(words, env=environment)
    address = f"http://127.0.0.1:{chosen.port}"
    try:
        with httpx.Client(base_url=address, headers={"Authorization": "Bearer anna"}, timeout=60) as client:
            _await(client, process)
            yield client
    finally:
        process.terminate()
        process.wait(60)


def _await(client: httpx.Client, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            if client.get("/v2/health/ready").status_code == 200:
                return
        time.sleep(0.1)
    raise AssertionError("The server did not start.")


def free_port() -> int:
    """A port of loopback that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def repository(folder: Path) -> Repository:
    """An empty repository."""
    folder.mkdir(parents=True, exist_ok=True)
    return Repository(folder)
