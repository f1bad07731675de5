"""The Open Inference Protocol over HTTP: prepared values and raw events."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlaas4hep.serving.app import create_app
from mlaas4hep.serving.repository import Repository
from mlaas4hep.training.bundle import read_bundle
from mlaas4hep.training.onnx_model import OnnxModel
from mlaas4hep.training.prediction import predict_events
from tests import serving_parts as parts
from tests.serving_parts import ANNA

HEADER = "Inference-Header-Content-Length"
FLAT, LISTS = ("MET_pt", "nMuon", "trigger"), ("Muon_eta", "Muon_pt")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A repository with the model `trees`, with `cut` whose events pass a cut first, and with the network `dense`."""
    folder = tmp_path_factory.mktemp("served")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLAAS4HEP_CACHE", str(folder / "store"))
        models = parts.repository(folder / "repository")
        models.publish(ANNA.key, "trees", parts.trained(folder / "trees"))
        models.publish(ANNA.key, "cut", parts.trained(folder / "cut", rules=parts.RULES))
        models.publish(ANNA.key, "dense", parts.uploaded(folder / "dense", parts.dense(), ("a", "b", "c")))
        yield folder


@pytest.fixture(scope="module")
def client(served: Path) -> Iterator[httpx.Client]:
    with parts.running(served / "repository", body=2**20, events=5000) as client:
        yield client


def data(served: Path) -> Path:
    return served / "trees" / "workflow" / "signal.root"


def as_tensors(events: list[dict[str, Any]]) -> dict[str, Any]:
    arrays: dict[str, Any] = {name: np.array([event[name] for event in events]) for name in FLAT}
    for name in LISTS:
        arrays[name] = np.array([value for event in events for value in event[name]], dtype=np.float32)
        arrays[f"{name}:offsets"] = np.cumsum([0, *(len(event[name]) for event in events)])
    return arrays


TYPES = {"f4": "FP32", "f8": "FP64", "i4": "INT32", "i8": "INT64", "b1": "BOOL"}


def in_json(arrays: dict[str, Any], **more: Any) -> bytes:
    inputs = [
        {"name": name, "shape": array.shape, "datatype": TYPES[array.dtype.str[1:]], "data": array.tolist()}
        for name, array in arrays.items()
    ]
    return json.dumps({"inputs": inputs, **more}).encode()


def in_binary(arrays: dict[str, Any], **more: Any) -> tuple[bytes, dict[str, str]]:
    inputs = [
        {
            "name": name,
            "shape": array.shape,
            "datatype": TYPES[array.dtype.str[1:]],
            "parameters": {"binary_data_size": array.nbytes},
        }
        for name, array in arrays.items()
    ]
    header = json.dumps({"inputs": inputs, **more}).encode()
    return header + b"".join(array.tobytes() for array in arrays.values()), {HEADER: str(len(header))}


def output(answer: Any, name: str = "predictions") -> Any:
    assert answer.status_code == 200, answer.text
    found = next(entry for entry in answer.json()["outputs"] if entry["name"] == name)
    return np.array(found["data"], dtype=float).reshape(found["shape"])


def probabilities(served: Path, model: str, events: list[dict[str, Any]]) -> Any:
    told = predict_events(read_bundle(served / model / "bundle"), events)
    return np.array([list((entry["probabilities"] or {"0": None, "1": None}).values()) for entry in told], dtype=float)


def test_prepared_values_give_what_the_network_gives(served: Path, client: httpx.Client) -> None:
    bundle = read_bundle(served / "trees" / "bundle")
    values = np.random.default_rng(1).random((50, bundle.schema.idim)).astype(np.float32)
    mask = np.random.default_rng(2).random(values.shape) < 0.3
    wanted = OnnxModel(bundle.folder / "model.onnx").predict(values, mask)
    prepared = {"values": values, "mask": mask.astype(np.float32)}
    answer = client.post("/v2/models/trees/infer", content=in_json(prepared, id="7"))
    np.testing.assert_allclose(output(answer), wanted, atol=1e-6)
    assert answer.json()["id"] == "7"
    assert (answer.json()["model_name"], answer.json()["model_version"]) == ("trees", "1")
    body, headers = in_binary(prepared, parameters={"binary_data_output": True})
    answer = client.post("/v2/models/trees/versions/1/infer", content=body, headers=headers)
    end = int(answer.headers[HEADER])
    described = json.loads(answer.content[:end])["outputs"][0]
    assert described["parameters"]["binary_data_size"] == len(answer.content) - end
    found = np.frombuffer(answer.content[end:], np.float32).reshape(described["shape"])
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_raw_events_give_what_predict_gives_in_every_form(served: Path, client: httpx.Client) -> None:
    events = parts.events_of(data(served), 60)
    wanted = probabilities(served, "trees", events)
    arrays = as_tensors(events)
    np.testing.assert_allclose(
        output(client.post("/v2/models/trees/infer", content=in_json(arrays))), wanted, atol=1e-6
    )
    body, headers = in_binary(arrays)
    answer = client.post("/v2/models/trees/infer", content=body, headers=headers)
    np.testing.assert_allclose(output(answer), wanted, atol=1e-6)
    table = pa.table({name: [event[name] for event in events] for name in (*FLAT, *LISTS)})
    for form, content in {
        "application/json": json.dumps(events).encode(),
        "application/json; charset=utf-8": json.dumps({name: [e[name] for e in events] for name in events[0]}).encode(),
        "application/vnd.apache.parquet": parquet(table),
        "application/vnd.apache.arrow.stream": arrow(table, pa.ipc.new_stream),
        "application/vnd.apache.arrow.file": arrow(table, pa.ipc.new_file),
    }.items():
        answer = client.post("/v2/models/trees/events", content=content, headers={"Content-Type": form})
        assert answer.status_code == 200, (form, answer.text)
        found = [list(entry["probabilities"].values()) for entry in answer.json()["predictions"]]
        np.testing.assert_allclose(found, wanted, atol=1e-6, err_msg=form)
    answer = client.post(
        "/v2/models/trees/events", content=data(served).read_bytes(), headers={"Content-Type": "application/vnd.root"}
    )
    assert answer.status_code == 200, answer.text
    found = [list(entry["probabilities"].values()) for entry in answer.json()["predictions"]]
    np.testing.assert_allclose(found[:60], wanted, atol=1e-6)
    assert len(found) == 400
    single = client.post("/v2/models/trees/events", content=json.dumps(events[0])).json()["predictions"]
    assert single == [predict_events(read_bundle(served / "trees" / "bundle"), events[:1])[0] | single[0]]


def parquet(table: pa.Table) -> bytes:
    target = io.BytesIO()
    pq.write_table(table, target)
    return target.getvalue()


def arrow(table: pa.Table, writer: Any) -> bytes:
    target = io.BytesIO()
    with writer(target, table.schema) as stream:
        stream.write_table(table)
    return target.getvalue()


def test_events_that_the_cuts_remove_are_marked(served: Path, client: httpx.Client) -> None:
    events = [
        event | {"MET_pt": value} for event, value in zip(parts.events_of(data(served), 3), (20, 5, 30), strict=True)
    ]
    answer = client.post("/v2/models/cut/infer", content=in_json(as_tensors(events)))
    assert output(answer, "kept").tolist() == [1, 0, 1]
    found = output(answer)
    assert np.isnan(found[1]).all()
    np.testing.assert_allclose(found[[0, 2]], probabilities(served, "cut", events)[[0, 2]], atol=1e-6)
    told = client.post("/v2/models/cut/events", content=json.dumps(events)).json()["predictions"]
    assert [entry.get("cut", False) for entry in told] == [False, True, False]
    assert told[1] == {"probabilities": None, "label": None, "cut": True}


def test_missing_values_are_null(served: Path, client: httpx.Client) -> None:
    events = [event | {"MET_pt": None} for event in parts.events_of(data(served), 2)]
    told = client.post("/v2/models/trees/events", content=json.dumps(events)).json()["predictions"]
    found = [list(entry["probabilities"].values()) for entry in told]
    np.testing.assert_allclose(found, probabilities(served, "trees", events), atol=1e-6)


def test_metadata_names_tensors_branches_and_classes(client: httpx.Client) -> None:
    told = client.get("/v2/models/trees").json()
    assert told["versions"] == ["1"]
    assert [entry["name"] for entry in told["inputs"]] == ["values", "mask"]
    assert told["inputs"][0]["datatype"] == "FP32"
    assert told["outputs"] == [{"name": "predictions", "datatype": "FP32", "shape": [-1, 2]}]
    assert told["parameters"]["classes"] == ["0", "1"]
    assert {entry["name"]: entry["kind"] for entry in told["parameters"]["branches"]}["Muon_pt"] == "jagged"
    assert client.get("/v2").json()["extensions"] == ["binary_tensor_data", "model_repository"]
    assert client.get("/v2/models/trees/ready").status_code == 200
    states = {entry["name"]: entry["state"] for entry in client.post("/v2/repository/index").json()}
    assert states["trees"] == "READY"


EVENT = {"MET_pt": 20.0, "nMuon": 1, "trigger": True, "Muon_pt": [9.0], "Muon_eta": [0.5]}


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ([EVENT | {"MET_pz": 1.0}], "unknown branch MET_pz. Did you mean MET_pt?"),
        ([{name: value for name, value in EVENT.items() if name != "Muon_pt"}], "lacks Muon_pt"),
        ([EVENT, EVENT | {"MET_pt": "12"}], "Event 1: MET_pt is '12', but it has a number."),
        ([EVENT | {"Muon_pt": 3.0}], "it has a list of numbers"),
        ([], "no event"),
        ("text", "no JSON object and no list"),
        ([[1]], "no JSON object"),
        ({"MET_pt": [1.0], "nMuon": [1, 2]}, "different lengths"),
    ],
)
def test_wrong_events_are_explained(client: httpx.Client, body: Any, told: str) -> None:
    answer = client.post("/v2/models/trees/events", content=json.dumps(body))
    assert answer.status_code == 400
    assert told in answer.json()["error"]


def one(name: str = "x", datatype: str = "FP32", shape: Any = (1, 4), **more: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, **({"data": [1, 2, 3, 4]} | more)}


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "no inference request"),
        (b"{", "no inference request"),
        (b"[" * 100_000, "no inference request"),
        ({"inputs": [one("X1")]}, "no input X1. Did you mean x?"),
        ({"inputs": []}, "input x is not there"),
        ({"inputs": [one(), one()]}, "there twice"),
        ({"inputs": [one(shape=[4])]}, "but the model takes [-1, 4]"),
        ({"inputs": [one(shape=[2, 4])]}, "4 values for the shape"),
        ({"inputs": [one(shape=[-1, 4])]}, "has the shape [-1, 4]"),
        ({"inputs": [one(shape=[2**62, 2**62])]}, "4 values for the shape"),
        ({"inputs": [one(shape=[1] * 40)]}, "has the shape"),
        ({"inputs": [one(datatype="FP31")]}, "Did you mean FP32"),
        ({"inputs": [one(datatype="BYTES")]}, "datatype 'BYTES'"),
        ({"inputs": [one(datatype="INT8", data=[1, 2, 3, 400])]}, "INT8 cannot hold"),
        ({"inputs": [one(data=["1", "2", "3", "4"])]}, "no numbers"),
        ({"inputs": [one(data=[[1, 2], [3]])]}, "different lengths"),
        ({"inputs": [one(data=[{}, 2, 3, 4])]}, "no numbers"),
        ({"inputs": [one(parameters={"binary_data_size": 16})]}, "has 16 bytes of 0"),
        ({"inputs": [one(parameters={"shared_memory_region": "r"})]}, "shared memory"),
        ({"inputs": [one()], "outputs": [{"name": "z"}]}, "no output z"),
        ({"inputs": [one()], "outputs": [{"name": "y", "parameters": {"classification": 1}}]}, "classification"),
        ({"inputs": "x"}, "no inference request"),
        ({"inputs": [one(name=3)]}, "no inference request"),
        ({"inputs": [one(shape=[1.5, 4])]}, "no inference request"),
    ],
)
def test_wrong_requests_are_explained(client: httpx.Client, body: Any, told: str) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = client.post("/v2/models/dense/infer", content=content)
    assert answer.status_code == 400, answer.text
    assert told in answer.json()["error"]


@pytest.mark.parametrize("length", ["-1", "x", "999999", "1", "9" * 30])
def test_a_wrong_length_of_the_header_is_explained(client: httpx.Client, length: str) -> None:
    body, _ = in_binary({"x": np.ones((1, 4), np.float32)})
    answer = client.post("/v2/models/dense/infer", content=body, headers={HEADER: length})
    assert answer.status_code == 400


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("Muon_pt:offsets", [0, 2, 1]),
        ("Muon_pt:offsets", [1, 2, 3]),
        ("Muon_pt:offsets", [0, 2]),
        ("Muon_pt:offsets", [0, 2, 2**60]),
        ("Muon_pt:offsets", [0.0, 1.0, 3.0]),
        ("MET_pt", [1.0]),
        ("MET_pt", [[1.0, 2.0], [1.0, 2.0]]),
    ],
)
def test_wrong_tensors_of_events_are_explained(served: Path, client: httpx.Client, name: str, change: Any) -> None:
    arrays = as_tensors([EVENT | {"Muon_pt": [1.0, 2.0]}, EVENT])
    answer = client.post("/v2/models/trees/infer", content=in_json(arrays | {name: np.array(change)}))
    assert answer.status_code == 400, answer.text
    assert name.removesuffix(":offsets") in answer.json()["error"]


@pytest.mark.parametrize("form", ["vnd.apache.parquet", "vnd.apache.arrow.stream", "vnd.apache.arrow.file", "vnd.root"])
def test_damaged_files_of_events_are_one_sentence(served: Path, client: httpx.Client, form: str) -> None:
    whole = parquet(pa.table({"MET_pt": [1.0] * 100})) if form.endswith("parquet") else data(served).read_bytes()
    for content in (b"", b"nothing", whole[: len(whole) // 2], whole[:4] + bytes(500)):
        answer = client.post(
            "/v2/models/trees/events", content=content, headers={"Content-Type": f"application/{form}"}
        )
        assert answer.status_code == 400, answer.text
        assert "/tmp" not in answer.json()["error"]
        assert "Traceback" not in answer.text


def test_no_event_at_all_is_no_failure_of_the_server(served: Path, client: httpx.Client) -> None:
    nothing = {name: array[:0] for name, array in as_tensors([EVENT]).items()}
    nothing |= {f"{name}:offsets": np.array([0]) for name in LISTS}
    answer = client.post("/v2/models/trees/infer", content=in_binary(nothing)[0], headers=in_binary(nothing)[1])
    assert output(answer).shape == (0, 2)
    body, headers = in_binary({"x": np.empty((0, 4), np.float32)})
    assert output(client.post("/v2/models/dense/infer", content=body, headers=headers), "y").shape == (0, 3)
    assert client.post("/v2/models/trees/events", content=b"[{" * 2000).status_code == 400
    deep = b'[{"MET_pt": ' + b"[" * 900 + b"]" * 900 + b"}]"
    assert client.post("/v2/models/trees/events", content=deep).status_code == 400


def test_a_file_without_an_input_is_explained(client: httpx.Client) -> None:
    content = parquet(pa.table({"MET_pz": [1.0], "nMuon": [1]}))
    headers = {"Content-Type": "application/vnd.apache.parquet"}
    answer = client.post("/v2/models/trees/events", content=content, headers=headers)
    assert answer.status_code == 400
    assert "no branch MET_pt. Did you mean MET_pz?" in answer.json()["error"]
    answer = client.post("/v2/models/trees/events", content=content, headers={"Content-Type": "text/csv"})
    assert "text/csv" in answer.json()["error"]


def test_bodies_and_events_are_bounded(client: httpx.Client) -> None:
    assert client.post("/v2/models/dense/infer", content=bytes(2**20 + 1)).status_code == 413
    body, headers = in_binary({"x": np.ones((5001, 4), np.float32)})
    answer = client.post("/v2/models/dense/infer", content=body, headers=headers)
    assert answer.status_code == 400
    assert "5001 events, more than the 5000" in answer.json()["error"]
    answer = client.post("/v2/models/dense/infer", content=b"x", headers={"Content-Encoding": "gzip"})
    assert "compressed" in answer.json()["error"]


PATHS = [
    ("GET", "/v2"),
    ("POST", "/v2/repository/index"),
    ("GET", "/v2/models/trees"),
    ("GET", "/v2/models/trees/ready"),
    ("POST", "/v2/models/trees/infer"),
    ("POST", "/v2/models/trees/versions/1/infer"),
    ("POST", "/v2/models/trees/events"),
    ("GET", "/models"),
    ("POST", "/upload"),
    ("DELETE", "/delete"),
    ("GET", "/status"),
    ("POST", "/json"),
    ("POST", "/predict/json"),
    ("POST", "/proto"),
    ("POST", "/predict/proto"),
    ("POST", "/image"),
    ("POST", "/predict/image"),
    ("GET", "/models/trees/graph/"),
    ("GET", "/models/trees/graph/model.onnx"),
    ("GET", "/models/trees/graph/index.js"),
    ("GET", "/netron/?model=trees"),
    ("GET", "/metrics"),
]


@pytest.mark.parametrize(("method", "path"), PATHS)
def test_nothing_is_answered_without_a_token_or_a_role(client: httpx.Client, method: str, path: str) -> None:
    for header in ("", "Bearer nobody"):
        answer = client.request(method, path, headers={"Authorization": header}, follow_redirects=False)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
    assert client.request(method, path, headers={"Authorization": "Bearer guest"}).status_code == 403


def test_every_route_that_needs_a_user_is_in_the_list(served: Path) -> None:
    public = {"/v2/health/live", "/v2/health/ready", "/models/{model}/graph"}
    routes = {route.path for route in create_app(served / "repository", parts.settings(), parts.Tokens()).routes}
    tested = {path.partition("?")[0].replace("/trees", "/{model}").replace("/1/", "/{version}/") for _, path in PATHS}
    tested = {
        path if "/graph/" not in path or path.endswith("/") else "/models/{model}/graph/{file}" for path in tested
    }
    versioned = {path.replace("/versions/{version}", "") for path in routes - public}
    assert versioned == {path.replace("/versions/{version}", "") for path in tested}


def test_models_of_others_are_as_if_they_were_not_there(served: Path, client: httpx.Client) -> None:
    headers = {"Authorization": "Bearer bert"}
    for name in (f"{ANNA.key}.trees", f"{ANNA.key}.none", "trees", "a.b.c", "%2e%2e%2f"):
        for method, path in (("POST", "infer"), ("POST", "events"), ("GET", "ready"), ("GET", "")):
            answer = client.request(method, f"/v2/models/{name}/{path}".rstrip("/"), headers=headers)
            assert answer.status_code == 404, (name, path)
    assert client.post("/v2/repository/index", headers=headers).json() == []
    Repository(served / "repository").share(ANNA.key, "trees", ["/cms"])
    answer = client.post(f"/v2/models/{ANNA.key}.trees/events", content=json.dumps([EVENT]), headers=headers)
    assert answer.status_code == 200
    Repository(served / "repository").share(ANNA.key, "trees", [])
    assert client.get(f"/v2/models/{ANNA.key}.trees", headers=headers).status_code == 404


def test_health_needs_no_token_and_metrics_an_administrator(client: httpx.Client) -> None:
    for path in ("/v2/health/live", "/v2/health/ready"):
        assert client.get(path, headers={"Authorization": ""}).status_code == 200
    answer = client.get("/metrics", headers={"Authorization": "Bearer admin"})
    assert "mlaas4hep_serving_requests_total" in answer.text
    assert client.get("/metrics").status_code == 403
