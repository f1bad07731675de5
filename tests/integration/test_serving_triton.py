"""The inference server as Triton's own clients and raw connections meet it."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from mlaas4hep.serving.repository import Repository
from mlaas4hep.training.bundle import read_bundle
from mlaas4hep.training.prediction import predict_events
from tests import serving_parts as parts
from tests.serving_parts import ANNA

ROWS = np.random.default_rng(1).random((5, 4)).astype(np.float32)
TOKEN = {"authorization": "Bearer anna"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("triton")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLAAS4HEP_CACHE", str(folder / "store"))
        models = parts.repository(folder / "repository")
        models.publish(ANNA.key, "trees", parts.trained(folder / "trees"))
    models.publish(ANNA.key, "dense", parts.uploaded(folder / "dense", parts.dense()))
    return folder


@pytest.fixture(scope="module")
def ports(folder: Path) -> Iterator[tuple[httpx.Client, int]]:
    port = parts.free_port()
    with parts.running(folder / "repository", grpc_port=port, workers=2) as client:
        yield client, port


@pytest.fixture(params=["http", "grpc"])
def triton(request: pytest.FixtureRequest, ports: tuple[httpx.Client, int]) -> Iterator[tuple[Any, Any]]:
    """A client of Triton and its module."""
    client, port = ports
    if request.param == "http":
        found = triton_http.InferenceServerClient(urlsplit(str(client.base_url)).netloc)
        yield found, triton_http
    else:
        found = triton_grpc.InferenceServerClient(f"127.0.0.1:{port}")
        yield found, triton_grpc
    found.close()


def inputs(module: Any, arrays: dict[str, Any]) -> list[Any]:
    types = {"f4": "FP32", "f8": "FP64", "i4": "INT32", "i8": "INT64", "b1": "BOOL"}
    found = []
    for name, array in arrays.items():
        tensor = module.InferInput(name, array.shape, types[array.dtype.str[1:]])
        tensor.set_data_from_numpy(array)
        found.append(tensor)
    return found


def test_clients_of_triton_find_the_server_and_its_models(triton: tuple[Any, Any]) -> None:
    client, module = triton
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("dense", headers=dict(TOKEN))
    options = {"as_json": True} if module is triton_grpc else {}
    assert client.get_server_metadata(headers=dict(TOKEN), **options)["name"] == "mlaas4hep"
    told = client.get_model_metadata("dense", headers=dict(TOKEN), **options)
    assert [(entry["name"], entry["datatype"]) for entry in told["inputs"]] == [("x", "FP32")]
    assert [list(map(int, entry["shape"])) for entry in told["outputs"]] == [[-1, 3]]


def test_clients_of_triton_get_predictions(triton: tuple[Any, Any]) -> None:
    client, module = triton
    wanted = parts.softmax_of(parts.dense(), ROWS)
    for version in ("", "1"):
        for outputs in (None, [module.InferRequestedOutput("y")]):
            answer = client.infer("dense", inputs(module, {"x": ROWS}), version, outputs, "id7", headers=dict(TOKEN))
            np.testing.assert_allclose(answer.as_numpy("y"), wanted, atol=1e-6)


def test_clients_of_triton_send_raw_events(folder: Path, triton: tuple[Any, Any]) -> None:
    client, module = triton
    events = parts.events_of(folder / "trees" / "workflow" / "signal.root", 20)
    arrays: dict[str, Any] = {name: np.array([e[name] for e in events]) for name in ("MET_pt", "nMuon", "trigger")}
    for name in ("Muon_pt", "Muon_eta"):
        arrays[name] = np.array([value for event in events for value in event[name]], np.float32)
        arrays[f"{name}:offsets"] = np.cumsum([0, *(len(event[name]) for event in events)])
    answer = client.infer("trees", inputs(module, arrays), headers=dict(TOKEN))
    told = predict_events(read_bundle(folder / "trees" / "bundle"), events)
    wanted = [list(entry["probabilities"].values()) for entry in told]
    np.testing.assert_allclose(answer.as_numpy("predictions"), wanted, atol=1e-6)


def test_clients_of_triton_are_told_what_is_wrong(triton: tuple[Any, Any]) -> None:
    client, module = triton
    for name, arrays, headers, told in (
        ("dense", {"X": ROWS}, TOKEN, "no input X"),
        ("dense", {"x": ROWS[:, :3].copy()}, TOKEN, r"takes \[-1, 4\]"),
        ("none", {"x": ROWS}, TOKEN, "no model none"),
        ("dense", {"x": ROWS}, {}, "bearer token"),
        ("dense", {"x": ROWS}, {"authorization": "Bearer guest"}, "needs the role"),
    ):
        with pytest.raises(InferenceServerException, match=told):
            client.infer(name, inputs(module, arrays), headers=dict(headers))


def test_typed_contents_of_grpc_are_read(ports: tuple[httpx.Client, int]) -> None:
    from mlaas4hep.serving.messages import SERVICE, message

    request = message("inference.ModelInferRequest")(model_name="dense")
    tensor = request.inputs.add(name="x", datatype="FP32", shape=ROWS.shape)
    tensor.contents.fp32_contents.extend(ROWS.ravel().tolist())
    with grpc.insecure_channel(f"127.0.0.1:{ports[1]}") as channel:
        call = channel.unary_unary(
            f"/{SERVICE}/ModelInfer",
            request_serializer=message("inference.ModelInferRequest").SerializeToString,
            response_deserializer=message("inference.ModelInferResponse").FromString,
        )
        answer = call(request, metadata=tuple(TOKEN.items()))
        tensor.datatype = "FP16"
        with pytest.raises(grpc.RpcError, match="FP16"):
            call(request, metadata=tuple(TOKEN.items()))
    found = np.frombuffer(answer.raw_output_contents[0], np.float32).reshape(answer.outputs[0].shape)
    np.testing.assert_allclose(found, parts.softmax_of(parts.dense(), ROWS), atol=1e-6)


class Connection:
    """A connection of HTTP/1.1 as it is."""

    def __init__(self, client: httpx.Client) -> None:
        place = urlsplit(str(client.base_url))
        self._socket = socket.create_connection((str(place.hostname), int(place.port or 80)), timeout=30)
        self._stream = self._socket.makefile("rb")

    def send(self, content: bytes) -> None:
        self._socket.sendall(content)

    def answer(self) -> tuple[int, bytes]:
        """Status and body of the next answer."""
        status = int(self._stream.readline().split()[1])
        length = 0
        while line := self._stream.readline().strip():
            name, _, value = line.partition(b":")
            length = int(value) if name.lower() == b"content-length" else length
        return status, self._stream.read(length)

    def close(self) -> None:
        self._stream.close()
        self._socket.close()


@pytest.fixture
def connection(ports: tuple[httpx.Client, int]) -> Iterator[Connection]:
    found = Connection(ports[0])
    yield found
    found.close()


BODY = json.dumps({"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}).encode()


def post(body: bytes = BODY, path: str = "/v2/models/dense/infer", **headers: str) -> bytes:
    lines = {"Host": "x", "Authorization": "Bearer anna", "Content-Length": str(len(body))} | headers
    text = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in lines.items())
    return f"POST {path} HTTP/1.1\r\n{text}\r\n".encode() + body


def test_requests_that_follow_each_other_at_once_are_answered_in_their_order(connection: Connection) -> None:
    connection.send(post())
    assert connection.answer()[0] == 200
    health = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
    connection.send(post() + health + post(b"{}") + post(path="/v2/models/none/infer") + post() + health)
    assert [connection.answer()[0] for _ in range(6)] == [200, 200, 400, 404, 200, 200]


def test_a_request_in_many_pieces_is_one_request(connection: Connection) -> None:
    connection.send(post())
    connection.answer()
    for start in range(0, len(content := post()), 7):
        connection.send(content[start : start + 7])
    status, body = connection.answer()
    assert status == 200
    assert json.loads(body)["outputs"][0]["shape"] == [1, 3]


def test_a_body_in_chunks_goes_the_long_way(connection: Connection) -> None:
    head = b"POST /v2/models/dense/infer HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer anna\r\n"
    connection.send(head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY))
    assert connection.answer()[0] == 200


def test_two_tokens_or_a_wrong_one_are_none(connection: Connection) -> None:
    connection.send(post())
    assert connection.answer()[0] == 200
    connection.send(post(Authorization="Bearer nobody"))
    status, body = connection.answer()
    assert status == 401
    assert b"outputs" not in body
    twice = post().replace(b"Host: x\r\n", b"Host: x\r\nauthorization: Bearer bert\r\n")
    connection.send(twice)
    assert connection.answer()[0] in (401, 404)


def test_a_connection_that_is_to_be_closed_is_closed(ports: tuple[httpx.Client, int]) -> None:
    connection = Connection(ports[0])
    connection.send(post(Connection="close"))
    assert connection.answer()[0] == 200
    assert connection._stream.read() == b""
    connection.close()


def test_a_version_that_is_published_is_used_by_every_process_at_once(
    folder: Path, tmp_path: Path, ports: tuple[httpx.Client, int]
) -> None:
    client, models = ports[0], Repository(folder / "repository")
    for seed in (11, 12, 13):
        network = parts.dense(seed=seed)
        version = models.publish(ANNA.key, "moving", parts.uploaded(tmp_path / str(seed), network))
        wanted = parts.softmax_of(network, np.array([[1, 2, 3, 4]], np.float32))
        for _ in range(20):
            with httpx.Client(base_url=client.base_url, headers=client.headers) as other:
                answer = other.post("/v2/models/moving/infer", content=BODY).json()
            assert answer["model_version"] == str(version)
            np.testing.assert_allclose([answer["outputs"][0]["data"]], wanted, atol=1e-6)


def test_a_process_that_dies_is_replaced(folder: Path) -> None:
    with parts.running(folder / "repository", workers=2) as client:
        server = next(iter(_children(os.getpid(), "serving_parts")))
        workers = _children(server, "spawn_main")
        assert len(workers) == 2
        os.kill(workers[0], signal.SIGKILL)
        deadline = time.monotonic() + 60
        while len([pid for pid in _children(server, "spawn_main") if pid != workers[0]]) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert client.post("/v2/models/dense/infer", content=BODY).status_code == 200


def _children(process: int, words: str) -> list[int]:
    found = []
    for task in Path(f"/proc/{process}/task").iterdir():
        for child in (task / "children").read_text().split():
            command = Path(f"/proc/{child}/cmdline")
            if words in command.read_text().replace("\0", " "):
                found.append(int(child))
    return found
