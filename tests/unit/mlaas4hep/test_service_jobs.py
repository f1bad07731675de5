"""Jobs over HTTP: submitted, looked after, their results."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from mlaas4hep.service.policy import Policy
from mlaas4hep.service.settings import JobSettings, Limits
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

JOBS = "/api/v1/jobs"
# it ends when somebody writes `go` into its folder
WAITS = 'echo "härter"; until [ -e go ]; do sleep 0.02; done; echo "fertig"'


@pytest.fixture
def service(tmp_path) -> Iterator[Running]:
    with running(tmp_path) as service:
        yield service


@pytest.fixture
def with_endpoint(tmp_path) -> Iterator[Running]:
    jobs = JobSettings(interval=0.05, cpus=4, memory=2**40, endpoints=("host:1094", "web.example:443"))
    with running(tmp_path, jobs=jobs) as service:
        yield service


@pytest.fixture
def slow(tmp_path) -> Iterator[Running]:
    with running(tmp_path, WAITS) as service:
        yield service


def go(service: Running, key: str) -> None:
    (service.settings.data / "jobs" / key / "go").touch()


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
    assert client.get(f"{JOBS}/{job['id']}/log").text == "training of 2 files\n"
    assert client.get(f"{JOBS}/{job['id']}/log", params={"offset": 9}).text == "of 2 files\n"
    with tarfile.open(fileobj=io.BytesIO(client.get(f"{JOBS}/{job['id']}/bundle").content)) as tar:
        assert "higgs_1/bundle.json" in tar.getnames()
    assert client.get(f"{JOBS}/{job['id']}/report").text == "<p>A report</p>\n"
    again = ended(client, client.post(f"{JOBS}/{job['id']}/resubmit").json()["id"])
    assert again["process_name"] == "higgs_2"
    assert again["model"] == {"name": "higgs", "version": 2}


def test_a_job_has_the_workspace_as_it_was(service: Running):
    client = service.client()
    upload(client)
    job = submit(client, parameters={"epochs": 7})
    client.put("/api/v1/workspaces/higgs/files/files.txt", content=b"other.root\n")
    folder = service.settings.data / "jobs" / job["id"] / "input"
    assert (folder / "files.txt").read_text() == WORKFLOW["files.txt"]
    assert json.loads((folder / "params.json").read_text()) == {"epochs": 7}


def test_files_of_any_name_are_submitted(with_endpoint: Running):
    service, client = with_endpoint, with_endpoint.client()
    files = {"sub/list": "root://host//a.root\n", "net.py": "def model(): ...\n", "p.json": '{"epochs": 3}'}
    upload(client, files=files)
    job = submit(client, files="sub/list", labels="isSignal", model="net.py", params="p.json")
    folder = service.settings.data / "jobs" / job["id"] / "input"
    assert (folder / "files.txt").read_text() == files["sub/list"]
    assert (folder / "labels.txt").read_text() == "isSignal\n"
    assert (folder / "model.py").read_text() == files["net.py"]
    assert json.loads((folder / "params.json").read_text()) == {"epochs": 3}


def test_a_job_that_reads_from_a_server_needs_an_endpoint_that_is_allowed(with_endpoint: Running):
    service, client = with_endpoint, with_endpoint.client()
    upload(client, files=WORKFLOW | {"files.txt": "root://HOST//a.root\nroot://other//b.root\n"})
    answer = client.post(JOBS, json={"workspace": "higgs"})
    assert answer.status_code == 422
    assert answer.json()["detail"] == (
        "The job reads from other:1094, which jobs of this service may not reach "
        "(they may reach host:1094, web.example:443)."
    )
    assert "Ask its administrators" in answer.json()["remedy"]
    assert list((service.settings.data / "jobs").iterdir()) == []
    upload(client, files=WORKFLOW | {"files.txt": "/store/a.root\n/data/b.root\n"})
    refused = client.post(JOBS, json={"workspace": "higgs", "parameters": {"redirector": "root://other/"}})
    assert refused.status_code == 422
    job = submit(client, parameters={"redirector": "root://host/"})
    ended(client, job["id"])
    upload(client, "local")
    ended(client, submit(client, "local")["id"])
    reached = [(task.network, task.endpoints) for task in service.executor.tasks]
    assert reached == [(False, ("host:1094", "web.example:443")), (False, ())]


def test_jobs_have_the_whole_network_where_the_settings_say_so(tmp_path):
    with running(tmp_path, jobs=JobSettings(interval=0.05, cpus=4, memory=2**40, network="all")) as service:
        client = service.client()
        upload(client, files=WORKFLOW | {"files.txt": "root://host//a.root\n"})
        ended(client, submit(client)["id"])
        upload(client)
        ended(client, submit(client)["id"])
        assert [(task.network, task.endpoints) for task in service.executor.tasks] == [(True, ()), (False, ())]


@pytest.mark.parametrize(
    ("wrong", "status", "told"),
    [
        ({"workspace": "nothing"}, 404, "nothing of this name"),
        ({"workspace": "../etc"}, 422, "is no name"),
        ({"files": "list.txt"}, 422, "no file list.txt"),
        ({"model": "$(touch x)"}, 422, "no file $(touch x)"),
        ({"model": "../../../etc/passwd"}, 422, "no path inside"),
        ({"labels": "/etc/passwd"}, 422, "no path inside"),
        ({"params": "nothing.json"}, 422, "no file nothing.json"),
        ({"parameters": {"epoch": 1}}, 422, "epoch"),
        ({"parameters": {"epochs": "many"}}, 422, "epochs"),
        ({"name": "a;b"}, 422, "is no name"),
        ({"resources": {"cpus": 5}}, 422, "there are 4"),
        ({"resources": {"gpus": 1}}, 422, "there are 0"),
        ({"resources": {"memory": 1}}, 422, "memory"),
        ({"unknown": 1}, 422, "unknown"),
    ],
)
def test_what_cannot_be_trained_is_refused(service: Running, wrong, status, told):
    client = service.client()
    upload(client)
    answer = client.post(JOBS, json={"workspace": "higgs", **wrong})
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert told in answer.json()["detail"]
    assert str(service.settings.data) not in answer.text
    assert list((service.settings.data / "jobs").iterdir()) == []


def test_a_repeated_submission_makes_one_job(service: Running):
    client = service.client()
    upload(client)
    headers = {"Idempotency-Key": "k1"}
    first = client.post(JOBS, json={"workspace": "higgs"}, headers=headers).json()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: client.post(JOBS, json={"workspace": "higgs"}, headers=headers), range(16)))
    assert {answer.json()["id"] for answer in answers} == {first["id"]}
    other = client.post(JOBS, json={"workspace": "higgs", "name": "other"}, headers=headers)
    assert other.status_code == 409
    assert len(client.get(JOBS).json()["jobs"]) == 1
    mine = service.client(BOB)
    upload(mine)
    assert mine.post(JOBS, json={"workspace": "higgs"}, headers=headers).json()["id"] != first["id"]


def test_simultaneous_first_submissions_with_one_key_make_one_job(service: Running):
    client = service.client()
    upload(client)
    headers = {"Idempotency-Key": "k2"}
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: client.post(JOBS, json={"workspace": "higgs"}, headers=headers), range(16)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len(list((service.settings.data / "jobs").iterdir())) == 1


def test_jobs_are_listed_in_pages_from_the_newest(service: Running):
    client = service.client()
    upload(client)
    keys = [submit(client)["id"] for _ in range(5)]
    seen, cursor = [], ""
    while cursor is not None:
        page = client.get(JOBS, params={"limit": 2, "cursor": cursor}).json()
        seen += [job["id"] for job in page["jobs"]]
        cursor = page["next"]
    assert seen == keys[::-1]


def events(lines: Iterator[str]) -> Iterator[dict[str, str]]:
    """Server-sent events."""
    event: dict[str, str] = {}
    for line in lines:
        if not line and event:
            yield event
            event = {}
        elif line and not line.startswith(":"):
            name, _, value = line.partition(": ")
            event[name] = value


def test_the_log_is_streamed_while_the_job_runs_and_taken_up_again(slow: Running):
    client = slow.client()
    upload(client)
    key = submit(client)["id"]
    with client.stream("GET", f"{JOBS}/{key}/log/stream") as answer:
        first = next(events(answer.iter_lines()))
    assert json.loads(first["data"]) == "härter\n"
    assert first["id"] == str(len("härter\n".encode()))
    go(slow, key)
    with client.stream("GET", f"{JOBS}/{key}/log/stream", headers={"Last-Event-ID": first["id"]}) as answer:
        *told, last = events(answer.iter_lines())
    assert "".join(json.loads(event["data"]) for event in told) == "fertig\n"
    assert last["event"] == "end"
    assert json.loads(last["data"])["state"] == "finished"
    until(lambda: slow.service.streams, lambda count: count == 0)


def test_progress_is_streamed_line_by_line(service: Running):
    client = service.client()
    upload(client)
    key = submit(client)["id"]
    with client.stream("GET", f"{JOBS}/{key}/progress/stream") as answer:
        first, second, last = events(answer.iter_lines())
    assert json.loads(first["data"]) == {"event": "epoch", "epoch": 1}
    assert json.loads(second["data"]) == {"event": "finished"}
    assert last["event"] == "end"
    with client.stream("GET", f"{JOBS}/{key}/progress/stream", params={"offset": first["id"]}) as answer:
        assert next(events(answer.iter_lines())) == second


FORGES = r"""
printf 'a\r\n\nevent: end\ndata: {}\n\n\342\200\250id: 9\n\rid: 9\n' | tee -a progress.jsonl
"""


def test_what_a_job_prints_begins_no_event(tmp_path):
    with running(tmp_path, FORGES + QUICK) as service:
        client = service.client()
        upload(client)
        key = ended(client, submit(client)["id"])["id"]
        for kind in ("log", "progress"):
            text = client.get(f"{JOBS}/{key}/{kind}/stream").text
            assert "\r" not in text
            lines = text.split("\n")
            assert [line for line in lines if line.startswith("event:")] == ["event: end"]
            assert json.loads(lines[lines.index("event: end") + 1].removeprefix("data: "))["id"] == key
            assert all(line[:3] in ("", "id:", "dat", "eve", ": t") for line in lines), lines
            assert "id: 9" not in lines


def test_streams_are_bounded(tmp_path):
    with running(tmp_path, WAITS, limits=Limits(streams=1)) as service:
        client = service.client()
        upload(client)
        key = submit(client)["id"]
        with client.stream("GET", f"{JOBS}/{key}/log/stream") as answer:
            told = events(answer.iter_lines())
            next(told)
            assert client.get(f"{JOBS}/{key}/log/stream").status_code == 503
        go(service, key)


def test_a_running_job_is_cancelled(slow: Running):
    client = slow.client()
    upload(client)
    key = submit(client)["id"]
    until(lambda: client.get(f"{JOBS}/{key}").json()["state"], lambda state: state == "running")
    assert client.delete(f"{JOBS}/{key}").status_code == 409
    assert client.post(f"{JOBS}/{key}/cancel").status_code == 202
    assert ended(client, key)["state"] == "cancelled"
    assert client.post(f"{JOBS}/{key}/cancel").json()["state"] == "cancelled"
    assert client.get(f"{JOBS}/{key}/bundle").status_code == 409
    assert client.delete(f"{JOBS}/{key}").status_code == 204
    assert client.get(f"{JOBS}/{key}").status_code == 404
    assert not (slow.settings.data / "jobs" / key).exists()


def test_a_waiting_job_is_cancelled(tmp_path):
    with running(tmp_path, WAITS, jobs=JobSettings(cpus=1, memory=2**40, interval=0.05)) as service:
        client = service.client()
        upload(client)
        first, second = submit(client)["id"], submit(client)["id"]
        until(lambda: client.get(f"{JOBS}/{first}").json()["state"], lambda state: state == "running")
        client.post(f"{JOBS}/{second}/cancel")
        assert ended(client, second)["state"] == "cancelled"
        assert [key.rpartition("-")[0] for key in service.executor.started] == [first]


def test_a_failed_job_says_why(tmp_path):
    with running(tmp_path, "exit 3") as service:
        client = service.client()
        upload(client)
        job = ended(client, submit(client)["id"])
        assert (job["state"], job["model"]) == ("failed", None)
        assert "exit status 3" in job["reason"]


def test_a_job_without_a_model_is_finished_but_publishes_nothing(tmp_path):
    with running(tmp_path, "ln -s /etc model; mkdir other") as service:
        client = service.client()
        upload(client)
        job = ended(client, submit(client)["id"])
        assert job["state"] == "finished"
        assert "no model folder" in job["reason"]
        assert client.get(f"{JOBS}/{job['id']}/bundle").status_code == 409
        assert client.get("/api/v1/models").json() == {"models": []}


def test_links_in_a_job_s_folder_are_not_followed(tmp_path):
    script = """
    mkdir model; echo '{}' > model/bundle.json
    ln -s /etc/passwd model/report.html; ln -s /etc/passwd model/more; ln -s /etc/passwd progress.jsonl
    """
    with running(tmp_path, script) as service:
        client = service.client()
        upload(client)
        job = ended(client, submit(client)["id"])
        assert "not published" in job["reason"]
        assert job["progress"] is None
        assert client.get(f"{JOBS}/{job['id']}/report").status_code == 409
        with tarfile.open(fileobj=io.BytesIO(client.get(f"{JOBS}/{job['id']}/bundle").content)) as tar:
            assert tar.getnames() == ["higgs_1/bundle.json"]


def test_no_more_jobs_than_the_quota_wait(tmp_path):
    executor_policy = Policy.model_validate({"everyone": {"quota": {"jobs": 2, "cpus": 2, "disk": "1 MiB"}}})
    with running(tmp_path, WAITS, policy=executor_policy) as service:
        client = service.client()
        upload(client)
        keys = [submit(client)["id"] for _ in range(2)]
        refused = client.post(JOBS, json={"workspace": "higgs"})
        assert refused.status_code == 403
        assert "2 jobs" in refused.json()["detail"]
        assert client.post(JOBS, json={"workspace": "higgs", "resources": {"cpus": 3}}).status_code == 403
        go(service, keys[0])
        ended(client, keys[0])
        submit(client)


def test_another_user_s_job_does_not_exist(slow: Running):
    client, other = slow.client(ALICE), slow.client(BOB)
    upload(client)
    key = submit(client)["id"]
    for method, path in [
        ("GET", ""),
        ("DELETE", ""),
        ("POST", "/cancel"),
        ("POST", "/resubmit"),
        ("GET", "/log"),
        ("GET", "/log/stream"),
        ("GET", "/progress/stream"),
        ("GET", "/bundle"),
        ("GET", "/report"),
    ]:
        foreign = other.request(method, f"{JOBS}/{key}{path}")
        absent = other.request(method, f"{JOBS}/j00000000000000000000{path}")
        assert (foreign.status_code, foreign.text) == (absent.status_code, absent.text)
        assert foreign.status_code == 404
    assert other.get(JOBS).json()["jobs"] == []
    assert client.get(f"{JOBS}/{key}").json()["cancelled"] is False


def test_an_administrator_sees_and_cancels_every_job(slow: Running):
    client, admin = slow.client(ALICE), slow.client(ADMIN)
    upload(client)
    key = submit(client)["id"]
    assert [job["id"] for job in admin.get("/api/v1/admin/jobs").json()["jobs"]] == [key]
    assert [user["subject"] for user in admin.get("/api/v1/admin/users").json()["users"]] == ["alice"]
    assert admin.post(f"/api/v1/admin/jobs/{key}/cancel").status_code == 202
    assert ended(client, key)["state"] == "cancelled"


def test_metrics_count_jobs_and_requests(service: Running):
    client = service.client()
    upload(client)
    key = submit(client)["id"]
    ended(client, key)
    text = httpx.get(f"{service.url}/metrics", trust_env=False).text
    assert 'mlaas4hep_jobs_ended_total{state="finished"}' in text
    assert 'route="/jobs/{key}"' in text
    assert key not in text


def test_metrics_are_not_for_everybody(service: Running):
    forwarded = {"X-Forwarded-For": "192.0.2.1"}
    assert service.client(None).get("/metrics", headers=forwarded).status_code == 401
    assert service.client(ALICE).get("/metrics", headers=forwarded).status_code == 403
    assert service.client(ADMIN).get("/metrics", headers=forwarded).status_code == 200


def test_health_and_readiness(service: Running):
    client = service.client(None)
    assert client.get("/health").status_code == 200
    assert client.get("/ready").status_code == 200
