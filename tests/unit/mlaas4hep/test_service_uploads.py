"""Uploads that go on where they broke off, and those that mean no good."""

from __future__ import annotations

import base64
import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from mlaas4hep.service.policy import Policy
from mlaas4hep.service.settings import Limits
from tests.unit.mlaas4hep.service_parts import ALICE, BOB, Running, running, tar_gz, until, upload

SPACES = "/api/v1/workspaces"
TUS = {"Tus-Resumable": "1.0.0"}
BODY = {**TUS, "Content-Type": "application/offset+octet-stream"}


@pytest.fixture(scope="module")
def service(tmp_path_factory) -> Iterator[Running]:
    policy = Policy.model_validate({"everyone": {"quota": {"disk": "1 MiB"}}})
    limits = Limits(upload=800_000, body=5_000)
    with running(tmp_path_factory.mktemp("service"), policy=policy, limits=limits) as service:
        yield service


@pytest.fixture
def client(service: Running) -> Iterator[httpx.Client]:
    """Alice, with one empty workspace."""
    client = service.client()
    client.post(SPACES, json={"name": "w"})
    yield client
    for found in client.get(f"{SPACES}/w/uploads").json()["uploads"]:
        client.delete(f"{SPACES}/w/uploads/{found['id']}", headers=TUS)
    client.delete(f"{SPACES}/w")


def metadata(**told: str) -> str:
    return ",".join(f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in told.items())


def begin(client: httpx.Client, size: int, workspace: str = "w", **told: str) -> httpx.Response:
    headers = {**TUS, "Upload-Length": str(size)} | ({"Upload-Metadata": metadata(**told)} if told else {})
    return client.post(f"{SPACES}/{workspace}/uploads", headers=headers)


def patch(client: httpx.Client, place: str, offset: int, body: bytes) -> httpx.Response:
    return client.patch(place, content=body, headers={**BODY, "Upload-Offset": str(offset)})


def offset(client: httpx.Client, place: str) -> int:
    answer = client.head(place, headers=TUS)
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    return int(answer.headers["upload-offset"])


def test_an_upload_goes_on_where_it_broke_off(service: Running, client: httpx.Client):
    data = os.urandom(300_000)
    place = begin(client, len(data), path="sub/a.root", fingerprint="a 300000").headers["location"]
    # a connection that breaks off in the middle of the second piece
    address = httpx.URL(service.url)
    lines = (f"PATCH {place} HTTP/1.1", "Host: x", "Authorization: Bearer alice", "Upload-Offset: 0")
    lines += (*(f"{name}: {value}" for name, value in BODY.items()), f"Content-Length: {len(data)}", "", "")
    with socket.create_connection((address.host, address.port or 80)) as connection:
        connection.sendall("\r\n".join(lines).encode() + data[:120_000])
    until(lambda: offset(client, place), lambda come: come == 120_000)
    [told] = client.get(f"{SPACES}/w/uploads").json()["uploads"]
    assert (told["path"], told["bytes"], told["offset"], told["fingerprint"]) == (
        "sub/a.root",
        300_000,
        120_000,
        "a 300000",
    )
    assert patch(client, place, 120_000, data[120_000:200_000]).headers["upload-offset"] == "200000"
    assert client.get(f"{SPACES}/w/files").json() == {"files": []}
    assert patch(client, place, 200_000, data[200_000:]).status_code == 204
    assert client.get(f"{SPACES}/w/files/sub/a.root").content == data
    # who has not got the last answer asks, or sends the end again
    assert offset(client, place) == 300_000
    assert patch(client, place, 300_000, b"").status_code == 204
    assert patch(client, place, 300_000, b"x").status_code == 409
    assert client.get(f"{SPACES}/w/uploads").json() == {"uploads": []}


def test_an_archive_goes_on_as_well_and_replaces_the_workspace(client: httpx.Client):
    data = tar_gz({"new.txt": os.urandom(50_000)})
    place = begin(client, len(data), "other").headers["location"]
    for first in range(0, len(data), 20_000):
        assert patch(client, place, first, data[first : first + 20_000]).status_code == 204
    assert [file["path"] for file in client.get(f"{SPACES}/other/files").json()["files"]] == ["new.txt"]
    client.delete(f"{SPACES}/other")
    # what is no archive is refused at its end, and gone
    place = begin(client, 5, "other").headers["location"]
    assert patch(client, place, 0, b"hello").status_code == 422
    assert client.head(place, headers=TUS).status_code == 404
    assert client.get(f"{SPACES}/other").status_code == 404


def test_only_the_right_bytes_are_taken(client: httpx.Client):
    place = begin(client, 10, path="a").headers["location"]
    assert patch(client, place, 0, b"01234").status_code == 204
    for where, body in ((0, b"x"), (4, b"x"), (6, b"x"), (10, b""), (5, b"567890"), (-1, b"x"), (2**63, b"x")):
        assert patch(client, place, where, body).status_code in (409, 422), (where, body)
    assert client.patch(place, content=b"x", headers=BODY).status_code == 422
    assert client.patch(place, content=b"x", headers={**TUS, "Upload-Offset": "5"}).status_code == 415
    assert client.patch(place, content=b"x", headers={**BODY, "Upload-Offset": "5", **OLD}).status_code == 412
    assert offset(client, place) == 5
    assert patch(client, place, 5, b"56789").status_code == 204
    assert client.get(f"{SPACES}/w/files/a").content == b"0123456789"
    assert begin(client, 0, path="empty").status_code == 201
    assert client.get(f"{SPACES}/w/files/empty").content == b""


OLD = {"Tus-Resumable": "0.2.2"}


def test_what_cannot_be_stored_is_refused_at_the_beginning(client: httpx.Client):
    assert client.options(f"{SPACES}/w/uploads").headers["tus-max-size"] == "800000"
    assert begin(client, 800_001, path="a").status_code == 413
    assert begin(client, -1, path="a").status_code == 422
    for path in ("../a", "/etc/passwd", "a\nb", "x" * 2000):
        assert begin(client, 1, path=path).status_code == 422, path
    assert begin(client, 1, "nothing", path="a").status_code == 404
    assert begin(client, 1, "..%2fx").status_code in (404, 422)
    assert client.post(f"{SPACES}/w/uploads", headers={"Upload-Length": "1"}).status_code == 412
    wrong = {**TUS, "Upload-Length": "1", "Upload-Metadata": "path ***"}
    assert client.post(f"{SPACES}/w/uploads", headers=wrong).status_code == 422
    assert client.get(f"{SPACES}/w/uploads").json() == {"uploads": []}


def test_unfinished_uploads_count_and_are_bounded(client: httpx.Client):
    left = client.get(SPACES).json()["left"]
    place = begin(client, 700_000, path="a").headers["location"]
    assert client.get(SPACES).json()["left"] == left - 700_000
    assert begin(client, 700_000, path="b").status_code == 403
    assert client.put(f"{SPACES}/w/files/b", content=bytes(700_000)).status_code == 403
    assert client.delete(place, headers=TUS).status_code == 204
    assert client.delete(place, headers=TUS).status_code == 404
    assert client.get(SPACES).json()["left"] == left
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda number: begin(client, 1, path=f"f{number}").status_code, range(60)))
    assert (answers.count(201), answers.count(403)) == (50, 10)


def test_another_user_s_upload_does_not_exist(service: Running, client: httpx.Client):
    place = begin(client, 10, path="a").headers["location"]
    bob = service.client(BOB)
    bob.post(SPACES, json={"name": "w"})
    assert bob.get(f"{SPACES}/w/uploads").json() == {"uploads": []}
    absent = place[:-32] + "0" * 32
    for method, headers in (("HEAD", TUS), ("PATCH", {**BODY, "Upload-Offset": "0"}), ("DELETE", TUS)):
        foreign, missing = (bob.request(method, address, headers=headers) for address in (place, absent))
        assert foreign.status_code == missing.status_code == 404
        assert foreign.text == missing.text
    # nor does it in another workspace of the same user
    upload(client, "second", {"a": "1"})
    assert client.head(place.replace("/w/", "/second/"), headers=TUS).status_code == 404
    client.delete(f"{SPACES}/second")
    assert offset(client, place) == 0


def test_of_two_writers_one_is_refused_and_the_file_is_whole(client: httpx.Client):
    data = os.urandom(400_000)
    place = begin(client, len(data), path="a").headers["location"]
    statuses: list[int] = []

    def write() -> None:
        while (come := offset(client, place)) < len(data):
            statuses.append(patch(client, place, come, data[come : come + 50_000]).status_code)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(statuses) <= {204, 409}
    assert client.get(f"{SPACES}/w/files/a").content == data


def test_a_connection_that_hangs_keeps_nobody_waiting(service: Running, client: httpx.Client):
    place = begin(client, 10, path="a").headers["location"]
    address = httpx.URL(service.url)
    lines = (f"PATCH {place} HTTP/1.1", "Host: x", "Authorization: Bearer alice", "Upload-Offset: 0")
    lines += (*(f"{name}: {value}" for name, value in BODY.items()), "Content-Length: 10", "", "")
    with socket.create_connection((address.host, address.port or 80)) as connection:
        connection.sendall("\r\n".join(lines).encode())
        assert patch(client, place, 0, b"01234").status_code == 204
        connection.sendall(b"XXXXXXXXXX")
        assert b" 409 " in connection.recv(1000)
    assert patch(client, place, 5, b"56789").status_code == 204
    assert client.get(f"{SPACES}/w/files/a").content == b"0123456789"


def test_abandoned_uploads_are_swept(service: Running, client: httpx.Client):
    old, young = (begin(client, 10, path=path).headers["location"] for path in ("a", "b"))
    home = service.settings.data / "workspaces" / ALICE.key
    yesterday = time.time() - 25 * 3600
    os.utime(home / f".upload-{old[-32:]}", (yesterday, yesterday))
    service.service.submissions.sweep()
    assert client.head(old, headers=TUS).status_code == 404
    assert offset(client, young) == 0
