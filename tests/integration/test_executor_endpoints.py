"""Jobs that read from servers: they reach the endpoints that they were given, and nothing else."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mlaas4hep.example.generate import write_example
from mlaas4hep.service.attempts import held
from mlaas4hep.service.executor import Outcome, Resources, State, Task
from mlaas4hep.service.local import LocalExecutor, LocalSettings
from tests.confinement import require_confinement
from tests.integration.data_servers import PROGRAMS, DataServer, nginx_server, xrootd_server
from tests.slurm.cluster import wait_until

_MIB = 2**20
_HOST = socket.gethostname().lower()
_TRAINS = """
from sklearn.linear_model import LogisticRegression

def model(idim):
    return LogisticRegression()
"""
Run = Callable[..., tuple[Outcome, str]]


@pytest.fixture(scope="module", autouse=True)
def _able() -> None:
    require_confinement(**PROGRAMS)


@pytest.fixture(scope="module")
def xrootd() -> Iterator[DataServer]:
    with xrootd_server() as server:
        yield server


@pytest.fixture(scope="module")
def nginx() -> Iterator[DataServer]:
    with nginx_server() as server:
        yield server


@pytest.fixture(scope="module")
def workflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workflow")
    write_example(folder, 200, 1)
    return folder


@pytest.fixture
def run(tmp_path: Path, workflow: Path) -> Iterator[Run]:
    """Runs a job to its end: its model file, its list of files, its endpoints, its environment."""
    made: list[tuple[LocalExecutor, Task]] = []

    def new(
        model: str, endpoints: tuple[str, ...], files: tuple[str, ...] = (), environment: dict[str, str] | None = None
    ) -> tuple[Outcome, str]:
        settings = LocalSettings(supervisor="process", environment=environment or {})
        executor, folder = LocalExecutor(settings), tmp_path / f"job{len(made)}"
        folder.mkdir()
        shutil.copytree(workflow, folder / "input")
        (folder / "input" / "model.py").write_text(model)
        if files:
            (folder / "input" / "files.txt").write_text("\n".join(files))
            (folder / "input" / "labels.txt").write_text("1\n0\n")
        limits = Resources(memory=2000 * _MIB, seconds=500)
        reads = tuple(map(Path, (environment or {}).values()))
        task = Task(f"job-{len(made)}", folder, resources=limits, reads=reads, endpoints=endpoints)
        made.append((executor, task))
        executor.submit(task)
        wait_until(lambda: executor.status(task).state.final and not held(folder), seconds=600)
        return executor.status(task), b"".join(executor.logs(task)).decode(errors="replace")

    yield new
    for executor, task in made:
        executor.cancel(task)


def told(log: str) -> dict:
    """What the job has printed as JSON."""
    return json.loads(next(line for line in log.splitlines() if line.startswith("{")))


@contextmanager
def greeting(address: str) -> Iterator[int]:
    """A server that greets whoever connects; gives its port."""
    with socket.create_server((address, 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(b"welcome")

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield int(server.getsockname()[1])
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


def own_address() -> str:
    """This computer's address in its network; that of its loopback where it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


def test_a_training_reads_from_an_xrootd_and_a_web_server(
    run: Run, xrootd: DataServer, nginx: DataServer, workflow: Path
) -> None:
    signal, background = "signal_1.root", "background_1.root"
    for name in (signal, background):
        shutil.copy(workflow / "data" / name, xrootd.files / "store" / name)
        shutil.copy(workflow / "data" / name, nginx.files / name)
    root, tls = f"{_HOST}:{xrootd.ports['root']}", f"127.0.0.1:{nginx.ports['tls']}"
    outcome, log = run(
        _TRAINS,
        (root, tls),
        (f"root://{root}//store/{signal}", f"https://{tls}/{background}"),
        {"SSL_CERT_FILE": str(nginx.folder / "cert.pem")},
    )
    assert outcome.state is State.FINISHED, log


def test_megabytes_over_many_connections_arrive_as_they_are(run: Run, nginx: DataServer) -> None:
    content = os.urandom(8 * _MIB)
    (nginx.files / "large").write_bytes(content)
    (nginx.files / "large").chmod(0o644)
    endpoint = f"localhost:{nginx.ports['several']}"
    model = f"""
import hashlib, json, urllib.request
from concurrent.futures import ThreadPoolExecutor

def digest(_):
    with urllib.request.urlopen("http://{endpoint}/large") as answer:
        return hashlib.sha256(answer.read()).hexdigest()

with ThreadPoolExecutor(24) as pool:
    print(json.dumps({{"found": sorted(set(pool.map(digest, range(48))))}}), flush=True)
raise SystemExit(1)
"""
    _, log = run(model, (endpoint,))
    assert told(log) == {"found": [hashlib.sha256(content).hexdigest()]}


def test_a_job_reaches_nothing_but_its_endpoints(run: Run) -> None:
    with greeting("0.0.0.0") as port, greeting("0.0.0.0") as other:
        own = own_address()
        model = f"""
import json, os, socket

def tcp(host, port):
    with socket.create_connection((host, port), 20) as connection:
        return connection.recv(10)

def udp(host, port):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as connection:
        connection.sendto(b"x", (host, port))
        return b"sent"

def route():
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as link:
        link.bind((0, 0))
        # RTM_NEWADDR: the address of the server for the loopback
        message = bytes.fromhex("28000000140005050100000000000000") + bytes([2, 32, 0, 0]) + (1).to_bytes(4, "little")
        for kind in (2, 1):
            message += bytes([8, 0, kind, 0]) + socket.inet_aton({own!r})
        link.send(message)
        error = int.from_bytes(link.recv(4096)[16:20], "little", signed=True)
        if error:
            raise OSError(-error, os.strerror(-error))
        return b"given"

attempts = {{
    "allowed": lambda: tcp({_HOST!r}, {port}),
    "allowed, small letters or not": lambda: tcp({_HOST.upper()!r}, {port}),
    "another port of the host": lambda: tcp({_HOST!r}, {other}),
    "the host by its address": lambda: tcp({own!r}, {port}),
    "the loopback outside": lambda: tcp("127.0.0.1", {port}),
    "a loopback service by another port": lambda: tcp("127.0.1.1", {other}),
    "the cloud's metadata": lambda: tcp("169.254.169.254", 80),
    "the metadata of version 6": lambda: tcp("fd00:ec2::254", 80),
    "the world": lambda: tcp("192.0.2.1", 443),
    "a name server": lambda: udp("192.0.2.1", 53),
    "another name": lambda: tcp("elsewhere.example", {port}),
    "an address for its loopback": route,
    "a raw socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
}}
found = {{}}
for name, action in attempts.items():
    try:
        found[name] = action().decode()
    except OSError as error:
        found[name] = type(error).__name__
print(json.dumps(found), flush=True)
raise SystemExit(1)
"""
        outcome, log = run(model, (f"{_HOST}:{port}",))
    found = told(log)
    assert found.pop("allowed") == found.pop("allowed, small letters or not") == "welcome"
    assert set(found.values()) <= {"OSError", "ConnectionRefusedError", "PermissionError", "gaierror"}, found
    assert len(found) == 11
    assert "endpoint" not in outcome.reason


def test_connections_end_with_a_job_whose_supervisor_is_killed(tmp_path: Path, workflow: Path) -> None:
    executor, folder = LocalExecutor(LocalSettings(supervisor="process")), tmp_path / "job"
    folder.mkdir()
    shutil.copytree(workflow, folder / "input")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(120)
        port = server.getsockname()[1]
        code = f"import socket\nsocket.create_connection(('localhost', {port})).recv(1)\n"
        (folder / "input" / "model.py").write_text(code)
        task = Task("job-1", folder, resources=Resources(memory=2000 * _MIB), endpoints=(f"localhost:{port}",))
        executor.submit(task)
        with server.accept()[0] as connection:
            connection.settimeout(120)
            os.kill(supervisor_of(folder), signal.SIGKILL)
            assert connection.recv(1) == b""
        wait_until(lambda: executor.status(task).state is State.INTERRUPTED)


def supervisor_of(folder: Path) -> int:
    """The number of the process that supervises a folder's job."""
    done = subprocess.run(
        ["pgrep", "-f", f"mlaas4hep.service.supervisor {folder} "], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def test_an_endpoint_that_is_down_is_named(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    endpoint = f"localhost:{port}"
    outcome, log = run(_TRAINS, (endpoint,), (f"http://{endpoint}/a.root", f"http://{endpoint}/b.root"))
    assert outcome.state is State.FAILED
    sentence = f"The data endpoint {endpoint} could not be reached: Connection refused."
    assert outcome.reason.endswith(sentence), log
    assert log.count(sentence) == 1, "it is told once"


@pytest.mark.parametrize("kind", ["root", "http"])
def test_a_server_that_sends_a_job_elsewhere_is_told(
    run: Run, xrootd: DataServer, nginx: DataServer, kind: str
) -> None:
    server, place = (xrootd, "/store/moved") if kind == "root" else (nginx, "elsewhere")
    endpoint = f"localhost:{server.ports['root' if kind == 'root' else 'several']}"
    outcome, log = run(
        _TRAINS, (endpoint,), (f"{kind}://{endpoint}/{place}/a.root", f"{kind}://{endpoint}/{place}/b.root")
    )
    assert outcome.state is State.FAILED
    sentence = f"Jobs reach {endpoint} only, also where a server of these sends them on to another one."
    assert outcome.reason.endswith(sentence), log
