"""Jobs: taken over once, run in turn, and honest about how they ended."""

from __future__ import annotations

import io
import json
import os
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mlaas4hep.errors import MlaasError, UsageError
from mlaas4hep.service.jobs import (
    Job,
    State,
    all_jobs,
    create_job,
    find_job,
    lives,
    living,
    mark_cancelled,
    record_end,
    set_state,
    status_of,
    write_json,
)
from mlaas4hep.service.runner import Rival, may_start, run_job
from mlaas4hep.service.systemd import SystemdExecutor

# Keras hands its weights to NumPy in the way of NumPy 1 when it saves them
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


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


@pytest.mark.parametrize(
    ("told", "result", "alive", "state"),
    [
        (None, None, True, State.QUEUED),
        ("queued", None, True, State.QUEUED),
        ("running", None, True, State.RUNNING),
        ("finished", None, True, State.FINISHED),
        ("finished", ("success", "exited", "0"), False, State.FINISHED),
        ("failed", ("exit-code", "exited", "1"), False, State.FAILED),
        ("running", ("oom-kill", "killed", "KILL"), False, State.OUT_OF_MEMORY),
        ("running", ("success", "killed", "TERM"), False, State.INTERRUPTED),
        ("running", ("signal", "killed", "SEGV"), False, State.INTERRUPTED),
        ("running", ("exit-code", "exited", "203"), False, State.FAILED),
        ("running", ("timeout", "killed", "TERM"), False, State.FAILED),
        ("running", None, False, State.INTERRUPTED),
        (None, None, False, State.INTERRUPTED),
    ],
)
def test_the_state_follows_from_what_is_on_disk(
    workflow_folder: Path, told: str | None, result: tuple[str, str, str] | None, alive: bool, state: State
) -> None:
    job = create_job(workflow_folder)
    if told:
        set_state(job, told, reason="because" if told == "failed" else "")
    if result:
        record_end(job, *result)
    assert status_of(job, alive).state == state


def test_a_cancelled_job_is_cancelled_once_it_has_stopped(workflow_folder: Path) -> None:
    job = create_job(workflow_folder)
    set_state(job, State.RUNNING)
    mark_cancelled(job)
    assert status_of(job, alive=True).state == State.RUNNING
    record_end(job, "success", "killed", "TERM")
    assert status_of(job, alive=False).state == State.CANCELLED


def test_records_replace_a_link_and_do_not_follow_it(workflow_folder: Path, tmp_path: Path) -> None:
    job, precious = create_job(workflow_folder), tmp_path / "precious"
    precious.write_text("kept")
    (job.folder / "result.json").symlink_to(precious)
    record_end(job, "success", "exited", "0")
    assert precious.read_text() == "kept"


def test_the_first_waiting_job_starts_when_a_place_is_free() -> None:
    running, first, second = Rival("a_1", True), Rival("b_1", False), Rival("c_1", False)
    assert not may_start("b_1", [running, first, second], 1)
    assert may_start("b_1", [running, first, second], 2)
    assert not may_start("c_1", [running, first, second], 2)
    assert may_start("b_1", [first, second], 1)


def test_a_job_lives_while_its_process_holds_the_lock(workflow_folder: Path) -> None:
    job = create_job(workflow_folder)
    assert not lives(job)
    with living(job):
        assert lives(job)
    assert not lives(job)


def test_a_job_runs_and_its_model_comes_as_an_archive(command, workflow_folder: Path, monkeypatch) -> None:
    job = create_job(workflow_folder)
    run_job(job)
    status = status_of(job, alive=False)
    assert (status.state, status.progress["event"]) == (State.FINISHED, "finished")
    assert command("job", "model", job.identifier, "--path").out.strip() == str(job.model)
    stream = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(stream, write_through=True))
    from mlaas4hep.service.commands import fetch_model

    fetch_model(job.identifier)
    with tarfile.open(fileobj=io.BytesIO(stream.getvalue()), mode="r:gz") as archive:
        assert f"{job.identifier}/model.keras" in archive.getnames()
    with pytest.raises(UsageError, match="has ended already"):
        run_job(job)


def test_a_job_that_fails_says_why(workflow_folder: Path) -> None:
    (workflow_folder / "model.py").write_text("import nothing_like_this\n")
    job = create_job(workflow_folder)
    with pytest.raises(MlaasError):
        run_job(job)
    status = status_of(job, alive=False)
    assert status.state == State.FAILED
    assert "model.py, line 1: ModuleNotFoundError" in status.reason


SYSTEMCTL = """#!/bin/sh
case "$1" in
  show) printf 'ActiveState=%s\\nJob=0\\n' "$(cat "$MLAAS4HEP_HOME/active")" ;;
  *) echo "Failed: Access denied" >&2; exit 4 ;;
esac
"""


@pytest.fixture
def refusing_systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A systemctl that shows what the file `active` says, and denies all else."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "systemctl").write_text(SYSTEMCTL)
    (programs / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    home = tmp_path / "home"
    home.mkdir()
    (home / "active").write_text("inactive")
    return home


def test_a_submission_that_systemd_refuses_is_a_failed_job(command, workflow_folder, refusing_systemctl: Path) -> None:
    done = command("job", "submit", workflow_folder)
    assert (done.status, done.err) == (1, "mlaas4hep: systemctl start failed: Failed: Access denied.\n")
    (shown,) = json.loads(command("job", "list", "--json").out)
    assert (shown["identifier"], shown["state"]) == ("workflow_1", "failed")


def test_the_log_is_followed_to_its_end(workflow_folder: Path, refusing_systemctl: Path) -> None:
    job = create_job(workflow_folder)
    (refusing_systemctl / "active").write_text("active")
    job.log.write_bytes(b"first\n")
    pieces = SystemdExecutor().logs(job, follow=True)
    assert next(pieces) == b"first\n"
    job.log.write_bytes(b"first\nlast\n")
    (refusing_systemctl / "active").write_text("inactive")
    assert list(pieces) == [b"last\n"]


def test_questions_about_jobs_that_are_not_there(command, workflow_folder: Path, refusing_systemctl: Path) -> None:
    create_job(workflow_folder)
    done = command("job", "status", "workflo_1")
    assert (done.status, done.err) == (2, "mlaas4hep: There is no job workflo_1. Did you mean workflow_1?\n")
    assert "has no model: it is interrupted" in command("job", "model", "workflow_1").err
    assert "already interrupted" in command("job", "cancel", "workflow_1").err
    assert command("job", "logs", "workflow_1").status == 0


def test_no_systemctl_at_all(workflow_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = create_job(workflow_folder)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(MlaasError, match="systemctl is not there"):
        SystemdExecutor().submit(job)


def test_half_written_records_count_as_none(workflow_folder: Path) -> None:
    job = create_job(workflow_folder)
    (job.folder / "state.json").write_text('{"state": "runn')
    assert status_of(job, alive=True).state == State.QUEUED
    write_json(job.folder / "state.json", {"state": "running"})
    (job.folder / "progress.jsonl").write_text('{"event": "epoch"}\n{"event": "st')
    assert status_of(job, alive=True).progress == {"event": "epoch"}


def test_job_type_has_its_places() -> None:
    job = Job("a_1", "a", "", Path("/jobs/a_1"))
    assert (job.input, job.log, job.model) == (Path("/jobs/a_1/input"), Path("/jobs/a_1/log"), Path("/jobs/a_1/model"))
