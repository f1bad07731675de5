"""The whole service as it is started on a platform: jobs in sandboxes, kills, the original's curl session."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from mlaas4hep.client import Client, ServiceError
from mlaas4hep.data.schema import Schema
from mlaas4hep.example.generate import write_example
from tests.confinement import require_confinement

PATIENCE = 400.0  # seconds
MODEL = """
from sklearn.linear_model import LogisticRegression

def model():
    return LogisticRegression()
"""
SLOW_MODEL = """
import pathlib, time
from sklearn.linear_model import LogisticRegression

def model():
    print("the model waits", flush=True)
    time.sleep(12)
    return LogisticRegression()
"""


@pytest.fixture(scope="module", autouse=True)
def _able() -> None:
    require_confinement(curl="curl")


class Platform:
    """The service as a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, inference = _free_ports()
        self.url, self.inference = f"http://127.0.0.1:{self.port}", f"http://127.0.0.1:{inference}"
        self.token_file = folder / "token"
        self.settings = folder / "service.toml"
        self.settings.write_text(
            f"""
            data = "{folder / "data"}"
            listen = "127.0.0.1:{self.port}"
            [jobs]
            interval = 0.2
            cpus = 2
            memory = {2**40}
            [authentication]
            token_file = "{self.token_file}"
            [executor.local]
            supervisor = "process"
            [serving]
            port = {inference}
            workers = 1
            """
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        words = [sys.executable, "-m", "mlaas4hep.cli", "serve", "--config", str(self.settings)]
        with (self.folder / "service.log").open("ab") as log:
            self.process = subprocess.Popen(words, stdout=log, stderr=log, start_new_session=True)
        for url in (f"{self.url}/ready", f"{self.inference}/v2/health/live"):
            until(lambda url=url: _answers(url), self.said)

    def kill(self) -> None:
        """End all processes of the service, and none of its jobs."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        until(lambda: not _listens(self.port), self.said)

    def stop(self) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait()

    def said(self) -> str:
        return (self.folder / "service.log").read_text()

    def client(self) -> Client:
        return Client(self.url, lambda: self.token_file.read_text().strip(), self.inference)


def _free_ports() -> tuple[int, int]:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        return one.getsockname()[1], other.getsockname()[1]


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def _answers(url: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(url, trust_env=False).is_success
    return False


def until(condition: Callable[[], Any], what: Callable[[], str]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.1)


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    platform = Platform(tmp_path)
    platform.start()
    try:
        yield platform
    finally:
        with platform.client() as client:
            for job in client.jobs():
                client.cancel(job["id"])
            until(lambda: all(job["ended"] for job in client.jobs()), platform.said)
        platform.stop()


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Simulated events with everything that a training needs, of a model that trains quickly."""
    folder = tmp_path_factory.mktemp("example") / "higgs"
    write_example(folder, 2000, 1)
    (folder / "model.py").write_text(MODEL)
    return folder


@pytest.mark.parametrize("runtime", ["onnx", "native"])
def test_a_model_is_trained_and_predicts(platform: Platform, example: Path, tmp_path: Path, runtime: str):
    with platform.client() as client:
        client.upload("higgs", example)
        key = client.submit("higgs", parameters={"seed": 1, "runtime": runtime})["id"]
        told = list(client.progress(key))
        job = client.wait(key)
        assert job["state"] == "finished", (job["reason"], client.log(key), platform.said())
        assert told
        client.fetch(key, tmp_path / "fetched")
        assert (tmp_path / "fetched" / "bundle.json").is_file()
        schema = json.loads((tmp_path / "fetched" / "schema.json").read_text())
        assert client.models()[0]["name"] == "higgs"
        assert "# " in client.card("higgs", 1)["card"]
        assert "<html" in client.report(key)
        flat, jagged = schema["flat"], schema["jagged"]
        event = {column["name"]: 1.0 for column in flat} | {column["name"]: [20.0] for column in jagged}
        answers = client.predict("higgs", [event])
        assert answers
        # the control plane's own address serves as well
        with Client(platform.url, client._token) as other:
            assert other.predict("higgs", [event]) == answers


def test_nothing_is_lost_and_nothing_runs_twice_when_the_service_is_killed(platform: Platform, example: Path):
    slow = platform.folder / "slow"
    shutil.copytree(example, slow)
    (slow / "model.py").write_text(SLOW_MODEL)
    with platform.client() as client:
        client.upload("slow", slow)
        keys = [client.submit("slow", name=f"job{number}")["id"] for number in range(3)]
        until(lambda: "the model waits" in client.log(keys[0]), platform.said)
        for _ in range(2):
            platform.kill()
            platform.start()
        for key in keys:
            job = client.wait(key)
            assert job["state"] == "finished", (job, client.log(key), platform.said())
            assert job["attempt"] == 1
            assert client.log(key).count("the model waits") == 1
            assert job["model"]["version"] == 1
        before = [client.job(key) for key in keys]
        platform.kill()
        platform.start()
        assert [client.job(key) for key in keys] == before


def test_the_service_ends_when_it_is_told_to_and_when_a_part_dies(tmp_path: Path):
    platform = Platform(tmp_path)
    platform.start()
    assert platform.stop() == 0
    assert not _listens(platform.port)
    platform.start()
    assert platform.process is not None
    children = subprocess.run(
        ["pgrep", "-P", str(platform.process.pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    os.kill(int(children[0]), signal.SIGKILL)
    assert platform.process.wait() == 1
    assert "ended by itself" in platform.said()
    until(lambda: not _listens(platform.port), platform.said)


def curl(*words: str | Path) -> str:
    done = subprocess.run(["curl", "-sSL", "-k", *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_curl_session_of_the_original_works_line_by_line(platform: Platform, example: Path, tmp_path: Path):
    folder = tmp_path / "folder_to_upload"
    shutil.copytree(example, folder)
    for old, new in {
        "files.txt": "files_local.txt",
        "labels.txt": "labels_local.txt",
        "model.py": "ex_keras_model.py",
        "params.json": "params_local.json",
    }.items():
        (folder / old).rename(folder / new)
    archive = tmp_path / "folder_to_upload.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, "folder_to_upload")
    wanted = {
        "name": "luca",
        "device": "cpu",
        "memory": "3gb",
        "cpus": "2",
        "files": "files_local.txt",
        "labels": "labels_local.txt",
        "model": "ex_keras_model.py",
        "params": "params_local.json",
    }
    (tmp_path / "submit.json").write_text(json.dumps(wanted))
    token = ["-H", f"Authorization: Bearer {platform.token_file.read_text().strip()}"]
    as_json = ["-H", "Content-Type: application/json"]
    host = platform.url
    assert curl(*token, f"{host}/models").strip() == "null"
    assert curl(*token, "-F", f"file=@{archive}", f"{host}/upload?name=luca") == "Successfully uploaded!\n"
    answer = json.loads(curl(*token, *as_json, "-d", f"@{tmp_path / 'submit.json'}", f"{host}/submit"))
    assert answer == {"process_name": "luca_1", "job_id": 1}

    def status() -> str:
        shown = json.loads(curl(*token, f"{host}/status_docker?process_name=luca_1"))
        assert shown["process_name"] == "luca_1"
        return str(shown["status"])

    assert status().startswith(("Created", "Up"))
    until(lambda: status().startswith("Exited"), platform.said)
    curl(*token, "-o", tmp_path / "logs.txt", f"{host}/logs?process_name=luca_1")
    assert status().startswith("Exited (0)"), (tmp_path / "logs.txt").read_text()
    curl(*token, "-o", tmp_path / "luca_1.tar.gz", f"{host}/model?process_name=luca_1")
    with tarfile.open(tmp_path / "luca_1.tar.gz") as tar:
        assert "bundle.json" in tar.getnames()
        names = Schema.model_validate_json(tar.extractfile("schema.json").read()).names
    [served] = json.loads(curl(*token, f"{host}/models"))
    assert served["name"] == "luca_1"
    (tmp_path / "predict.json").write_text(json.dumps({"values": [0.5] * len(names), "model": "luca_1"}))
    scores = json.loads(
        curl(
            *token,
            "-X",
            "POST",
            "-H",
            "Content-type: application/json",
            "-d",
            f"@{tmp_path / 'predict.json'}",
            f"{host}/json",
        )
    )
    assert len(scores) >= 1
    assert all(0 <= score <= 1 for score in scores)
    assert "no specs" in curl(*token, f"{host}/delete_specs?name=luca")
    again = json.loads(curl(*token, *as_json, "-d", f"@{tmp_path / 'submit.json'}", f"{host}/submit"))
    assert again["process_name"] == "luca_2"
    gone = json.loads(curl(*token, f"{host}/delete_folder?name=luca"))
    assert (gone["status"], "DELETE /api/v1/workspaces/luca" in gone["remedy"]) == (410, True)
    curl(*token, "-X", "DELETE", f"{host}/delete", "-F", "model=luca_1")
    until(
        lambda: json.loads(curl(*token, f"{host}/status_docker?process_name=luca_2"))["status"].startswith("Exited"),
        platform.said,
    )
    curl(*token, "-X", "DELETE", f"{host}/delete", "-F", "model=luca_2")
    assert curl(*token, f"{host}/models").strip() == "null"


def test_a_wrong_token_is_refused_everywhere(platform: Platform):
    with Client(platform.url, lambda: "wrong" * 10) as client, pytest.raises(ServiceError) as refused:
        client.me()
    assert refused.value.status == 401
    assert httpx.get(f"{platform.inference}/v2/models/x", trust_env=False).status_code == 401
