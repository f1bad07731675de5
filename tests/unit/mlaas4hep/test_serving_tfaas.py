"""The routes of TFaaS as its clients use them, and the picture of a network."""

from __future__ import annotations

import importlib.util
import io
import json
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from mlaas4hep.serving.messages import COMPILED, message
from mlaas4hep.serving.repository import Repository
from mlaas4hep.training.bundle import read_bundle
from mlaas4hep.training.onnx_model import OnnxModel
from mlaas4hep.training.prediction import predict_events
from tests import serving_parts as parts
from tests.serving_parts import ANNA

VALUES = [0.1, 0.2, 0.3, 0.4]
PARAMS = {
    "name": "dense",
    "model": "tf_model.onnx",
    "labels": "labels.txt",
    "inputNode": "x",
    "outputNode": "y",
    "description": "one layer",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tfaas")


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[httpx.Client]:
    parts.repository(folder / "repository")
    with parts.running(folder / "repository", upload=2**20) as client:
        yield client


@pytest.fixture
def empty(client: httpx.Client, folder: Path) -> httpx.Client:
    """The client, and no model in the repository."""
    models = Repository(folder / "repository")
    for facts in models.models(ANNA):
        models.delete(facts.namespace, facts.name)
    return client


def form(name: str = "dense", model: str = "tf_model.onnx", **changed: Any) -> dict[str, Any]:
    content = parts.dense().SerializeToString()
    files = {"params": ("params.json", json.dumps(PARAMS | changed)), "model": (model, content)}
    return {"data": {"name": name}, "files": files | {"labels": ("labels.txt", "cat\ndog\nbird\n")}}


def archive(members: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w:gz") as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        for name, where in (links or {}).items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, where
            tar.addfile(entry)
    return target.getvalue()


def members(prefix: str = "") -> dict[str, bytes]:
    return {
        f"{prefix}params.json": json.dumps(PARAMS).encode(),
        f"{prefix}tf_model.onnx": parts.dense().SerializeToString(),
        f"{prefix}labels.txt": b"cat\ndog\nbird\n",
    }


def row(keys: list[str] | None = None, values: Any = None, model: str = "dense", **more: Any) -> dict[str, Any]:
    return {"keys": keys or list("abcd"), "values": values or VALUES, "model": model, **more}


def wanted(values: Any = VALUES) -> Any:
    return parts.softmax_of(parts.dense(), np.array([values], np.float32))[0]


def test_a_model_is_uploaded_listed_used_and_deleted(empty: httpx.Client) -> None:
    assert empty.get("/models").json() is None
    assert empty.post("/upload", **form()).status_code == 200
    (entry,) = empty.get("/models").json()
    assert {name: entry[name] for name in PARAMS} == PARAMS
    assert entry["options"] is None
    for path in ("/json", "/predict/json"):
        answer = empty.post(path, json=row())
        assert answer.status_code == 200, answer.text
        np.testing.assert_allclose(answer.json(), wanted(), atol=1e-6)
    assert empty.request("DELETE", "/delete", data={"model": "dense"}).status_code == 200
    assert empty.get("/models").json() is None
    assert empty.post("/json", json=row()).status_code == 404


def test_whoever_has_stored_enough_cannot_upload_more(tmp_path: Path) -> None:
    parts.repository(tmp_path / "repository")
    with parts.running(tmp_path / "repository", stored=1) as client:
        assert client.post("/upload", **form()).status_code == 200
        refused = client.post("/upload", **form())
        assert refused.status_code == 413
        assert "Delete versions" in refused.text
        assert client.request("DELETE", "/delete", data={"model": "dense"}).status_code == 200
        assert client.post("/upload", **form()).status_code == 200


@pytest.mark.parametrize("prefix", ["", "./", "folder/"])
def test_an_archive_is_uploaded(empty: httpx.Client, prefix: str) -> None:
    answer = empty.post("/upload", content=archive(members(prefix)), headers={"Content-Encoding": "gzip"})
    assert answer.status_code == 200, answer.text
    np.testing.assert_allclose(empty.post("/json", json=row()).json(), wanted(), atol=1e-6)


def test_protobuf_rows_get_labelled_classes(empty: httpx.Client) -> None:
    empty.post("/upload", **form())
    sent = message("tfaaspb.Row")(key=list("abcd"), value=VALUES, model="dense")
    for path in ("/proto", "/predict/proto"):
        answer = empty.post(path, content=sent.SerializeToString())
        assert answer.status_code == 200, answer.text
        found = message("tfaaspb.Predictions").FromString(answer.content).prediction
        assert [entry.label for entry in found] == ["cat", "dog", "bird"]
        np.testing.assert_allclose([entry.probability for entry in found], wanted(), atol=1e-6)
    assert empty.post("/proto", content=b"\xff\xff\xff").status_code == 400


def test_keys_give_the_order_of_the_values(empty: httpx.Client) -> None:
    empty.post("/upload", **form(features=["a", "b", "c", "d"]))
    turned = row(keys=list("dcba"), values=VALUES[::-1])
    np.testing.assert_allclose(empty.post("/json", json=turned).json(), wanted(), atol=1e-6)
    without = {name: value for name, value in row().items() if name != "keys"}
    assert empty.post("/json", json=without).json() == empty.post("/json", json=row()).json()
    for keys, told in ((list("abcx"), "no column x"), (list("abcc"), "twice")):
        assert told in empty.post("/json", json=row(keys=keys)).json()["error"]


def test_a_bundle_takes_prepared_columns_in_any_order_and_raw_events(
    empty: httpx.Client, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLAAS4HEP_CACHE", str(tmp_path / "store"))
    bundle = read_bundle(parts.trained(tmp_path))
    Repository(folder / "repository").publish(ANNA.key, "trees", bundle.folder)
    values = np.random.default_rng(1).random((1, bundle.schema.idim)).astype(np.float32)
    mask = np.zeros(values.shape, np.bool_)
    mask[0, -1] = True
    given = [None if absent else float(value) for value, absent in zip(values[0], mask[0], strict=True)]
    order = np.random.default_rng(2).permutation(bundle.schema.idim)
    sent = row([bundle.schema.names[i] for i in order], [given[i] for i in order], "trees")
    expected = OnnxModel(bundle.folder / "model.onnx").predict(values, mask)[0]
    np.testing.assert_allclose(empty.post("/json", json=sent).json(), expected, atol=1e-6)
    sent["keys"] = [key.replace("[", "_").replace("]", "") for key in sent["keys"]]
    np.testing.assert_allclose(empty.post("/json", json=sent).json(), expected, atol=1e-6)
    event = parts.events_of(tmp_path / "workflow" / "signal.root", 1)[0]
    answer = empty.post("/json", json=row(list(event), list(event.values()), "trees", raw=True))
    assert answer.status_code == 200, answer.text
    told = predict_events(bundle, [event])[0]["probabilities"]
    np.testing.assert_allclose(answer.json(), list(told.values()), atol=1e-6)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"keys": ["a"], "values": [1.0, 2.0], "model": "dense"}, "1 keys for 2 values"),
        ({"keys": list("abc"), "values": [1, 2, 3], "model": "dense"}, "3 values, but the model takes [-1, 4]"),
        ({"keys": list("abcd"), "values": ["1", 2, 3, 4], "model": "dense"}, "no number"),
        ({"keys": list("abcd"), "values": [[1], 2, 3, 4], "model": "dense"}, "no number"),
        ({"keys": "abcd", "values": [1, 2, 3, 4], "model": "dense"}, "no lists"),
        ({"values": [1], "model": "dense"}, "1 values, but the model takes [-1, 4]"),
        ({"keys": list("abcd"), "model": "dense"}, "no JSON object"),
        ([], "no JSON object"),
    ],
)
def test_wrong_rows_are_explained(empty: httpx.Client, body: Any, told: str) -> None:
    empty.post("/upload", **form())
    answer = empty.post("/json", json=body)
    assert answer.status_code == 400
    assert told in answer.json()["error"]


@pytest.mark.parametrize(
    ("request_", "status", "told"),
    [
        (form(name="../../etc"), 400, "is no name"),
        (form(name="a;rm -rf"), 400, "is no name"),
        (form(name="other"), 400, "params.json has dense"),
        (form(model="model.h5"), 400, "no ONNX model and no frozen graph"),
        (form(model="model.pb", inputNode="x;id"), 400, "lacks inputNode"),
        ({"files": {"params": ("p", "{}")}}, 400, "lacks name, model, labels"),
        ({"content": b"nothing"}, 400, "no .tar.gz"),
        ({"content": archive(members())[:200]}, 400, "no .tar.gz"),
        ({"content": archive({"a": b""})}, 400, "no params.json"),
        ({"content": archive({"params.json": json.dumps(PARAMS).encode()})}, 400, "no tf_model.onnx"),
        ({"content": archive({"params.json": b"{"})}, 400, "no JSON"),
        ({"content": archive(members() | {"bomb": bytes(2**21)})}, 413, "unpacks to more"),
        ({"content": bytes(2**21)}, 413, "more than"),
        ({"content": archive({f"f{i}": b"" for i in range(1100)})}, 400, "1000 members"),
        ({"content": archive(members() | {"tf_model.onnx": b"no network"})}, 400, "no ONNX model"),
    ],
)
def test_hostile_uploads_are_refused(
    empty: httpx.Client, folder: Path, request_: dict[str, Any], status: int, told: str
) -> None:
    answer = empty.post("/upload", **request_)
    assert answer.status_code == status, answer.text
    assert told in answer.json()["error"]
    assert empty.get("/models").json() is None
    assert list((folder / "repository").glob(".*")) == []


def test_links_and_paths_of_an_archive_lead_nowhere(empty: httpx.Client, folder: Path) -> None:
    secret = folder / "secret"
    secret.write_text("secret")
    content = {name: text for name, text in members().items() if name != "labels.txt"}
    hostile = archive({"../../escaped": b"x", "/tmp/escaped": b"x"} | content, {"labels.txt": str(secret)})
    assert empty.post("/upload", content=hostile).status_code == 200
    assert not list(folder.rglob("escaped"))
    assert "secret" not in empty.get("/v2/models/dense").text


def test_an_image_goes_in_as_its_pixels(empty: httpx.Client, folder: Path, tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image", reason="needs the package pillow")
    nodes = [
        helper.make_node("Reshape", ["x", "flat"], ["f"]),
        helper.make_node("Gather", ["f", "first"], ["y"], axis=1),
    ]
    constants = [
        numpy_helper.from_array(np.array(v, np.int64), n) for n, v in {"flat": [1, -1], "first": [0, 1, 2]}.items()
    ]
    network = parts.network(nodes, ["n", 2, 2, 3], ["n", 3], constants)
    Repository(folder / "repository").publish(
        ANNA.key, "pixels", parts.uploaded(tmp_path / "p", network, ("r", "g", "b"))
    )
    target = io.BytesIO()
    pillow.fromarray(np.full((2, 2, 3), (10, 200, 30), np.uint8)).save(target, "PNG")
    for path in ("/image", "/predict/image"):
        answer = empty.post(path, data={"model": "pixels"}, files={"image": ("i.png", target.getvalue())})
        assert answer.status_code == 200, answer.text
        assert [(entry["label"], entry["probability"]) for entry in answer.json()["labels"]] == [
            ("g", 200.0),
            ("b", 30.0),
            ("r", 10.0),
        ]
    answer = empty.post("/image", data={"model": "pixels"}, files={"image": ("i.png", b"nothing")})
    assert "no PNG or JPEG" in answer.json()["error"]


def test_somebody_who_may_use_a_model_may_not_delete_it(empty: httpx.Client, folder: Path) -> None:
    empty.post("/upload", **form())
    Repository(folder / "repository").share(ANNA.key, "dense", ["/cms"])
    headers = {"Authorization": "Bearer bert"}
    shared = f"{ANNA.key}.dense"
    assert [entry["name"] for entry in empty.get("/models", headers=headers).json()] == [shared]
    assert empty.post("/json", json=row(model=shared), headers=headers).status_code == 200
    assert empty.request("DELETE", "/delete", data={"model": shared}, headers=headers).status_code == 404
    assert empty.post("/json", json=row()).status_code == 200


def test_the_picture_of_a_network_asks_nobody_else(empty: httpx.Client) -> None:
    empty.post("/upload", **form())
    page = empty.get("/netron/", params={"model": "dense"}, follow_redirects=True)
    assert page.url.path == "/models/dense/graph/"
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    assert "script-src 'self';" in policy
    assert '<meta name="file" content="model.onnx">' in page.text
    assert 'name="date"' not in page.text
    assert page.cookies["consent"]
    scripts = re.findall(r'<(?:script|link)[^>]*(?:src|href)="([^"]+)"', page.text)
    assert scripts
    for name in [*scripts, "view.js", "onnx.js", "onnx-metadata.json"]:
        assert empty.get(f"/models/dense/graph/{name}").status_code == 200, name
    network = empty.get("/models/dense/graph/model.onnx")
    assert onnx.load_from_string(network.content).graph.input[0].name == "x"
    for name in ("server.py", "..%2f__init__.py", "%2e%2e", "none.js"):
        assert empty.get(f"/models/dense/graph/{name}").status_code == 404


@pytest.mark.skipif(importlib.util.find_spec("grpc_tools") is None, reason="needs grpcio-tools")
def test_the_compiled_messages_are_those_of_the_proto_files(tmp_path: Path) -> None:
    source = COMPILED.parent
    words = [f"-I{source}", f"--descriptor_set_out={tmp_path / 'd'}", "inference.proto", "tfaas.proto"]
    # a process of its own: the compiler crashes in one that has loaded TensorFlow
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *words], check=True)
    assert (tmp_path / "d").read_bytes() == COMPILED.read_bytes()
