"""Several processes that train one module: the result is that of one process with the same events a step."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from mlaas4hep.errors import MlaasError, UsageError
from mlaas4hep.training.adapters import make_adapter
from mlaas4hep.training.contract import Task
from mlaas4hep.training.launch import RENDEZVOUS, Workers, launch
from mlaas4hep.training.user_model import UserModel

TRAIN = """
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import torch

from mlaas4hep.data.batches import Batch
from mlaas4hep.training.adapters import make_adapter
from mlaas4hep.training.contract import Feed, Task
from mlaas4hep.training.launch import Workers
from mlaas4hep.training.user_model import load_user_model

EVENTS, WIDTH, BATCH = 37, 4, 8
generator = np.random.default_rng(3)
values = generator.normal(size=(EVENTS, WIDTH)).astype(np.float32)
targets = generator.integers(0, 2, EVENTS)
weights = generator.random(EVENTS).astype(np.float32)
workers = Workers.here()


class Rows:
    def __init__(self, rows, batch_size):
        self.rows, self.events, self.batch_size = rows, sum(map(len, rows)), batch_size

    def chunks(self, epoch):
        for rows in self.rows:
            yield Batch(rows, values[rows], np.zeros((len(rows), WIDTH), bool))


def shards(world):
    return [Workers(rank, world).shard([np.arange(EVENTS)])[0] for rank in range(world)]


def feed():
    if workers.world > 1:
        (rows,) = workers.shard([np.arange(EVENTS)])
        size = workers.batch_size(BATCH)
        return Feed(Rows([rows[:12], rows[12:]], size), targets, weights)
    size, parts = BATCH // 2, shards(2)
    steps = [np.concatenate([part[n : n + size] for part in parts]) for n in range(0, EVENTS, size)]
    return Feed(Rows([step for step in steps if len(step)], BATCH), targets, weights)


torch.set_num_threads(1)
torch.manual_seed(workers.rank)
user = load_user_model(Path(sys.argv[1]) / "model.py")
schema = namedtuple("Schema", "idim")(WIDTH)
adapter = make_adapter(user.build(schema), Task("classification", ("0", "1")), user)
adapter.check(values[:2], np.zeros((2, WIDTH), bool))
for epoch in range(3):
    adapter.fit_epoch(feed(), epoch, lambda done: None)
state = [tensor.numpy() for tensor in adapter.native.state_dict().values()]
np.savez(Path(sys.argv[1]) / f"{sys.argv[2]}_{workers.rank}.npz", *state)
"""

MODEL = """
import torch

def model(idim):
    return torch.nn.Sequential(torch.nn.Linear(idim, 6), torch.nn.ReLU(), torch.nn.Linear(6, 1))
"""


def run(folder: Path, name: str, workers: int) -> int:
    (folder / "model.py").write_text(MODEL)
    (folder / "train.py").write_text(TRAIN)
    command = [sys.executable, str(folder / "train.py"), str(folder), name]
    return launch(workers, command)


def test_two_workers_learn_what_one_does_with_the_same_events_a_step(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    assert run(tmp_path, "alone", 1) == 0
    assert run(tmp_path, "both", 2) == 0
    alone, first, second = (np.load(tmp_path / f"{name}.npz") for name in ("alone_0", "both_0", "both_1"))
    for name in alone.files:
        np.testing.assert_array_equal(first[name], second[name])
        np.testing.assert_allclose(first[name], alone[name], atol=1e-5)


@pytest.mark.parametrize("framework", ["keras", "sklearn", "xgboost"])
def test_other_frameworks_say_that_they_train_in_one_process(
    framework: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {RENDEZVOUS: "file:///meet", "RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    native = type("Model", (), {"__module__": f"{framework}.models"})()
    user = UserModel(tmp_path / "model.py", ModuleType("user"))
    with pytest.raises(UsageError, match=f"a model of {framework} is trained by one process only"):
        make_adapter(native, Task("regression"), user)


def test_a_failing_worker_ends_the_others() -> None:
    waits = "import os, sys, time\nsys.exit(3) if os.environ['RANK'] == '1' else time.sleep(600)"
    assert launch(3, [sys.executable, "-c", waits]) == 3


def test_the_shards_hold_each_row_once_and_hardly_differ_in_size() -> None:
    groups = [np.arange(10), np.arange(100, 103), np.arange(0)]
    shards = [Workers(rank, 4).shard(groups) for rank in range(4)]
    for number, group in enumerate(groups):
        parts = [shard[number] for shard in shards]
        np.testing.assert_array_equal(np.concatenate(parts), group)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_processes_started_by_slurm_are_numbered_by_it() -> None:
    slurm = {RENDEZVOUS: "tcp://node1:29500", "SLURM_PROCID": "3", "SLURM_NTASKS": "8"}
    assert Workers.here(slurm) == Workers(3, 8, "tcp://node1:29500")
    assert Workers.here({"SLURM_PROCID": "3", "SLURM_NTASKS": "8"}) == Workers()


@pytest.mark.parametrize("environment", [{}, {"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "one", "WORLD_SIZE": "2"}])
def test_a_contradictory_environment_is_refused(environment: dict[str, str]) -> None:
    with pytest.raises(MlaasError):
        Workers.here({RENDEZVOUS: "file:///meet"} | environment)


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    assert Workers(0, 4).batch_size(256) == 64
    with pytest.raises(UsageError, match="multiple of 4"):
        Workers(0, 4).batch_size(250)
