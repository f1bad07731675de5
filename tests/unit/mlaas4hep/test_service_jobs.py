"""Jobs over HTTP: submitted, looked after, their results."""

from __future__ import annotations

import io
import json
import tarfile

import pytest

from mlaas4hep.service.policy import Policy

from tests.unit.mlaas4hep.service_parts import (
    ADMIN,
    ALICE,
    BOB,
    QUICK,
    WORKFLOW,
    Running,
    ended,
    running,
    submit,
    until,
    upload,
)


@pytest.fixture
def service(tmp_path):
    with running(tmp_path) as service:
        yield service


def test_a_job_trains_and_its_model_is_published(service: Running):
    client = service.client()
    upload(client)
    job = submit(client)
    assert job["state"] == "queued"
    assert job["process_name"] == "higgs_1"
    job = ended(client, job["id"])
    assert job["state"] == "finished"
    assert job["progress"] == {"event": "finished"}
    assert job["model"] == {"name": "higgs", "version": 1}
    assert client.get(f"/api/v1/jobs/{job['id']}/log").text == "training of 2 files\n"
    with tarfile.open(fileobj=io.BytesIO(client.get(f"/api/v1/jobs/{job['id']}/bundle").content)) as tar:
        assert "higgs_1/bundle.json" in tar.getnames()
    assert client.get(f"/api/v1/jobs/{job['id']}/report").text == "<p>A report</p>\n"
    again = ended(client, client.post(f"/api/v1/jobs/{job['id']}/resubmit").json()["id"])
    assert again["process_name"] == "higgs_2"
    assert again["model"] == {"name": "higgs", "version": 2}
