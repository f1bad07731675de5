"""Tasks on a real Slurm of two nodes: each runs once, within its limits, and says honestly how it ended."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mlaas4hep.errors import MlaasError
from mlaas4hep.example.generate import write_example
from mlaas4hep.service.executor import Outcome, Resources, State, Task
from mlaas4hep.service.jobs import read_json, write_json
from mlaas4hep.service.slurm import SlurmExecutor, SlurmSettings, SlurmUnavailableError
from tests.conftest import long
from tests.debian import do_without
from tests.slurm.cluster import NODES, Cluster, inability, running, wait_until

ACCOUNT = "nobody"
_MIB = 2**20
_TRAINS = """
from sklearn.linear_model import LogisticRegression

def model(idim):
    return LogisticRegression()
"""
_ENDS = """
import os, pathlib

model = pathlib.Path(os.environ["HOME"]).parent / "model"
model.mkdir()
(model / "bundle.json").write_text("{}")
os._exit(0)
"""
_WAITS = """
import time

print("it waits", flush=True)
while True:
    time.sleep(0.1)
"""
_CONNECTS = """
import socket

for port in (6817, 1):
    with socket.create_connection(("controller", port)) as connection:
        if port == 6817:
            connection.shutdown(socket.SHUT_WR)
        connection.recv(1)
"""
_ALLOCATES = """
blocks = []
while True:
    blocks.append(b"x" * 2**24)
"""


@pytest.fixture(scope="module")
def shared() -> Iterator[Path]:
    """A folder that every account may pass through, as pytest's own are not."""
    folder = Path(tempfile.mkdtemp(prefix="mlaas4hep-slurm-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def cluster(shared: Path) -> Iterator[Cluster]:
    if reason := inability():
        do_without(reason)
    folder = shared / "cluster"
    folder.mkdir()
    with running(folder) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def workflow(shared: Path) -> Path:
    folder = shared / "workflow"
    write_example(folder, 200, 1)
    return folder


@pytest.fixture
def executor(cluster: Cluster) -> Iterator[SlurmExecutor]:
    executor = SlurmExecutor(settings_of(cluster))
    yield executor
    for line in cluster.ask("squeue", "-h", "-o", "%A").split():
        cluster.ask("scancel", "--signal=KILL", "--full", line)
        cluster.ask("scancel", line)
    wait_until(lambda: not cluster.ask("squeue", "-h"))


def settings_of(cluster: Cluster, **choice: object) -> SlurmSettings:
    facts = {"url": f"unix:{cluster.socket}", "key": cluster.key, "account": ACCOUNT}
    return SlurmSettings.model_validate(facts | choice)


@pytest.fixture
def make_task(shared: Path, workflow: Path) -> Callable[..., Task]:
    """Makes a task of a model file; see `Resources` for what else can be chosen."""

    def make(model: str = _ENDS, key: str = "", name: str = "", **resources: int) -> Task:
        folder = Path(tempfile.mkdtemp(prefix=name or "job-", dir=shared))
        shutil.copytree(workflow, folder / "input")
        (folder / "input" / "model.py").write_text(model)
        for path in (folder, *folder.rglob("*")):
            shutil.chown(path, ACCOUNT)
        wanted = Resources(**{"memory": 1500 * _MIB, "seconds": 600} | resources)
        return Task(key or f"{folder.name}-1", folder, "", wanted)

    return make


def finally_of(executor: SlurmExecutor, task: Task) -> Outcome:
    """How a task ends."""
    wait_until(lambda: executor.status(task).state.final, seconds=180)
    return executor.status(task)


def runs(executor: SlurmExecutor, task: Task) -> None:
    """Wait until a task's own code runs."""
    wait_until(lambda: b"it waits" in b"".join(executor.logs(task)), seconds=120)
    assert executor.status(task).state is State.RUNNING


def jobs_named(cluster: Cluster, name: str) -> list[str]:
    """Numbers of all jobs of this name that Slurm knows, with those that have ended."""
    lines = cluster.ask("scontrol", "--oneliner", "show", "jobs").splitlines()
    return [line.split()[0] for line in lines if f"JobName={name}" in line.split()]


def accepted(executor: SlurmExecutor, task: Task) -> bool:
    """Whether Slurm takes a task now."""
    try:
        executor.submit(task)
    except SlurmUnavailableError:
        return False
    return True


def saved_as_it_is(cluster: Cluster, task: Task) -> None:
    """Wait until the controller has written what it knows of a task's job now; it takes some seconds to do so.

    A comment tells that state from an earlier one, in which the job was still to be started.
    """
    comment = f"seen-{task.key}"
    cluster.ask("scontrol", "update", f"JobId={read_json(task.folder / 'slurm.json')['job']}", f"Comment={comment}")
    path = cluster.folder / "controller" / "job_state"
    wait_until(lambda: path.exists() and comment.encode() in path.read_bytes())


def test_a_task_is_trained_as_its_account_and_leaves_a_model(
    cluster: Cluster, executor: SlurmExecutor, make_task: Callable[..., Task]
) -> None:
    task = make_task(_TRAINS, name="it's $(touch x) 100% \\n-", key="train-1", cpus=2)
    executor.submit(task)
    assert executor.status(task).state in (State.QUEUED, State.RUNNING)
    outcome = finally_of(executor, task)
    assert (outcome.state, outcome.reason) == (State.FINISHED, "")
    assert outcome.started < outcome.ended
    assert (task.folder / "model" / "bundle.json").is_file()
    assert (task.folder / "model").owner() == ACCOUNT
    log = b"".join(executor.logs(task))
    assert b"epoch" in log or log
    assert b"".join(executor.logs(task, 5)) == log[5:]
    shown = cluster.ask("scontrol", "show", "job", str(read_json(task.folder / "slurm.json")["job"]))
    assert "UserId=nobody(65534) GroupId=nogroup(65534)" in shown
    assert "NumCPUs=2" in shown


def test_what_is_submitted_twice_runs_once(
    cluster: Cluster, executor: SlurmExecutor, make_task: Callable[..., Task]
) -> None:
    task = make_task(_WAITS)
    executor.submit(task)
    executor.submit(task)
    SlurmExecutor(settings_of(cluster)).submit(task)
    runs(executor, task)
    executor.submit(task)
    assert len(jobs_named(cluster, task.key)) == 1
    executor.cancel(task)
    executor.submit(task)
    assert len(jobs_named(cluster, task.key)) == 1
    assert executor.status(task).state is State.CANCELLED


def test_a_submitter_killed_before_the_answer_neither_loses_nor_doubles_it(
    cluster: Cluster, executor: SlurmExecutor, make_task: Callable[..., Task]
) -> None:
    task = make_task(_WAITS)
    executor.submit(task)
    facts = read_json(task.folder / "slurm.json")
    # what the killed submitter leaves
    write_json(task.folder / "slurm.json", facts | {"job": 0})
    assert executor.status(task).state in (State.QUEUED, State.RUNNING)
    executor.submit(task)
    assert read_json(task.folder / "slurm.json") == facts
    assert len(jobs_named(cluster, task.key)) == 1

    other = make_task(_WAITS)
    write_json(other.folder / "slurm.json", {"key": other.key, "account": ACCOUNT, "job": 0})
    assert executor.status(other).state is State.INTERRUPTED
    executor.submit(other)
    assert len(jobs_named(cluster, other.key)) == 1


def test_two_jobs_of_slurm_for_one_task_train_once(
    cluster: Cluster, executor: SlurmExecutor, make_task: Callable[..., Task]
) -> None:
    task = make_task(_WAITS)
    executor.submit(task)
    runs(executor, task)
    first = read_json(task.folder / "slurm.json")["job"]
    second = executor._rest.submit(executor._script(task), executor._description(task), ACCOUNT)
    wait_until(lambda: f"JobId={second}" in cluster.ask("scontrol", "show", "job", "-o", str(second)))
    wait_until(lambda: "JobState=COMPLETED" in cluster.ask("scontrol", "show", "job", "-o", str(second)))
    assert "JobState=RUNNING" in cluster.ask("scontrol", "show", "job", "-o", str(first))
    assert b"".join(executor.logs(task)).count(b"it waits") == 1


def test_a_task_beyond_its_memory_ends_and_its_neighbour_does_not_notice(
    executor: SlurmExecutor, make_task: Callable[..., Task]
) -> None:
    neighbour, greedy = make_task(memory=900 * _MIB), make_task(_ALLOCATES, memory=500 * _MIB)
    for task in (neighbour, greedy):
        executor.submit(task)
    outcome = finally_of(executor, greedy)
    assert outcome.state is State.OUT_OF_MEMORY
    assert outcome.reason == "It needed more memory than the 500 MiB that it may use."
    assert finally_of(executor, neighbour).state is State.FINISHED


def test_a_task_beyond_its_time_ends(executor: SlurmExecutor, make_task: Callable[..., Task]) -> None:
    task = make_task(_WAITS, seconds=4)
    executor.submit(task)
    outcome = finally_of(executor, task)
    assert outcome.state is State.TIME_LIMIT
    assert outcome.reason == "It ran longer than the 4 s that it may."


def test_a_users_error_is_told_with_the_end_of_its_traceback(
    executor: SlurmExecutor, make_task: Callable[..., Task]
) -> None:
    task = make_task("raise LookupError('no such thing')\n")
    executor.submit(task)
    outcome = finally_of(executor, task)
    assert outcome.state is State.FAILED
    assert "LookupError" in outcome.reason
    assert "no such thing" in outcome.reason


def test_a_task_reaches_its_endpoints_from_the_node_that_it_runs_on(
    executor: SlurmExecutor, make_task: Callable[..., Task]
) -> None:
    task = make_task(_CONNECTS)
    executor.submit(replace(task, endpoints=("controller:6817", "controller:1")))
    outcome = finally_of(executor, task)
    assert outcome.state is State.FAILED
    assert "ConnectionResetError" in outcome.reason
    assert outcome.reason.endswith("\nThe data endpoint controller:1 could not be reached: Connection refused.")


def test_a_node_that_cannot_start_it_says_why(cluster: Cluster, make_task: Callable[..., Task]) -> None:
    executor = SlurmExecutor(settings_of(cluster, python="/nowhere/python"))
    task = make_task()
    executor.submit(task)
    outcome = finally_of(executor, task)
    assert outcome.state is State.FAILED
    assert outcome.reason.startswith("It could not be started on the node n")
    assert "/nowhere/python" in outcome.reason


def test_only_a_task_that_asks_for_a_gpu_can_open_it(executor: SlurmExecutor, make_task: Callable[..., Task]) -> None:
    opens = "open('/dev/full', 'rb').read(1)\n" + _ENDS
    with_gpu, without = make_task(opens, gpus=1), make_task(opens)
    executor.submit(with_gpu)
    assert finally_of(executor, with_gpu).state is State.FINISHED
    # n1 is the first that gets a task, and the one that has the GPU
    executor.submit(without)
    outcome = finally_of(executor, without)
    assert outcome.state is State.FAILED
    assert "not permitted" in outcome.reason


def test_cancelled_tasks_stop_whether_they_wait_or_run(
    cluster: Cluster, executor: SlurmExecutor, make_task: Callable[..., Task]
) -> None:
    full = [make_task(_WAITS, cpus=2) for _ in NODES]
    for task in full:
        executor.submit(task)
    for task in full:
        runs(executor, task)
    assert sorted(cluster.ask("squeue", "-h", "-o", "%N").split()) == sorted(NODES)
    waiting = make_task(_WAITS)
    executor.submit(waiting)
    assert executor.status(waiting).state is State.QUEUED
    executor.cancel(waiting)
    executor.cancel(full[0])
    assert [executor.status(task).state for task in (waiting, full[0])] == [State.CANCELLED] * 2
    assert executor.status(full[1]).state is State.RUNNING
    assert not (full[0].folder / "work").exists()
    executor.cancel(full[0])
    cluster.ask("scancel", str(read_json(full[1].folder / "slurm.json")["job"]))
    outcome = finally_of(executor, full[1])
    assert (outcome.state, outcome.reason) == (State.CANCELLED, "It was cancelled in Slurm.")


def test_tasks_survive_a_kill_of_the_controller(
    cluster: Cluster, executor: SlurmExecutor, make_task: Callable[..., Task]
) -> None:
    lives, late = make_task(_WAITS), make_task()
    ended = make_task("raise LookupError\n")
    executor.submit(ended)
    executor.submit(lives)
    runs(executor, lives)
    assert finally_of(executor, ended).state is State.FAILED
    saved_as_it_is(cluster, lives)
    cluster.kill("controller")
    with pytest.raises(SlurmUnavailableError, match="Slurm does not answer"):
        executor.submit(late)
    with pytest.raises(SlurmUnavailableError, match="Slurm does not answer"):
        executor.status(lives)
    assert executor.status(ended).state is State.FAILED
    cluster.start_controller()
    assert executor.status(lives).state is State.RUNNING
    executor.submit(late)
    assert finally_of(executor, late).state is State.FINISHED
    assert [len(jobs_named(cluster, task.key)) for task in (lives, late)] == [1, 1]
    executor.cancel(lives)
    assert executor.status(lives).state is State.CANCELLED


def test_a_task_whose_job_the_controller_loses_is_interrupted_and_can_be_run_again(
    cluster: Cluster, executor: SlurmExecutor, make_task: Callable[..., Task]
) -> None:
    task = make_task(_WAITS)
    executor.submit(task)
    cluster.kill("controller")
    # as when it is killed within the seconds that it takes until it saves an accepted job
    for path in (cluster.folder / "controller").glob("job_state*"):
        path.unlink()
    cluster.start_controller()
    cluster.wait_for_nodes()
    assert finally_of(executor, task).state is State.INTERRUPTED
    again = Task(f"{task.key}-again", task.folder, "", task.resources)
    (task.folder / "input" / "model.py").write_text(_ENDS)
    wait_until(lambda: accepted(executor, again))
    assert finally_of(executor, again).state is State.FINISHED


def test_a_task_on_a_node_that_fails_is_interrupted_and_can_be_run_again(
    cluster: Cluster, executor: SlurmExecutor, make_task: Callable[..., Task]
) -> None:
    task = make_task(_WAITS)
    executor.submit(task)
    runs(executor, task)
    node = cluster.ask("squeue", "-h", "-o", "%N").strip()
    cluster.kill(node)
    try:
        outcome = finally_of(executor, task)
        assert outcome.state is State.INTERRUPTED
        assert outcome.reason == f"The node {node} failed. Submit it again."
        (task.folder / "input" / "model.py").write_text(_ENDS)
        again = Task(f"{task.key}-again", task.folder, "", task.resources)
        executor.submit(again)
        assert finally_of(executor, again).state is State.FINISHED
        assert len(jobs_named(cluster, task.key)) == 1
    finally:
        cluster.start_node(node)
        cluster.wait_for_nodes()


@long
def test_after_a_cut_of_everything_what_ran_is_interrupted_and_what_was_finished_stays_so(
    cluster: Cluster, executor: SlurmExecutor, make_task: Callable[..., Task]
) -> None:
    finished, ran = make_task(), make_task(_WAITS)
    for task in (finished, ran):
        executor.submit(task)
    assert finally_of(executor, finished).state is State.FINISHED
    runs(executor, ran)
    saved_as_it_is(cluster, ran)
    for node in NODES:
        cluster.kill(node)
    cluster.kill("controller")
    cluster.start_controller()
    for node in NODES:
        cluster.start_node(node)
    cluster.wait_for_nodes()
    assert finally_of(executor, ran).state is State.INTERRUPTED
    assert finally_of(executor, finished).state is State.FINISHED
    executor.submit(ran)
    assert len(jobs_named(cluster, ran.key)) == 1


def test_a_task_that_slurm_has_forgotten_is_judged_by_its_folder(
    executor: SlurmExecutor, make_task: Callable[..., Task]
) -> None:
    task = make_task()
    executor.submit(task)
    finished = finally_of(executor, task)
    forgotten = read_json(task.folder / "slurm.json") | {"job": 999_999}
    write_json(task.folder / "slurm.json", forgotten)
    assert executor.status(task) == finished
    (task.folder / "result.json").unlink()
    # its supervisor has told the result and may still be on its way out
    wait_until(lambda: executor.status(task).state is State.INTERRUPTED)
    executor.cancel(task)


def test_another_tasks_job_is_never_taken_for_ones_own(
    cluster: Cluster, executor: SlurmExecutor, make_task: Callable[..., Task]
) -> None:
    lives, other = make_task(_WAITS), make_task()
    executor.submit(lives)
    runs(executor, lives)
    job = read_json(lives.folder / "slurm.json")["job"]
    write_json(other.folder / "slurm.json", {"key": other.key, "account": ACCOUNT, "job": job})
    assert executor.status(other).state is State.INTERRUPTED
    executor.cancel(other)
    assert executor.status(lives).state is State.RUNNING


@pytest.mark.parametrize(
    ("choice", "resources", "text"),
    [
        ({"partition": "nowhere"}, {}, "Slurm refused: Invalid partition name specified."),
        ({}, {"memory": 2**40}, "Slurm refused: Requested node configuration is not available."),
        ({}, {"gpus": 7}, "Slurm refused: Requested node configuration is not available."),
        ({"account": "root"}, {}, "Jobs are not run as root."),
        ({"account": "nobody-of-this-name"}, {}, "This computer has no account nobody-of-this-name."),
    ],
)
def test_what_cannot_run_is_refused_in_a_sentence(
    cluster: Cluster, make_task: Callable[..., Task], choice: dict[str, str], resources: dict[str, int], text: str
) -> None:
    task = make_task(**resources)
    with pytest.raises(MlaasError) as refusal:
        SlurmExecutor(settings_of(cluster, **choice)).submit(task)
    assert refusal.value.message == text
    assert task.key not in cluster.ask("squeue", "-h", "-o", "%j")


def test_a_key_that_slurm_does_not_know_is_of_no_use(
    cluster: Cluster, shared: Path, make_task: Callable[..., Task]
) -> None:
    (shared / "other.key").write_bytes(os.urandom(32))
    task = make_task()
    with pytest.raises(SlurmUnavailableError):
        SlurmExecutor(settings_of(cluster, key=shared / "other.key")).submit(task)
    with pytest.raises(SlurmUnavailableError, match="cannot be used: No such file"):
        SlurmExecutor(settings_of(cluster, key=shared / "none.key")).submit(task)
    with pytest.raises(SlurmUnavailableError, match="does not answer"):
        SlurmExecutor(settings_of(cluster, url="http://127.0.0.1:9")).submit(task)
    assert jobs_named(cluster, task.key) == []


def test_many_submissions_at_once_are_each_there_once(
    cluster: Cluster, executor: SlurmExecutor, make_task: Callable[..., Task]
) -> None:
    tasks = [make_task(_WAITS) for _ in range(24)]
    threads = [threading.Thread(target=executor.submit, args=(task,)) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(jobs_named(cluster, task.key)) for task in tasks] == [1] * len(tasks)
