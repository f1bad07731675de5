"""The Python client and its commands, against a running service."""

from __future__ import annotations

import json
import os
import re
import socket
import threading
import time
from pathlib import Path

import pytest

from mlaas4hep.client import Client, ServiceError, UserToken
from mlaas4hep.errors import MlaasError, UsageError
from mlaas4hep.notebook import watch
from tests.serving_parts import collisions, write_tree
from tests.unit.mlaas4hep.service_parts import ALICE, WORKFLOW, Running, running


@pytest.fixture
def service(tmp_path):
    with running(tmp_path / "service") as service:
        yield service


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "higgs"
    folder.mkdir()
    for name, text in WORKFLOW.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def client(service: Running):
    with Client(service.url, lambda: "alice") as client:
        yield client


def test_a_job_from_beginning_to_end(client: Client, folder: Path, tmp_path: Path):
    assert client.me()["subject"] == "alice"
    assert client.upload("higgs", folder)["files"] == 4
    assert client.upload_file("higgs", folder / "model.py", "sub/other.py")["path"] == "sub/other.py"
    assert "sub/other.py" in [file["path"] for file in client.files("higgs")]
    job = client.submit("higgs", parameters={"epochs": 1})
    assert [told["event"] for told in client.progress(job["id"])] == ["epoch", "finished"]
    assert client.wait(job["id"])["state"] == "finished"
    assert client.job("higgs_1")["id"] == job["id"]
    assert "".join(client.follow_log(job["id"])) == client.log(job["id"]) == "training of 2 files\n"
    client.fetch(job["id"], tmp_path / "model")
    assert (tmp_path / "model" / "bundle.json").is_file()
    with pytest.raises(UsageError, match="exists"):
        client.fetch(job["id"], tmp_path / "model")
    client.fetch_model("higgs", 1, tmp_path / "again")
    assert client.card("higgs", 1)["card"] == "# A card\n"
    assert client.share("higgs", ["/cms"])["groups"] == ["/cms"]
    assert client.promote("higgs", 1)["default"] == 1
    assert client.resubmit(job["id"])["process_name"] == "higgs_2"
    client.cancel(job["id"])
    assert [found["process_name"] for found in client.jobs()] == ["higgs_2", "higgs_1"]
    client.delete_job(job["id"])
    client.delete_model("higgs", 1)
    client.delete_workspace("higgs")
    assert client.workspaces() == []


def test_a_job_is_watched_until_it_has_ended_or_for_a_while(client: Client, folder: Path, capsys):
    client.upload("higgs", folder)
    job = client.submit("higgs")
    assert watch(client, job, seconds=0)["id"] == job["id"]
    capsys.readouterr()
    assert watch(client, job["id"], interval=0.05)["state"] == "finished"
    assert capsys.readouterr().out.splitlines()[-1] == "higgs_1 finished"
    assert "higgs, version 1" in client.job(job["id"])._repr_html_()


def test_refusals_have_the_service_s_words(client: Client):
    with pytest.raises(ServiceError, match="nothing of this name") as refused:
        client.submit("nothing")
    assert refused.value.status == 404
    with pytest.raises(ServiceError, match="no job"):
        client.job("nothing_1")


@pytest.mark.parametrize("url", ["http://ml.example.org", "ftp://x", "x", "", "http://[::1"])
def test_a_token_is_never_sent_in_the_clear(url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MLAAS4HEP_URL", raising=False)
    with pytest.raises(UsageError):
        Client(url, lambda: "secret")


def test_the_token_comes_from_file_environment_or_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("MLAAS4HEP_TOKEN", "MLAAS4HEP_TOKEN_FILE", "OIDC_ACCOUNT"):
        monkeypatch.delenv(name, raising=False)
    token = UserToken("https://ml.example.org/")
    with pytest.raises(UsageError, match="no token"):
        token()
    asked, until = tmp_path / "asked", tmp_path / "until"
    until.write_text(f"{time.time() + 300:.0f}")
    agent = tmp_path / "oidc-token"
    agent.write_text(
        f'#!/bin/sh\necho "$*" >> {asked}\n'
        f'case "$*" in *mine) printf "%s\\n" of-agent https://iam $(cat {until});; *odd) echo odd;;'
        ' *) echo "no such account" >&2; exit 1;; esac\n'
    )
    agent.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("OIDC_ACCOUNT", "other")
    with pytest.raises(UsageError, match="no such account"):
        token()
    monkeypatch.setenv("OIDC_ACCOUNT", "odd")
    with pytest.raises(UsageError, match="is no token"):
        token()
    asked.unlink()
    monkeypatch.setenv("OIDC_ACCOUNT", "mine")
    assert [token(), token()] == ["of-agent"] * 2
    assert asked.read_text() == "--all --aud=https://ml.example.org --time=60 -- mine\n"
    # one that ends soon is replaced each time
    until.write_text(f"{time.time() + 5:.0f}")
    soon = UserToken("https://ml.example.org:8443")
    assert [soon(), soon()] == ["of-agent"] * 2
    assert asked.read_text().count("--aud=https://ml.example.org:8443 ") == 2
    (tmp_path / "token").write_text("of-file\n")
    monkeypatch.setenv("MLAAS4HEP_TOKEN_FILE", str(tmp_path / "token"))
    assert token() == "of-file"
    monkeypatch.setenv("MLAAS4HEP_TOKEN", "of-environment")
    assert token() == "of-environment"


class Unreliable:
    """A way to the service that breaks some connections: before the request arrives, in the middle of it, or before the
    answer does; `heads` are the requests that came."""

    def __init__(self, port: int, broken: list[str]) -> None:
        self._port = port
        self._broken = broken
        self.heads: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            near, _ = self._listener.accept()
            with near:
                data = b""
                while b"\r\n\r\n" not in data and (piece := near.recv(65536)):
                    data += piece
                if not data:
                    return
                how = self._broken.pop(0) if self._broken else ""
                head, _, body = data.partition(b"\r\n\r\n")
                self.heads.append(head.decode())
                if how == "request":
                    continue
                with socket.create_connection(("127.0.0.1", self._port)) as far:
                    far.sendall(head + b"\r\nConnection: close\r\n\r\n" + body)
                    while how == "middle" and (piece := near.recv(65536)):
                        far.sendall(piece)
                        body += piece
                        if len(body) > 300_000:
                            break
                    if how == "middle":
                        continue
                    near.settimeout(0.3)
                    try:
                        while piece := near.recv(65536):
                            far.sendall(piece)
                    except TimeoutError:
                        pass
                    answer = b""
                    while piece := far.recv(65536):
                        answer += piece
                if how != "answer":
                    near.sendall(answer)

    def end(self) -> None:
        host, _, port = self.url.removeprefix("http://").partition(":")
        socket.create_connection((host, int(port))).close()
        self._thread.join()
        self._listener.close()


def test_a_submission_whose_answer_is_lost_is_repeated_and_happens_once(service: Running, folder: Path):
    with Client(service.url, lambda: "alice") as direct:
        direct.upload("higgs", folder)
        way = Unreliable(int(service.url.rpartition(":")[2]), ["answer", "request"])
        try:
            with Client(way.url, lambda: "alice") as client:
                job = client.submit("higgs")
        finally:
            way.end()
        assert [found["id"] for found in direct.jobs()] == [job["id"]]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_an_upload_goes_on_where_it_broke_off(
    service: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
):
    monkeypatch.setattr("mlaas4hep.client._RESUMABLE", 2**20)
    monkeypatch.setattr("mlaas4hep.client._PART", 700_000)
    source = tmp_path / "data"
    source.mkdir()
    content = os.urandom(1_500_000)
    (source / "a.root").write_bytes(content)
    monkeypatch.setattr("mlaas4hep.client._FIRST_PAUSE", 0.001)
    # first: list, beginning, list, first part, half a part, and nothing more; then: list, and the end
    broken = ["", "answer", "", "", "middle", *["request"] * 5, "", "answer"]
    way = Unreliable(int(service.url.rpartition(":")[2]), broken)
    with Client(service.url, lambda: "alice") as direct:
        direct.upload("higgs", source)
        try:
            with Client(way.url, lambda: "alice") as client:
                with pytest.raises(MlaasError, match="does not answer"):
                    put(client, source, kind)
                put(client, source, kind)
        finally:
            way.end()
        offsets = [int(found[1]) for head in way.heads if (found := re.search(r"upload-offset: (\d+)", head.lower()))]
        assert offsets[:2] == [0, 700_000]
        assert min(offsets[2:]) > 700_000, offsets
        files = {"file": ["a.root", "again.root"], "folder": ["a.root"]}[kind]
        assert [file["path"] for file in direct.files("higgs")] == files
        assert {file["bytes"] for file in direct.files("higgs")} == {len(content)}
        stored = service.service.workspaces.folder(ALICE.key, "higgs")
        assert (stored / files[-1]).read_bytes() == content
        assert direct._json("GET", "/workspaces/higgs/uploads") == {"uploads": []}


def put(client: Client, source: Path, kind: str) -> None:
    if kind == "file":
        assert client.upload_file("higgs", source / "a.root", "again.root")["bytes"] == 1_500_000
    else:
        assert client.upload("higgs", source)["files"] == 1


def test_a_cancellation_is_not_repeated(service: Running):
    way = Unreliable(int(service.url.rpartition(":")[2]), ["answer"])
    try:
        with Client(way.url, lambda: "alice") as client, pytest.raises(MlaasError, match="does not answer"):
            client.cancel("j00000000000000000000")
    finally:
        way.end()


def test_the_commands(
    bubblewrap: None, service: Running, folder: Path, tmp_path: Path, command, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MLAAS4HEP_URL", service.url)
    monkeypatch.setenv("MLAAS4HEP_TOKEN", "alice")
    monkeypatch.chdir(tmp_path)
    assert command("client", "submit", folder, "-p", "epochs=3", "--memory", "1GB").out.startswith("higgs_1 ")
    job = json.loads(command("client", "status", "higgs_1", "--json").out)
    assert job["resources"]["memory"] == 2**30
    assert command("client", "logs", "-f", "higgs_1").out == "training of 2 files\n"
    assert "finished" in command("client", "jobs").out
    assert command("client", "fetch", "higgs_1").out == "higgs_1\n"
    assert (tmp_path / "higgs_1" / "bundle.json").is_file()
    assert "1 versions" in command("client", "models", "list").out
    assert command("client", "models", "card", "higgs", "1").out == "# A card\n\n"
    assert "model.py" in command("client", "workspaces", "files", "higgs").out
    assert command("client", "workspaces", "delete", "higgs").status == 0
    for name, text in {"files.txt": "a.root", "labels.txt": "trigger", "model.py": ""}.items():
        (data := tmp_path / "data").mkdir(exist_ok=True)
        (data / name).write_text(text)
    write_tree(data / "a.root", collisions(30, 0.0, 1))
    checked = command("client", "check", data, "-p", "exclude_branches=Muon_*").out.splitlines()
    assert checked[0].split() == ["files", "1", "of", "1", "looked", "at,", "30", "entries"]
    assert [line.split()[0] for line in checked[1:]] == ["flat", "width", "label"]
    wrong = command("client", "submit", "nothing")
    assert (wrong.status, wrong.out) == (1, "")
    assert wrong.err == "mlaas4hep: There is nothing of this name.\n"
    assert command("client", "submit", folder, "--memory", "much").status == 2
    monkeypatch.setenv("MLAAS4HEP_TOKEN", "wrong")
    assert "The token is not valid" in command("client", "me").err
