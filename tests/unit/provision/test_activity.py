"""What a platform's machine takes for use, and when it powers itself off."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest

SCRIPT = Path(__file__).parents[3] / "roles/base/files/platform-activity"
# as the kernel writes addresses: 10.1.2.3, 127.0.0.1, the latter in IPv6, ::1 and 2001:db8::1
OUTSIDE, LOOPBACK = "0302010A:A000", "0100007F:A000"
MAPPED, OWN6, OUTSIDE6 = (
    f"{'0' * 16}FFFF00000100007F:A000",
    f"{'0' * 24}01000000:A000",
    f"B80D0120{'0' * 16}01000000:A000",
)


def load(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as it stands, without leaving compiled code in the role."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    loader = importlib.machinery.SourceFileLoader("platform_activity", str(SCRIPT))
    spec = importlib.util.spec_from_loader("platform_activity", loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.fixture
def activity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module, on a machine with no job and no GPU."""
    module = load(monkeypatch)
    module.__dict__.update(STATE=tmp_path / "run/activity.json", CLUSTER=tmp_path / "cluster.json")
    module.__dict__.update(job=str, kernel=str, gpu=str, connection=lambda **_: "")
    return module


def connections(root: Path, *rows: tuple[str, str, str]) -> Path:
    """A root folder with these rows of local address, peer and state."""
    (root / "proc/net").mkdir(parents=True)
    lines = [f"   {n}: {local} {peer} {state} 0 0" for n, (local, peer, state) in enumerate(rows)]
    (root / "proc/net/tcp").write_text("\n".join(["  sl", *lines, ""]))
    return root


@pytest.mark.parametrize(
    ("peer", "state", "found"),
    [
        (OUTSIDE, "01", "a connection to port 22"),
        (OUTSIDE6, "01", "a connection to port 22"),
        (LOOPBACK, "01", ""),
        (MAPPED, "01", ""),
        (OWN6, "01", ""),
        (OUTSIDE, "06", ""),
    ],
)
def test_a_connection_from_outside_is_use(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, peer: str, state: str, found: str
):
    root = connections(tmp_path, ("00000000:0016", "00000000:0000", "0A"), ("0101010A:0016", peer, state))
    assert load(monkeypatch).connection(root) == found


@pytest.mark.parametrize("peer", [OUTSIDE, f"{'0' * 16}FFFF00000302010A:A000"])
def test_a_connection_between_the_machines_of_a_cluster_is_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, peer: str
):
    root = connections(tmp_path, ("00000000:0016", "00000000:0000", "0A"), ("0101010A:0016", peer, "01"))
    assert load(monkeypatch).connection(root, ["10.1.2.4", "10.1.2.3"]) == ""
    assert load(monkeypatch).connection(root, ["10.1.2.4"]) == "a connection to port 22"


@pytest.mark.parametrize(("worker", "busy"), [(True, "the platform's own machine"), (False, "")])
def test_a_worker_is_in_use_for_as_long_as_the_machine_that_gives_it_jobs_is_there(
    activity: ModuleType, worker: bool, busy: str
):
    activity.CLUSTER.write_text(json.dumps({"machines": ["10.1.2.3"], "worker": worker}))
    activity.output = lambda *words: "Slurmctld(primary) at p is UP" if words[0] == "scontrol" else ""
    assert activity.look({}, 1000)["busy"] == busy
    activity.output = lambda *_: "Slurmctld(primary) at p is DOWN"
    assert activity.look({}, 1000)["busy"] == ""


def test_a_connection_to_the_outside_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    root = connections(tmp_path, ("00000000:0016", "00000000:0000", "0A"), ("0101010A:B000", OUTSIDE, "01"))
    assert load(monkeypatch).connection(root) == ""


def test_a_connection_of_the_machine_to_itself_is_none(monkeypatch: pytest.MonkeyPatch):
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        assert not load(monkeypatch).connection().endswith(f" {server.getsockname()[1]}")


class Kernels(BaseHTTPRequestHandler):
    """Tells of its kernels whoever has the token, as Jupyter's server does, and anybody whether one works, as a hub."""

    told: ClassVar[dict[str, Any]] = {}

    def do_GET(self) -> None:
        allowed = self.headers["Authorization"] == "token t0ken" or self.path == "/use"
        self.send_response(200 if allowed else 403)
        self.end_headers()
        if allowed:
            self.wfile.write(json.dumps(self.told[self.path]).encode())

    def log_message(self, *_: Any) -> None:
        """Nothing is logged."""


def test_a_kernel_at_work_is_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    module = load(monkeypatch)
    token, config = tmp_path / "token", tmp_path / "config.py"
    # asking is no use of the server, which would not end otherwise
    asked = "/api/kernels?no_track_activity=1"
    with ThreadingHTTPServer(("127.0.0.1", 0), Kernels) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        there = f"http://127.0.0.1:{server.server_port}"
        module.__dict__.update(NOTEBOOK=there, NOTEBOOK_TOKEN=token, HUB=f"{there}/use", HUB_CONFIG=config)

        def look(words: str, *states: str) -> str:
            token.write_text(words)
            Kernels.told = {asked: [{"id": "x", "execution_state": state} for state in states]}
            return str(module.kernel())

        assert module.kernel() == ""
        assert look("t0ken\n", "idle", "busy") == "a notebook's kernel at work"
        assert look("t0ken\n", "idle", "starting") == ""
        assert look("another\n", "busy") == ""
        config.touch()
        Kernels.told = {"/use": {"busy": True}}
        assert module.kernel() == "a notebook's kernel at work"
        Kernels.told = {"/use": {"busy": False}}
        assert module.kernel() == ""
        server.shutdown()
    assert module.kernel() == ""


def test_idleness_lasts_until_somebody_comes(activity: ModuleType):
    first = activity.look({}, 1000)
    assert first["idle_since"] == 1000
    later = activity.look({**first, "cpu_seconds": activity.cpu_seconds()}, 1300)
    assert later["idle_since"] == 1000
    activity.connection = lambda **_: "a connection to port 22"
    busy = activity.look(later, 1600)
    assert (busy["busy"], busy["idle_since"]) == ("a connection to port 22", None)
    activity.connection = lambda **_: ""
    assert activity.look(busy | {"cpu_seconds": activity.cpu_seconds()}, 1900)["idle_since"] == 1900


def test_cpu_at_work_is_use(activity: ModuleType):
    assert activity.cpu({"checked": 1000, "cpu_seconds": 50.0}, 50.0 + 59, 1300) == ""
    assert activity.cpu({"checked": 1000, "cpu_seconds": 50.0}, 50.0 + 300, 1300) == "1.0 CPUs at work"
    assert activity.cpu({}, 50.0, 1300) == ""


@pytest.mark.parametrize(("limit", "off"), [(0, False), (3600, False), (60, True)])
def test_it_powers_off_after_the_time_and_not_before(
    activity: ModuleType, monkeypatch: pytest.MonkeyPatch, limit: int, off: bool
):
    ran: list[Any] = []
    monkeypatch.setattr(activity.subprocess, "run", lambda words, **_: ran.append(words))
    monkeypatch.setattr(activity.time, "time", lambda: 2000)
    activity.STATE.parent.mkdir()
    activity.STATE.write_text(json.dumps({"checked": 1700, "idle_since": 1700, "cpu_seconds": activity.cpu_seconds()}))
    activity.main(limit)
    assert ran == ([["systemctl", "poweroff"]] if off else [])
    assert json.loads(activity.STATE.read_text())["idle_since"] == 1700


def test_a_damaged_state_is_as_none(activity: ModuleType):
    activity.STATE.parent.mkdir()
    activity.STATE.write_text("{")
    activity.main(0)
    assert json.loads(activity.STATE.read_text())["busy"] == ""
