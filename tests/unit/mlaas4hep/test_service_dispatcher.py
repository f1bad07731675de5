"""Exactly once, in a fair order, within the limits; through kills at every point."""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import pytest
from sqlalchemy import select, update

from mlaas4hep.errors import MlaasError
from mlaas4hep.service.arrangement import Submission
from mlaas4hep.service.database import JobRow
from mlaas4hep.service.dispatcher import Candidate, choose
from mlaas4hep.service.executor import Task
from mlaas4hep.service.identity import Role, User
from mlaas4hep.service.settings import JobSettings
from mlaas4hep.service.submissions import ENDED, HANDED, HANDING, WAITING
from tests.unit.mlaas4hep.service_parts import ALICE, WORKFLOW, Processes, Running, tar_gz, until

UNLIMITED = (2**62, 2**62, 2**62)
GOES_ON = "until [ -e go ]; do sleep 0.02; done; mkdir -p model; echo '{}' > model/bundle.json"


@pytest.fixture
def service(tmp_path):
    """A service that takes a step only when it is told to."""
    executor = Processes(GOES_ON)
    service = Running(tmp_path, executor)
    yield service
    executor.end()
    service.service.dispatcher.stop()
    service.service.database.close()


def give(service: Running, count: int = 1, user: User = ALICE) -> list[str]:
    parts = service.service
    parts.workspaces.replace(user.key, "w", BytesIO(tar_gz(WORKFLOW)), lambda _: 2**40)
    return [parts.submissions.submit(user, Submission(workspace="w")).key for _ in range(count)]


def row(service: Running, key: str) -> JobRow:
    with service.service.database.read() as session:
        found = session.scalar(select(JobRow).where(JobRow.key == key))
    assert found is not None
    return found


def go(service: Running, key: str) -> None:
    (service.settings.data / "jobs" / key / "go").touch()


def step_until(service: Running, key: str, phase: str) -> JobRow:
    def once() -> JobRow:
        service.service.dispatcher.step()
        return row(service, key)

    return until(once, lambda job: job.phase == phase)


def candidate(number: int, user: str, cpus: int = 1, memory: int = 1, gpus: int = 0) -> Candidate:
    return Candidate(number, user, (cpus, memory, gpus))


def chosen(candidates, running=None, used=None, most=None, free=(4, 4, 0)) -> int | None:
    limits = {job.user: UNLIMITED for job in candidates} | (most or {})
    found = choose(candidates, running or {}, used or {}, limits, free)
    return found.id if found else None


def test_the_user_with_the_fewest_running_jobs_is_next():
    assert chosen([candidate(1, "a"), candidate(2, "b")]) == 1
    assert chosen([candidate(1, "a"), candidate(2, "b")], running={"a": 1}) == 2
    assert chosen([]) is None


def test_a_user_at_the_quota_does_not_keep_others_waiting():
    jobs = [candidate(1, "a", cpus=2), candidate(2, "b")]
    assert chosen(jobs, running={"b": 5}, used={"a": (1, 1, 0)}, most={"a": (2, 9, 9)}) == 2


def test_a_large_job_is_not_overtaken_for_ever_but_others_use_what_it_leaves():
    assert chosen([candidate(1, "a", cpus=4), candidate(2, "b")], free=(2, 4, 0)) is None
    assert chosen([candidate(1, "a", gpus=1), candidate(2, "b")], free=(4, 4, 0)) == 2


def test_jobs_stay_within_the_total(tmp_path):
    executor = Processes(GOES_ON)
    service = Running(tmp_path, executor, jobs=JobSettings(cpus=2, memory=2**40))
    keys = give(service, 4)
    service.service.dispatcher.step()
    assert [row(service, key).phase for key in keys] == [HANDED, HANDED, WAITING, WAITING]
    go(service, keys[0])
    step_until(service, keys[0], ENDED)
    service.service.dispatcher.step()
    assert [row(service, key).phase for key in keys] == [ENDED, HANDED, HANDED, WAITING]
    executor.end()
    service.service.dispatcher.stop()
    service.service.database.close()


def test_the_place_in_the_queue_is_the_order_of_choice(service: Running):
    other = User(ALICE.issuer, "other", "Other", (), ALICE.roles)
    running = give(service)
    service.service.dispatcher.step()
    keys = [*give(service, 3), *give(service, 2, other)]
    position = service.service.dispatcher.position
    waiting = [row(service, key) for key in keys]
    left, begun, order = list(waiting), Counter({ALICE.key: 1}), []
    while left:
        heads = {job.user_key: job for job in reversed(left)}
        found = chosen([candidate(job.id, user) for user, job in heads.items()], begun, free=UNLIMITED)
        [job] = [job for job in left if job.id == found]
        left.remove(job)
        begun[job.user_key] += 1
        order.append(job)
    assert order[0].user_key == other.key, "Alice has a job that runs"
    assert [position(job) for job in order] == [1, 2, 3, 4, 5]
    assert position(row(service, running[0])) is None
    service.service.submissions.cancel(order[0].key, None)
    assert position(row(service, order[0].key)) is None
    assert {position(row(service, job.key)) for job in order[1:]} == {1, 2, 3, 4}


def test_a_kill_before_the_executor_was_told_loses_nothing(service: Running):
    [key] = give(service)
    with service.service.database.write() as session:
        session.execute(update(JobRow).values(phase=HANDING, attempt=1))
    service.service.dispatcher.step()
    assert row(service, key).phase == HANDED
    assert service.executor.started == [f"{key}-1"]


def test_a_kill_after_the_executor_was_told_doubles_nothing(service: Running):
    [key] = give(service)
    service.service.dispatcher.step()
    with service.service.database.write() as session:
        session.execute(update(JobRow).values(phase=HANDING))
    service.service.dispatcher.step()
    assert row(service, key).phase == HANDED
    assert service.executor.started == [f"{key}-1"]


def test_a_kill_after_publishing_publishes_nothing_again(service: Running):
    [key] = give(service)
    service.service.dispatcher.step()
    go(service, key)
    assert step_until(service, key, ENDED).version == 1
    with service.service.database.write() as session:
        session.execute(update(JobRow).values(phase=HANDED, state="running", version=0))
    assert step_until(service, key, ENDED).version == 1
    assert service.service.repository.versions(ALICE.key, "w") == (1,)


def test_an_interrupted_job_is_tried_three_times(service: Running):
    [key] = give(service)
    for attempt in (1, 2, 3):
        service.service.dispatcher.step()
        service.service.dispatcher.step()
        assert row(service, key).attempt == attempt
        service.executor.interrupt(f"{key}-{attempt}")
    job = step_until(service, key, ENDED)
    assert (job.state, job.attempt) == ("interrupted", 3)
    assert service.executor.started == [f"{key}-{attempt}" for attempt in (1, 2, 3)]


def test_an_executor_that_refuses_a_job_fails_only_that_job(service: Running, monkeypatch: pytest.MonkeyPatch):
    bad, good = give(service, 2)
    submit = service.executor.submit

    def refuse(task: Task) -> None:
        if task.key.startswith(bad):
            raise MlaasError("It has no such GPU.")
        submit(task)

    monkeypatch.setattr(service.executor, "submit", refuse)
    service.service.dispatcher.step()
    assert (row(service, bad).state, row(service, bad).reason) == ("failed", "It has no such GPU.")
    assert row(service, good).phase == HANDED


def test_a_folder_without_a_job_is_swept_when_it_is_old(service: Running):
    [key] = give(service)
    jobs = service.settings.data / "jobs"
    for name in ("j-orphan", "higgs_1"):
        (jobs / name).mkdir()
    (jobs / "higgs_1" / "job.json").write_text("{}")  # of a user who submits over SSH
    service.service.submissions.sweep()
    assert {path.name for path in jobs.iterdir()} == {key, "j-orphan", "higgs_1"}
    service.service.submissions.sweep(before=time.time() + 1)
    assert {path.name for path in jobs.iterdir()} == {key, "higgs_1"}


def test_one_of_two_services_dispatches(tmp_path):
    executor = Processes("mkdir model; echo '{}' > model/bundle.json")
    services = [Running(tmp_path, executor) for _ in range(2)]
    keys = give(services[0], 10)
    for service in services:
        service.service.dispatcher.start()
    until(lambda: Counter(row(services[1], key).phase for key in keys)[ENDED], lambda count: count == 10)
    assert sorted(executor.started) == sorted(f"{key}-1" for key in keys)
    services[0].service.dispatcher.stop()
    more = give(services[0], 2)
    until(lambda: Counter(row(services[1], key).phase for key in more)[ENDED], lambda count: count == 2)
    for service in services:
        service.service.dispatcher.stop()
        service.service.database.close()
    executor.end()


def test_a_thousand_submissions_of_fifty_users_are_neither_lost_nor_doubled_and_fair(tmp_path):
    order: list[str] = []
    told = threading.Lock()

    class Noted(Processes):
        def submit(self, task: Task) -> None:
            with told:
                order.append(task.key)
            super().submit(task)

    executor = Noted("true")
    service = Running(tmp_path, executor, jobs=JobSettings(cpus=50, memory=2**50))
    users = [User("i", f"user{number}", roles=frozenset({Role.SUBMIT})) for number in range(50)]
    for user in users:
        give(service, 0, user)

    def submit(number: int) -> tuple[str, str]:
        user = users[number // 20]
        return service.service.submissions.submit(user, Submission(workspace="w"), f"k{number}").key, user.key

    with ThreadPoolExecutor(32) as pool:
        owners = dict(pool.map(submit, range(1000)))
    assert len(owners) == 1000
    with service.service.database.read() as session:
        assert set(session.scalars(select(JobRow.key))) == set(owners)
    # one round of the dispatcher starts one job of each user
    service.service.dispatcher.step()
    assert Counter(owners[key.rpartition("-")[0]] for key in order) == dict.fromkeys((user.key for user in users), 1)
    executor.end()
    service.service.dispatcher.stop()
    service.service.database.close()
