"""Jobs of a platform: taken over once, run in turn, and honest about how they ended."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mlaas4hep.errors import MlaasError, UsageError
from mlaas4hep.service.attempts import held, hold, record_result
from mlaas4hep.service.commands import _task, fetch_model
from mlaas4hep.service.executor import Outcome, State
from mlaas4hep.service.jobs import Job, all_jobs, create_job, find_job, status_of, write_json
from mlaas4hep.service.local import LocalExecutor, LocalSettings
from mlaas4hep.service.supervisor import Rival, may_start
from tests.debian import do_without, lacking

DEADLINE = 300.0


@pytest.fixture
def sandbox() -> None:
    """What a job needs to run."""
    if reason := lacking({"bwrap": "bubblewrap"}):
        do_without(reason)


@pytest.fixture
def processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Jobs are supervised by processes, also where systemd runs."""
    monkeypatch.setattr(LocalExecutor, "_by_systemd", lambda self: False)
    return tmp_path / "home"


def test_jobs_are_numbered_by_name_and_listed_in_order(workflow_folder: Path) -> None:
    identifiers = [create_job(workflow_folder, name).identifier for name in ("", "a", "a_1", "a")]
    assert identifiers == ["workflow_1", "a_1", "a_1_1", "a_2"]
    assert [job.identifier for job in all_jobs()] == identifiers
    assert (find_job("a_2").input / "data").parent.name == "input"


def test_concurrent_submissions_get_a_number_each(workflow_folder: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        jobs = list(pool.map(lambda _: create_job(workflow_folder, "many"), range(24)))
    assert sorted(job.identifier for job in jobs) == sorted(f"many_{number}" for number in range(1, 25))
    assert all((job.input / "signal.root").is_file() for job in jobs)


@pytest.mark.parametrize("name", ["../up", "a/b", ".hidden", "-flag", "a b", "x" * 62, "a\n", "$(id)"])
def test_names_that_could_be_something_else_are_refused(workflow_folder: Path, name: str) -> None:
    with pytest.raises(UsageError, match="is no name for a job"):
        create_job(workflow_folder, name)
    with pytest.raises(UsageError, match="There is no job"):
        find_job(f"{name}_1")


def test_links_are_kept_as_links_and_a_folder_may_be_moved(workflow_folder: Path, tmp_path: Path) -> None:
    (workflow_folder / "secret").symlink_to("/etc/shadow")
    assert (create_job(workflow_folder).input / "secret").is_symlink()
    job = create_job(workflow_folder, move=True)
    assert not workflow_folder.exists()
    assert (job.input / "model.py").is_file()


def test_an_incomplete_folder_leaves_no_job(workflow_folder: Path) -> None:
    (workflow_folder / "labels.txt").unlink()
    with pytest.raises(UsageError, match=r"has no labels\.txt"):
        create_job(workflow_folder)
    assert all_jobs() == []


def test_records_replace_a_link_and_do_not_follow_it(workflow_folder: Path, tmp_path: Path) -> None:
    job, precious = create_job(workflow_folder), tmp_path / "precious"
    precious.write_text("kept")
    (job.folder / "result.json").symlink_to(precious)
    record_result(_task(job), Outcome(State.FINISHED))
    assert precious.read_text() == "kept"


def test_the_first_waiting_job_starts_when_a_place_is_free() -> None:
    running, first, second = Rival("a_1", True), Rival("b_1", False), Rival("c_1", False)
    assert not may_start("b_1", [running, first, second], 1)
    assert may_start("b_1", [running, first, second], 2)
    assert not may_start("c_1", [running, first, second], 2)
    assert may_start("b_1", [first, second], 1)


def test_a_lock_is_seen_without_being_taken(tmp_path: Path) -> None:
    assert not held(tmp_path)
    lock = hold(tmp_path)
    assert lock is not None
    assert held(tmp_path)
    assert hold(tmp_path) is None
    os.close(lock)
    assert not held(tmp_path)


def _ended(command, identifier: str) -> dict:
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        shown = json.loads(command("job", "status", identifier, "--json").out)
        if shown["state"] not in ("queued", "running"):
            return shown
        time.sleep(0.2)
    raise AssertionError(f"{identifier} does not end: {shown}")


def test_a_job_trains_in_its_sandbox_and_its_model_comes_as_an_archive(
    command, workflow_folder: Path, processes: Path, sandbox: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted = json.loads(command("job", "submit", workflow_folder, "--json").out)
    assert submitted["state"] in ("queued", "running")
    ended = _ended(command, "workflow_1")
    log = command("job", "logs", "workflow_1").out
    assert (ended["state"], ended["reason"]) == ("finished", ""), log
    assert ended["progress"]["event"] == "finished"
    assert "test auc" in log
    job = find_job("workflow_1")
    assert command("job", "model", "workflow_1", "--path").out.strip() == str(job.model)
    assert not (job.folder / "work").exists()
    stream = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(stream, write_through=True))
    fetch_model("workflow_1")
    with tarfile.open(fileobj=io.BytesIO(stream.getvalue()), mode="r:gz") as archive:
        assert "workflow_1/model.keras" in archive.getnames()
    monkeypatch.undo()
    LocalExecutor(LocalSettings(supervisor="process")).submit(_task(job))
    assert not held(job.folder), "a job that has ended is not run again"


def test_a_job_that_fails_says_why(command, workflow_folder: Path, processes: Path, sandbox: None) -> None:
    (workflow_folder / "model.py").write_text("import nothing_like_this\n")
    command("job", "submit", workflow_folder)
    ended = _ended(command, "workflow_1")
    assert ended["state"] == "failed"
    assert "model.py, line 1: ModuleNotFoundError" in ended["reason"]


def test_jobs_wait_for_those_before_them_and_can_be_cancelled(
    command, workflow_folder: Path, processes: Path, sandbox: None
) -> None:
    (workflow_folder / "model.py").write_text("import time\nwhile True: time.sleep(1)\n")
    for _ in range(3):
        command("job", "submit", workflow_folder)
    _wait_until(lambda: _states(command) == ["running", "queued", "queued"])
    assert command("job", "cancel", "workflow_2").out == "cancelled workflow_2\n"
    assert _states(command) == ["running", "cancelled", "queued"]
    command("job", "cancel", "workflow_1")
    _wait_until(lambda: _states(command) == ["cancelled", "cancelled", "running"])
    command("job", "cancel", "workflow_3")
    assert _states(command) == ["cancelled"] * 3
    assert command("job", "cancel", "workflow_3").err == "mlaas4hep: The job workflow_3 is already cancelled.\n"


def _states(command) -> list[str]:
    return [shown["state"] for shown in json.loads(command("job", "list", "--json").out)]


def _wait_until(condition) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_log_is_followed_to_the_end_of_its_job(
    command, workflow_folder: Path, processes: Path, sandbox: None
) -> None:
    (workflow_folder / "model.py").write_text("import time\nprint('first')\ntime.sleep(1)\nraise SystemExit('last')\n")
    command("job", "submit", workflow_folder)
    shown = command("job", "logs", "workflow_1", "--follow").out
    assert shown.index("first") < shown.index("last")


SYSTEMCTL = """#!/bin/sh
echo "Failed: Access denied" >&2; exit 4
"""


def test_a_submission_that_systemd_refuses_is_a_failed_job(
    command, workflow_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "systemctl").write_text(SYSTEMCTL)
    (programs / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setattr(LocalExecutor, "_by_systemd", lambda self: True)
    done = command("job", "submit", workflow_folder)
    assert (done.status, done.err) == (1, "mlaas4hep: systemctl start failed: Failed: Access denied.\n")
    (shown,) = json.loads(command("job", "list", "--json").out)
    assert (shown["identifier"], shown["state"]) == ("workflow_1", "failed")


def test_no_systemctl_at_all(workflow_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = create_job(workflow_folder)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(MlaasError, match="systemctl is not there"):
        LocalExecutor(LocalSettings(supervisor="systemd")).submit(_task(job))


def test_questions_about_jobs_that_are_not_there(command, workflow_folder: Path) -> None:
    create_job(workflow_folder)
    done = command("job", "status", "workflo_1")
    assert (done.status, done.err) == (2, "mlaas4hep: There is no job workflo_1. Did you mean workflow_1?\n")
    assert "has no model: it is interrupted" in command("job", "model", "workflow_1").err
    assert "already interrupted" in command("job", "cancel", "workflow_1").err
    assert command("job", "logs", "workflow_1").status == 0


def test_half_written_progress_counts_as_none(workflow_folder: Path) -> None:
    job = create_job(workflow_folder)
    (job.folder / "progress.jsonl").write_text('{"event": "epoch"}\n{"event": "st')
    assert status_of(job, Outcome(State.RUNNING)).progress == {"event": "epoch"}
    write_json(job.folder / "state.json", {"state": "running"})
    shutil.rmtree(job.folder / "input")
    assert status_of(job, Outcome(State.FINISHED)).state == State.FINISHED


def test_job_type_has_its_places() -> None:
    job = Job("a_1", "a", "", Path("/jobs/a_1"))
    assert (job.input, job.log, job.model) == (Path("/jobs/a_1/input"), Path("/jobs/a_1/log"), Path("/jobs/a_1/model"))
