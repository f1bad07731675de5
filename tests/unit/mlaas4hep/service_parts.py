"""A whole service in this process, whose jobs are real processes."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import socket
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette

from mlaas4hep.service.app import create_app
from mlaas4hep.service.authentication import AuthenticationSettings
from mlaas4hep.service.executor import Outcome, State, Task
from mlaas4hep.service.identity import AuthenticationError, Role, User
from mlaas4hep.service.policy import PERSONAL, Policy
from mlaas4hep.service.settings import JobSettings, Limits, Settings

PATIENCE = 120.0  # seconds that something may take on a busy machine

# what a training leaves behind, without its time
QUICK = """
echo "training of $(wc -l < input/files.txt) files"
printf '%s\\n' '{"event": "epoch", "epoch": 1}' '{"event": "finished"}' >> progress.jsonl
mkdir model
echo '{"framework": "sklearn", "files": {}, "made": "'$(date +%N)'"}' > model/bundle.json
echo '{"auc": 0.9}' > model/metrics.json
echo '# A card' > model/README.md
echo '<p>A report</p>' > model/report.html
"""

ALICE = User("https://iam.example", "alice", "Alice", ("/cms", "/cms/higgs"), frozenset({Role.SUBMIT, Role.SERVE}))
BOB = User("https://iam.example", "bob", "Bob", ("/cms/higgs",), frozenset({Role.SUBMIT, Role.SERVE}))
ADMIN = User("https://iam.example", "admin", "Admin", (), frozenset({Role.ADMINISTER}))
READER = User("https://iam.example", "reader", "Reader", (), frozenset({Role.SERVE}))
GUEST = User("https://iam.example", "guest", "Guest")
ROOT = User("https://iam.example", "root", "Root", ("/cms",), frozenset(Role))
USERS = {user.subject: user for user in (ALICE, BOB, ADMIN, READER, GUEST, ROOT)}


class Subjects:
    """An authenticator to whom a token is the subject."""

    async def authenticate(self, authorization: str) -> User:
        scheme, _, subject = authorization.partition(" ")
        if scheme != "Bearer" or subject not in USERS:
            raise AuthenticationError("The token is not valid.")
        return USERS[subject]


class Processes:
    """Runs a shell script in the folder of each task."""

    def __init__(self, script: str = QUICK) -> None:
        self.script = script
        self.started: list[str] = []
        self.tasks: list[Task] = []
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def submit(self, task: Task) -> None:
        try:
            (task.folder / f".{task.key}").mkdir()
        except FileExistsError:
            return
        self.started.append(task.key)
        self.tasks.append(task)
        with (task.folder / "log").open("ab") as log:
            self._processes[task.key] = subprocess.Popen(
                ["sh", "-ec", self.script],
                cwd=task.folder,
                env={**os.environ, "KEY": task.key},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def status(self, task: Task) -> Outcome:
        process = self._processes.get(task.key)
        if process is None:
            return Outcome(State.INTERRUPTED, "It was never seen.")
        match process.poll():
            case None:
                return Outcome(State.RUNNING, started="2026-01-01T00:00:00+00:00")
            case 0:
                return Outcome(State.FINISHED, started="2026-01-01T00:00:00+00:00", ended="2026-01-01T00:00:09+00:00")
            case -9:
                return Outcome(State.INTERRUPTED, "It was killed.")
            case -15:
                return Outcome(State.CANCELLED)
            case code:
                return Outcome(State.FAILED, f"It ended with the exit status {code}.")

    def logs(self, task: Task, offset: int = 0) -> Iterator[bytes]:
        with contextlib.suppress(FileNotFoundError), (task.folder / "log").open("rb") as stream:
            stream.seek(offset)
            yield stream.read()

    def cancel(self, task: Task) -> None:
        process = self._processes[task.key]
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()

    def interrupt(self, key: str) -> None:
        """Kill a task as a failing node would."""
        os.killpg(self._processes[key].pid, signal.SIGKILL)
        self._processes[key].wait()

    def end(self) -> None:
        for process in self._processes.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


class Running:
    """The service, and clients of its users."""

    def __init__(self, folder: Path, executor: Processes, policy: Policy = PERSONAL, **options: Any) -> None:
        self.settings = settings(folder, **options)
        self.executor = executor
        self.app = create_app(self.settings, executor, Subjects(), lambda: policy, Starlette())
        self.service = self.app.api.state.service

        self.url = ""
        self._clients: list[httpx.Client] = []

    def client(self, user: User | None = ALICE, **options: Any) -> httpx.Client:
        headers = {"Authorization": f"Bearer {user.subject}"} if user else {}
        client = httpx.Client(base_url=self.url, headers=headers, timeout=PATIENCE, trust_env=False, **options)
        self._clients.append(client)
        return client

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Answer requests on a port of this computer."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            server = uvicorn.Server(uvicorn.Config(self.app, log_level="warning"))
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
            thread.start()
            try:
                until(lambda: server.started or not thread.is_alive(), bool)
                yield
            finally:
                for client in self._clients:
                    client.close()
                server.should_exit = True
                thread.join()


def settings(folder: Path, **options: Any) -> Settings:
    given = {"jobs": JobSettings(interval=0.05, cpus=4, memory=2**40), "limits": Limits()} | options
    secret = folder / "token"
    return Settings(data=folder / "data", authentication=AuthenticationSettings(token_file=secret), **given)


@contextlib.contextmanager
def running(folder: Path, script: str = QUICK, **options: Any) -> Iterator[Running]:
    """A service whose dispatcher runs."""
    executor = Processes(script)
    service = Running(folder, executor, **options)
    try:
        with service.listening():
            yield service
    finally:
        executor.end()


def tar_gz(files: dict[str, bytes | str], folder: str = "folder/") -> bytes:
    """An archive with these files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(folder + name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


WORKFLOW = {
    "files.txt": "a.root\nb.root\n",
    "labels.txt": "1\n0\n",
    "model.py": "def model():\n    pass\n",
    "params.json": '{"epochs": 2}',
}


def upload(client: httpx.Client, name: str = "higgs", files: dict[str, bytes | str] = WORKFLOW) -> None:
    answer = client.put(f"/api/v1/workspaces/{name}", content=tar_gz(files))
    assert answer.status_code == 200, answer.text


def submit(client: httpx.Client, workspace: str = "higgs", **more: object) -> dict:
    answer = client.post("/api/v1/jobs", json={"workspace": workspace, **more})
    assert answer.status_code == 201, answer.text
    return answer.json()


def ended(client: httpx.Client, key: str) -> dict:
    """The job, when it has ended."""
    return until(
        lambda: client.get(f"/api/v1/jobs/{key}").json(), lambda job: job["state"] not in ("queued", "running")
    )


def until(ask: Callable[[], Any], true: Callable[[Any], object]) -> Any:
    """Ask until the answer is as wanted."""
    deadline = time.monotonic() + PATIENCE
    while not true(answer := ask()):
        assert time.monotonic() < deadline, answer
        time.sleep(0.02)
    return answer
