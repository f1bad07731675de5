"""Trains small Keras models in a process of its own, because a process has one backend; prints what came out as JSON.

KERAS_BACKEND=jax python keras_training.py FOLDER
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mlaas4hep.data.batches import Batch
from mlaas4hep.errors import MlaasError
from mlaas4hep.training.contract import Feed, Task
from mlaas4hep.training.keras_adapter import KerasAdapter, start_keras
from mlaas4hep.training.keras_steps import PlainSteps
from mlaas4hep.training.random_state import set_seed

keras = start_keras()
WIDTH, EVENTS, BATCH, CHUNK = 6, 53, 8, 24
GENERATOR = np.random.default_rng(5)
VALUES = GENERATOR.normal(size=(EVENTS, WIDTH)).astype(np.float32)
MASK = GENERATOR.random((EVENTS, WIDTH)) < 0.4
CLASSES = GENERATOR.integers(0, 3, EVENTS)
WEIGHTS = GENERATOR.random(EVENTS).astype(np.float32)
FILE = Path("/nowhere/model.py")


class InMemory:
    """Batches of these events; each chunk lies in the same buffer, as those of a store do."""

    events, batch_size = EVENTS, BATCH

    def chunks(self, epoch: int) -> Iterator[Batch]:
        values, mask = np.empty((CHUNK, WIDTH), np.float32), np.empty((CHUNK, WIDTH), np.bool_)
        for first in range(0, EVENTS, CHUNK):
            rows = np.arange(first, min(first + CHUNK, EVENTS))
            values[: rows.size], mask[: rows.size] = VALUES[rows], MASK[rows]
            yield Batch(rows, values[: rows.size], mask[: rows.size])
            values.fill(np.nan)


def binary() -> KerasAdapter:
    model = keras.Sequential([keras.Input((WIDTH,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(1, "sigmoid")])
    model.compile("adam", "binary_crossentropy", metrics=["accuracy"])
    return KerasAdapter(model, Task("classification", ("0", "1")), FILE)


def many() -> KerasAdapter:
    """All at once: the mask, dropout, batch normalisation, a penalty, a schedule, logits, one column a class."""
    values, mask = keras.Input((WIDTH,), name="values"), keras.Input((WIDTH,), name="mask")
    hidden = keras.layers.Dense(8, kernel_regularizer="l2")(keras.layers.Concatenate()([values, mask]))
    hidden = keras.layers.Dropout(0.3)(keras.layers.BatchNormalization()(hidden))
    model = keras.Model([mask, values], keras.layers.Dense(3)(hidden))
    rate = keras.optimizers.schedules.ExponentialDecay(0.01, 5, 0.7)
    model.compile(keras.optimizers.SGD(rate, momentum=0.9), keras.losses.CategoricalCrossentropy(from_logits=True))
    return KerasAdapter(model, Task("classification", ("a", "b", "c")), FILE)


def regression() -> KerasAdapter:
    model = keras.Sequential([keras.Input((WIDTH,)), keras.layers.Dense(4, "tanh"), keras.layers.Dense(1)])
    model.compile("rmsprop", "mse")
    return KerasAdapter(model, Task("regression"), FILE)


class OwnStep(keras.Sequential):
    """A model with a training step of its own."""

    steps = 0

    def train_step(self, *arguments):
        OwnStep.steps += 1
        return super().train_step(*arguments)


def feed(targets, weights=None) -> Feed:
    return Feed(InMemory(), targets, weights)


CASES = {
    "binary": (binary, feed(CLASSES % 2)),
    "everything": (many, feed(CLASSES, WEIGHTS)),
    "regression": (regression, feed(VALUES.sum(axis=1).astype(np.float64))),
}


def trained(make, events: Feed, epochs: range, *, seed: int = 1, state: Path | None = None, plain: bool = False):
    set_seed(seed)
    adapter = make()
    adapter.check(VALUES[:2], MASK[:2])
    if state:
        adapter.load_state(state)
    if plain:
        adapter._steps = PlainSteps(keras, adapter.native)
    for epoch in epochs:
        adapter.fit_epoch(events, epoch, lambda done: None)
    return adapter


def state_of(adapter: KerasAdapter) -> list[np.ndarray]:
    return [np.array(variable.numpy(), dtype=np.float64) for variable in adapter._variables()]


def difference(one: KerasAdapter, other: KerasAdapter) -> float:
    return max(float(np.abs(a - b).max(initial=0)) for a, b in zip(state_of(one), state_of(other), strict=True))


def resumed(make, events: Feed, folder: Path) -> float:
    """Four epochs at once, against two, a checkpoint, and two by another object."""
    folder.mkdir()
    trained(make, events, range(2)).save_state(folder)
    again = trained(make, events, range(2, 4), seed=77, state=folder)
    return difference(trained(make, events, range(4)), again)


def failure(make, events: Feed) -> str:
    try:
        trained(make, events, range(1))
    except MlaasError as error:
        return str(error)
    return ""


def main(folder: Path) -> None:
    found: dict[str, object] = {"backend": keras.backend.backend(), "plain": {}, "steps done": {}}
    for name, (make, events) in CASES.items():
        fused = trained(make, events, range(2))
        found["plain"][name] = difference(fused, trained(make, events, range(2), plain=True))
        found["steps done"][name] = float(fused.native.optimizer.iterations.numpy())
    found["resumed"] = resumed(*CASES["everything"], folder / "state")
    found["kind"] = type(fused._steps).__name__
    found["recorded"] = all(step != fused._steps._step for step in getattr(fused._steps, "_recorded", {}).values())
    loss, predictions = fused.evaluate(next(CASES["regression"][1].chunks(0)))
    found["loss"] = [loss, float(((predictions[:, 0] - VALUES[:CHUNK].sum(axis=1)) ** 2).mean())]
    found["not finite"] = failure(binary, feed(CLASSES % 2, np.full(EVENTS, np.nan, np.float32)))

    def own() -> KerasAdapter:
        model = OwnStep([keras.Input((WIDTH,)), keras.layers.Dense(1, "sigmoid")])
        model.compile("sgd", "binary_crossentropy", run_eagerly=True)
        return KerasAdapter(model, Task("classification", ("0", "1")), FILE)

    found["own"] = type(trained(own, feed(CLASSES % 2), range(1))._steps).__name__
    found["own steps"] = OwnStep.steps
    print(json.dumps(found))


if __name__ == "__main__":
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", message="__array__ implementation", category=DeprecationWarning)
    main(Path(sys.argv[1]))
