"""Keras on each of its backends: joined steps mean what single ones do, and a checkpoint forgets nothing."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
}


@pytest.fixture(scope="module", params=["tensorflow", "jax", "torch"])
def outcome(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What `keras_training.py` found on one backend."""
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f"needs {request.param}")
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("keras_training.py")), str(tmp_path_factory.mktemp("states"))],
        env=os.environ | ONE_THREAD | {"KERAS_BACKEND": request.param, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["backend"] == request.param
    return found


def test_joined_steps_equal_single_steps(outcome: dict) -> None:
    assert outcome["plain"].keys() == {"binary", "everything", "regression"}
    assert max(outcome["plain"].values()) < 1e-5
    assert set(outcome["steps done"].values()) == {14}
    assert outcome["kind"] != "PlainSteps"
    assert outcome["recorded"]


def test_a_run_taken_up_from_a_checkpoint_ends_bit_for_bit_the_same(outcome: dict) -> None:
    assert outcome["resumed"] == 0


def test_a_loss_that_is_not_finite_ends_the_training_with_its_epoch(outcome: dict) -> None:
    assert outcome["not finite"].startswith("The loss became nan in epoch 1 of training /nowhere/model.py.")


def test_a_training_step_of_the_user_is_respected(outcome: dict) -> None:
    assert (outcome["own"], outcome["own steps"]) == ("PlainSteps", 7)


def test_the_loss_of_a_regression_is_that_of_its_predictions(outcome: dict) -> None:
    loss, expected = outcome["loss"]
    assert loss == pytest.approx(expected, rel=1e-5)
