"""What each state of Slurm means for a task, and how a slurmrestd that is none is told."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from mlaas4hep.service.attempts import record_result, record_state, want_to_stop
from mlaas4hep.service.executor import Outcome, Resources, State, Task
from mlaas4hep.service.jobs import write_json
from mlaas4hep.service.slurm import SlurmExecutor, SlurmSettings, SlurmUnavailableError, _outcome


@pytest.fixture
def task(tmp_path: Path) -> Task:
    return Task("a-1", tmp_path, "nobody", Resources(memory=2**30, seconds=90))


@pytest.mark.parametrize(
    ("state", "facts", "expected", "reason"),
    [
        ("PENDING", {}, State.QUEUED, ""),
        ("CONFIGURING", {}, State.QUEUED, ""),
        ("RUNNING", {}, State.RUNNING, ""),
        ("COMPLETING", {}, State.RUNNING, ""),
        ("SUSPENDED", {}, State.RUNNING, ""),
        ("OUT_OF_MEMORY", {}, State.OUT_OF_MEMORY, "It needed more memory than the 1024 MiB that it may use."),
        ("TIMEOUT", {}, State.TIME_LIMIT, "It ran longer than the 90 s that it may."),
        ("DEADLINE", {}, State.TIME_LIMIT, "It ran longer than the 90 s that it may."),
        ("NODE_FAIL", {}, State.INTERRUPTED, "The node n1 failed. Submit it again."),
        ("BOOT_FAIL", {}, State.INTERRUPTED, "The node n1 did not start. Submit it again."),
        ("PREEMPTED", {}, State.INTERRUPTED, "Slurm stopped it for a job of higher priority. Submit it again."),
        ("CANCELLED", {}, State.CANCELLED, "It was cancelled in Slurm."),
        ("COMPLETED", {}, State.INTERRUPTED, "It was stopped before its end. Submit it again."),
        ("FAILED", {"exit_code": 9}, State.INTERRUPTED, "It was stopped before its end. Submit it again."),
        ("FAILED", {"exit_code": 127 << 8}, State.FAILED, "It could not be started on the node n1: no such program"),
        ("FAILED", {"exit_code": 1 << 8, "nodes": ""}, State.FAILED, "Slurm refused it: BadConstraints."),
        ("A_NEW_ONE", {}, State.INTERRUPTED, "It was stopped before its end. Submit it again."),
    ],
)
def test_each_state_of_slurm_has_its_meaning(
    task: Task, state: str, facts: dict[str, object], expected: State, reason: str
) -> None:
    (task.folder / "slurm.log").write_text("first\nno such program\n\n")
    job = {"job_state": state, "nodes": "n1", "state_reason": "BadConstraints", "start_time": 0, "end_time": 0}
    outcome = _outcome(job | facts, task)
    assert (outcome.state, outcome.reason) == (expected, reason)


def test_times_are_those_of_slurm(task: Task) -> None:
    outcome = _outcome({"job_state": "TIMEOUT", "start_time": 1_700_000_000, "end_time": 1_700_000_090}, task)
    assert (outcome.started, outcome.ended) == ("2023-11-14T22:13:20+00:00", "2023-11-14T22:14:50+00:00")


def test_who_asked_for_it_cancelled_it(task: Task) -> None:
    want_to_stop(task)
    assert _outcome({"job_state": "CANCELLED"}, task) == Outcome(State.CANCELLED)


@pytest.fixture
def other_server() -> Iterator[str]:
    """A web server that is not slurmrestd."""

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b"{}" if self.path.startswith("/openapi") else b"a page"
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_server_that_speaks_no_known_version_is_named(task: Task, tmp_path: Path, other_server: str) -> None:
    (tmp_path / "key").write_bytes(b"k" * 32)
    executor = SlurmExecutor(SlurmSettings(url=other_server, key=tmp_path / "key"))
    with pytest.raises(SlurmUnavailableError, match="offers nothing, and not v0"):
        executor.submit(task)


def test_a_task_that_has_ended_is_not_asked_for_again(task: Task, tmp_path: Path) -> None:
    executor = SlurmExecutor(SlurmSettings(url=f"unix:{tmp_path}/none", key=tmp_path / "none"))
    assert executor.status(task).state is State.INTERRUPTED
    write_json(task.folder / "slurm.json", {"key": task.key, "account": "nobody", "job": 7})
    record_state(task, State.RUNNING)
    with pytest.raises(SlurmUnavailableError, match="cannot be used: No such file"):
        executor.status(task)
    record_result(task, Outcome(State.FAILED, "It did.", "2026-01-01T00:00:00+00:00", "2026-01-01T00:00:01+00:00"))
    assert executor.status(task).reason == "It did."
    executor.cancel(task)
    executor.submit(task)
    assert list(executor.logs(task)) == []


@pytest.mark.parametrize(
    "choice", [{"url": "slurmrestd"}, {"account": "a b"}, {"account": "-x"}, {"unknown": "1"}, {"url": "unix:"}]
)
def test_wrong_settings_are_refused(choice: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        SlurmSettings.model_validate(choice)
