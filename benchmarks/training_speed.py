"""Training speed of Keras by backend: joined steps against plain `model.fit`, and what feeding costs of a step.

    python benchmarks/training_speed.py [BACKEND ...]

The network has layers of 128, 64 and 1. `fit` and the adapter train on the same events in memory, in turns; each number
is the median of several epochs, in events per second of CPU time and of wall time, on one thread: waiting threads would
count as work. Feeding is measured
with 1800 columns of which 9 % are filled, in batches of 256: the CPU time of gathering from a packed store in memory,
as a fraction of an epoch's.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
}
BACKENDS = ("tensorflow", "jax", "torch")
WIDTHS = {30: 20_000, 1800: 4_000}
BATCH = 100
ROUNDS = 5
FLAT, JAGGED, ROOM, FED_BATCH, FED_EVENTS = 18, 54, 33, 256, 4096
FILLED = 0.09


def model(keras: Any, width: int) -> Any:
    network = keras.Sequential(
        [
            keras.Input((width,)),
            keras.layers.Dense(128, activation="relu"),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(1, activation="sigmoid"),
        ]
    )
    network.compile("adam", "binary_crossentropy")
    return network


def rates(events: int, train: Callable[[], object]) -> tuple[float, float]:
    """Events per second of CPU and of wall time."""
    cpu, wall = time.process_time(), time.monotonic()
    train()
    return events / (time.process_time() - cpu), events / (time.monotonic() - wall)


def compare(keras: Any, width: int, events: int) -> dict[str, list[float]]:
    from mlaas4hep.data.batches import Batch
    from mlaas4hep.training.contract import Feed, Task
    from mlaas4hep.training.keras_adapter import KerasAdapter

    generator = np.random.default_rng(0)
    x = generator.random((events, width), dtype=np.float32)
    mask = np.zeros(x.shape, dtype=np.bool_)
    y = generator.integers(0, 2, events)

    class InMemory:
        batch_size = BATCH

        def __init__(self) -> None:
            self.events = events

        def chunks(self, epoch: int) -> Iterator[Batch]:
            size = max(8192 * 1024 // width // BATCH, 1) * BATCH
            for first in range(0, events, size):
                rows = np.arange(first, min(first + size, events))
                yield Batch(rows, x[rows[0] : rows[-1] + 1], mask[rows[0] : rows[-1] + 1])

    plain, adapter = model(keras, width), KerasAdapter(model(keras, width), Task("classification", ("0", "1")), Path())
    adapter.check(x[:2], mask[:2])
    feed, labels = Feed(InMemory(), y), y[:, None].astype(np.float32)
    ways = {
        "fit": lambda: plain.fit(x, labels, batch_size=BATCH, verbose=0),
        "joined": lambda: adapter.fit_epoch(feed, 0, lambda done: None),
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for number in range(ROUNDS + 1):
        for name, train in ways.items():
            measured = rates(events, train)
            if number:
                found[name].append(measured)
    return {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in found.items()}


def feeding(keras: Any) -> float:
    """CPU time of gathering as a fraction of that of an epoch."""
    from mlaas4hep.data.batches import Batches
    from mlaas4hep.data.schema import FlatColumn, JaggedColumn, Schema
    from mlaas4hep.training.contract import Feed, Task
    from mlaas4hep.training.keras_adapter import KerasAdapter

    generator = np.random.default_rng(0)
    mean = (FILLED * (FLAT + JAGGED * ROOM) - FLAT) / JAGGED
    counts = np.minimum(generator.poisson(mean, (FED_EVENTS, JAGGED)), ROOM).astype(np.uint32)
    offsets = np.concatenate([[0], np.cumsum(FLAT + counts.sum(axis=1, dtype=np.int64))])
    values = generator.random(int(offsets[-1]), dtype=np.float32)
    schema = Schema(
        flat=tuple(FlatColumn(f"flat_{i:02}", f"flat_{i:02}") for i in range(FLAT)),
        jagged=tuple(JaggedColumn(f"jagged_{i:02}", ROOM) for i in range(JAGGED)),
        shift=(0.0,) * (FLAT + JAGGED),
        width=(1.0,) * (FLAT + JAGGED),
    )
    store: Any = SimpleNamespace(values=values, offsets=offsets, counts=counts)
    feed = Feed(
        Batches(store, schema, [np.arange(FED_EVENTS)], batch_size=FED_BATCH),
        generator.integers(0, 2, FED_EVENTS),
    )
    adapter = KerasAdapter(model(keras, schema.idim), Task("classification", ("0", "1")), Path())
    first = next(feed.chunks(0))
    adapter.check(first.values[:2], first.mask[:2])

    def gather() -> None:
        for _ in feed.chunks(0):
            pass

    shares = []
    for number in range(ROUNDS + 1):
        whole, _ = rates(FED_EVENTS, lambda: adapter.fit_epoch(feed, 0, lambda done: None))
        alone, _ = rates(FED_EVENTS, gather)
        if number:
            shares.append(whole / alone)
    return statistics.median(shares)


def measure() -> None:
    """One backend, in this process; prints JSON."""
    from mlaas4hep.training.keras_adapter import start_keras

    keras = start_keras()
    found = {str(width): compare(keras, width, events) for width, events in WIDTHS.items()}
    print(json.dumps({"rates": found, "feed": feeding(keras)}))


def main(backends: list[str]) -> None:
    """Measure each backend in a process of its own, and print Markdown."""
    print(f"128-64-1, batch {BATCH}, one thread; events/s, medians of {ROUNDS} epochs\n")
    print("| backend | inputs | fit, CPU | joined, CPU | ratio | fit, wall | joined, wall | ratio | feeding |")
    print("|---|---|---|---|---|---|---|---|---|")
    for backend in backends:
        done = subprocess.run(
            [sys.executable, __file__, "--measure"],
            env=os.environ | ONE_THREAD | {"KERAS_BACKEND": backend},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        found = json.loads(done.stdout.splitlines()[-1])
        for width, ways in found["rates"].items():
            (fit, fit_wall), (joined, joined_wall) = ways["fit"], ways["joined"]
            feed = f"{found['feed']:.1%}" if int(width) == max(WIDTHS) else ""
            print(
                f"| {backend} | {width} | {fit:,.0f} | {joined:,.0f} | {joined / fit:.1f} "
                f"| {fit_wall:,.0f} | {joined_wall:,.0f} | {joined_wall / fit_wall:.1f} | {feed} |",
                flush=True,
            )


if __name__ == "__main__":
    if sys.argv[1:] == ["--measure"]:
        measure()
    else:
        main(sys.argv[1:] or list(BACKENDS))
