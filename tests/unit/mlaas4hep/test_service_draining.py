"""A drained service takes no new jobs and starts none that waits; what runs goes on, and all is told."""

from __future__ import annotations

import json
import time
from io import BytesIO
from pathlib import Path

import pytest

from mlaas4hep.service import operation
from mlaas4hep.service.arrangement import Submission
from mlaas4hep.service.draining import FILE, DrainedError, drain_of
from mlaas4hep.service.jobs import create_job, home
from tests.unit.mlaas4hep.service_parts import (
    ALICE,
    PATIENCE,
    WORKFLOW,
    Processes,
    Running,
    ended,
    running,
    submit,
    tar_gz,
    until,
    upload,
)


def drain(data: Path, **said: object) -> None:
    (data / FILE).write_text(json.dumps(said))


@pytest.mark.parametrize(
    ("text", "drained"),
    [
        ('{"reason": "An update."}', ("An update.", None)),
        ('{"until": 4000000000}', ("", 4e9)),
        ('{"reason": "An update.", "until": 1}', None),
        ("not JSON", ("", None)),
        ("[]", ("", None)),
        ("", ("", None)),
    ],
)
def test_a_file_drains_until_its_end_and_when_it_cannot_be_understood(tmp_path: Path, text: str, drained: object):
    assert drain_of(tmp_path) is None
    (tmp_path / FILE).write_text(text)
    found = drain_of(tmp_path)
    assert (found and (found.reason, found.until)) == drained


def test_submissions_are_refused_with_a_time_and_what_runs_goes_on(tmp_path: Path):
    with running(
        tmp_path, "until [ -e go ]; do sleep 0.02; done; mkdir model; echo '{}' > model/bundle.json"
    ) as service:
        client = service.client()
        upload(client)
        data = service.settings.data
        key = client.post("/api/v1/jobs", json={"workspace": "higgs"}, headers={"Idempotency-Key": "k"}).json()["id"]
        until(lambda: client.get(f"/api/v1/jobs/{key}").json(), lambda job: job["state"] == "running")
        drain(data, reason="An update.", until=time.time() + 600)
        for path, body in (("jobs", {"workspace": "higgs"}), (f"jobs/{key}/resubmit", None)):
            answer = client.post(f"/api/v1/{path}", json=body)
            assert answer.status_code == 503
            assert 0 < int(answer.headers["Retry-After"]) <= 600
            assert answer.json()["detail"] == "No new jobs are taken now: An update."
        # the answer to a request that had come through before is the same as then
        again = client.post("/api/v1/jobs", json={"workspace": "higgs"}, headers={"Idempotency-Key": "k"})
        assert (again.status_code, again.json()["id"]) == (201, key)
        (data / "jobs" / key / "go").touch()
        assert ended(client, key)["state"] == "finished"
        (data / FILE).unlink()
        other = submit(client)["id"]
        (data / "jobs" / other / "go").touch()
        ended(client, other)


def test_waiting_jobs_are_held_and_released_also_over_a_restart(tmp_path: Path):
    executor = Processes("mkdir model; echo '{}' > model/bundle.json")
    before = Running(tmp_path, executor)
    before.service.workspaces.replace(ALICE.key, "w", BytesIO(tar_gz(WORKFLOW)), lambda _: 2**40)
    key = before.service.submissions.submit(ALICE, Submission(workspace="w")).key
    drain(before.settings.data, reason="An update.")
    before.service.dispatcher.step()
    before.service.dispatcher.stop()
    before.service.database.close()
    after = Running(tmp_path, executor)
    after.service.dispatcher.step()
    assert executor.started == []
    (after.settings.data / FILE).unlink()
    after.service.dispatcher.step()
    assert executor.started == [f"{key}-1"]
    executor.end()
    after.service.dispatcher.stop()
    after.service.database.close()


def test_a_job_over_ssh_is_refused_too(workflow_folder: Path):
    home().mkdir(parents=True, exist_ok=True)
    drain(home(), reason="An update")
    with pytest.raises(DrainedError, match="No new jobs are taken now: An update"):
        create_job(workflow_folder)
    assert not (home() / "jobs").exists() or not list((home() / "jobs").iterdir())
    (home() / FILE).unlink()
    assert create_job(workflow_folder).identifier == "workflow_1"


def test_jobs_that_run_are_waited_for_and_told(tmp_path: Path):
    with running(
        tmp_path, "until [ -e go ]; do sleep 0.02; done; mkdir model; echo '{}' > model/bundle.json"
    ) as service:
        client = service.client()
        upload(client)
        key = submit(client)["id"]
        until(lambda: client.get(f"/api/v1/jobs/{key}").json(), lambda job: job["state"] == "running")
        assert [job["id"] for job in operation.wait(service.settings, 0)] == [key]
        (service.settings.data / "jobs" / key / "go").touch()
        assert operation.wait(service.settings, PATIENCE) == []
