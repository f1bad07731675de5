"""The original's routes: what its clients' scripts send, and what its holes let through."""

from __future__ import annotations

import io
import tarfile

import pytest

from tests.unit.mlaas4hep.service_parts import BOB, WORKFLOW, Running, running, tar_gz, until

WANTED = {
    "name": "a_b",
    "device": "cpu",
    "memory": "3gb",
    "cpus": "2",
    "files": "files.txt",
    "labels": "labels.txt",
    "model": "model.py",
    "params": "params.json",
}


@pytest.fixture
def service(tmp_path):
    with running(tmp_path) as service:
        yield service


def send(client, name: str = "a_b"):
    return client.post("/upload", params={"name": name}, files={"file": ("a.tar.gz", tar_gz(WORKFLOW))})


def status(client, process: str) -> str:
    return client.get("/status_docker", params={"process_name": process}).json()["status"]


def test_names_with_underscores_and_common_beginnings_are_told_apart(service: Running):
    client = service.client()
    for name in ("a", "a_b", "a_b_1"):
        assert send(client, name).text == "Successfully uploaded!\n"
    processes = [
        client.post("/submit", json=WANTED | {"name": name}).json()["process_name"]
        for name in ("a_b", "a", "a_b_1", "a_b")
    ]
    assert processes == ["a_b_1", "a_1", "a_b_1_1", "a_b_2"]
    for process in processes:
        until(lambda process=process: status(client, process), lambda text: text.startswith("Exited (0)"))
    with tarfile.open(fileobj=io.BytesIO(client.get("/model", params={"process_name": "a_b_2"}).content)) as tar:
        assert "bundle.json" in tar.getnames()
    assert [model["name"] for model in client.get("/api/v1/models").json()["models"]] == sorted(processes)
    assert "training of" in client.get("/logs", params={"process_name": "a_1"}).text
    for route in ("/status_docker", "/logs", "/model"):
        for process in ("a", "a_", "a_2", "a_b_1_", "a_b_01x", "%", "a_b_1 -f name=a"):
            assert client.get(route, params={"process_name": process}).status_code == 404
        foreign = service.client(BOB).get(route, params={"process_name": "a_1"})
        assert (foreign.status_code, foreign.text) == (404, client.get(route, params={"process_name": "a_9"}).text)


EVIL = ("$(touch /tmp/x)", "; id", "`id`", "a b", "../a_b", "a\nb", "-rf", "'")


@pytest.mark.parametrize("field", ["name", "files", "labels", "model", "params", "device", "memory", "cpus"])
def test_shell_characters_and_paths_are_refused_in_every_field(service: Running, field):
    client = service.client()
    send(client)
    for text in EVIL:
        assert client.post("/submit", json=WANTED | {field: text}).status_code == 422, text
    assert client.get("/api/v1/jobs").json()["jobs"] == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"device": "tpu"}, "no device 'tpu'"),
        ({"device": "gpu"}, "there are 0"),
        ({"memory": "much"}, "no amount of memory"),
        ({"memory": "999999tb"}, "memory is wrong"),
        ({"memory": "1kb"}, "memory is wrong"),
        ({"cpus": "0"}, "no number of CPUs"),
        ({"cpus": "99"}, "there are 4"),
        ({"files": "other.txt"}, "no file other.txt"),
        ({"files": None}, "files"),
    ],
)
def test_mistakes_are_explained(service: Running, change, told):
    client = service.client()
    send(client)
    answer = client.post("/submit", json=WANTED | change)
    assert answer.status_code == 422
    assert told in answer.json()["detail"]


def test_what_is_no_upload_of_a_folder_goes_to_the_inference_server(service: Running):
    client = service.client()
    # the server behind this test's service knows no route
    assert client.post("/upload", files={"model": b""}, data={"name": "x"}).text == "Not Found"
    assert client.post("/upload?name=x", content=b"", headers={"Content-Encoding": "gzip"}).text == "Not Found"
    assert client.post("/upload?name=x", files={"model": b""}).status_code == 422
    assert service.client(None).post("/upload?name=x", files={"file": b""}).status_code == 401


def test_routes_that_are_gone_say_what_takes_their_place(service: Running):
    client = service.client()
    send(client)
    for path, remedy in (("/delete_folder?name=a_b", "DELETE /api/v1/workspaces/a_b"), ("/data", "/files")):
        answer = client.get(path)
        assert answer.status_code == 410
        assert remedy in answer.json()["remedy"]
    assert client.get("/delete_specs?name=a_b").status_code == 200
    assert client.post("/setup_tfaas").status_code == 200
    assert client.get("/api/v1/workspaces/a_b").status_code == 200
