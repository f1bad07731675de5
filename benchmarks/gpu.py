"""Training on a GPU: events that travel packed against dense ones, and the adapters against plain training loops.

    python benchmarks/gpu.py [torch | keras:torch | keras:jax ...]

Needs PyTorch with CUDA. The events have 1802 columns of which 9 % are filled. Each number is the median of several
rounds, in events per second of wall time. `packed` gathers on the GPU, `dense` on the CPU and then copies, from pinned
memory; both end with input vectors and mask on the GPU, and are compared bit by bit. `plain` is a loop, or `fit`, over
matrices that lie in memory as a user without the toolkit would have them.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from mlaas4hep.data.batches import Batches, Gatherer
from mlaas4hep.data.schema import FlatColumn, JaggedColumn, Schema
from mlaas4hep.training.contract import Feed, Task
from mlaas4hep.training.torch_gather import densify, pack

WAYS = ("torch", "keras:torch", "keras:jax")
FLAT, JAGGED, ROOM, FILLED = 18, 54, 33, 0.09
EVENTS = 65_536
CHUNKS = (256, 1024, 8192)
BATCHES = (100, 1024)
ROUNDS = 5
TASK = Task("classification", ("0", "1"))


def events() -> tuple[Any, Schema]:
    """A packed store in memory, and the layout of its input vectors."""
    generator = np.random.default_rng(0)
    mean = (FILLED * (FLAT + JAGGED * ROOM) - FLAT) / JAGGED
    counts = np.minimum(generator.poisson(mean, (EVENTS, JAGGED)), ROOM).astype(np.uint32)
    offsets = np.concatenate([[0], np.cumsum(FLAT + counts.sum(axis=1, dtype=np.int64))])
    values = generator.normal(scale=50.0, size=int(offsets[-1])).astype(np.float32)
    values[generator.random(values.size) < 0.001] = np.nan
    schema = Schema(
        flat=tuple(FlatColumn(f"flat_{i:02}", f"flat_{i:02}") for i in range(FLAT)),
        jagged=tuple(JaggedColumn(f"jagged_{i:02}", ROOM) for i in range(JAGGED)),
        shift=tuple(generator.normal(size=FLAT + JAGGED)),
        width=tuple(generator.uniform(1.0, 200.0, size=FLAT + JAGGED)),
    )
    return SimpleNamespace(values=values, offsets=offsets, counts=counts), schema


def rate(work: Callable[[], object], torch: Any) -> float:
    """Events per second of wall time, with the GPU's work at its end."""
    seconds = []
    for number in range(ROUNDS + 1):
        torch.cuda.synchronize()
        begin = time.monotonic()
        work()
        torch.cuda.synchronize()
        if number:
            seconds.append(time.monotonic() - begin)
    return EVENTS / statistics.median(seconds)


def transfer(torch: Any) -> None:
    """Print the rates of both ways to the GPU, and whether what arrives is the same."""
    store, schema = events()
    gatherer, order = Gatherer(schema), np.random.default_rng(1).permutation(EVENTS)
    print("| events at a time | dense, 1/s | packed, 1/s | ratio | bytes a dense / a packed event |")
    print("|--:|--:|--:|--:|--:|")
    for size in CHUNKS:
        chunks = [order[first : first + size] for first in range(0, EVENTS, size)]
        values = torch.empty((size, schema.idim), dtype=torch.float32, pin_memory=True)
        mask = torch.empty((size, schema.idim), dtype=torch.bool, pin_memory=True)

        def dense(rows: Any, values: Any = values, mask: Any = mask) -> tuple[Any, Any]:
            gatherer.gather(store, rows, values.numpy(), mask.numpy())
            return values.to("cuda"), mask.to("cuda")

        def packed(rows: Any) -> tuple[Any, Any]:
            return densify(torch, pack(store, rows), schema, torch.device("cuda"))

        for rows in chunks[:: max(len(chunks) // 8, 1)]:
            for one, other in zip(dense(rows), packed(rows), strict=True):
                assert torch.equal(one, other), "what travels packed arrives otherwise"

        def over(way: Callable[[Any], object], chunks: list[Any] = chunks) -> Callable[[], None]:
            def all_chunks() -> None:
                for rows in chunks:
                    way(rows)

            return all_chunks

        slow, quick = rate(over(dense), torch), rate(over(packed), torch)
        bytes_packed = (store.values.nbytes + store.offsets.nbytes + store.counts.nbytes) / EVENTS
        print(f"| {size} | {slow:,.0f} | {quick:,.0f} | {quick / slow:.2f} | {5 * schema.idim} / {bytes_packed:.0f} |")


def feed(store: Any, schema: Schema, batch: int) -> Feed:
    """The store's events as the adapters take them."""
    labels = np.random.default_rng(2).integers(0, 2, EVENTS)
    return Feed(Batches(store, schema, [np.arange(EVENTS)], batch_size=batch), labels)


def matrices(store: Any, schema: Schema) -> tuple[Any, Any]:
    """All input vectors, and their labels."""
    values = np.empty((EVENTS, schema.idim), np.float32)
    Gatherer(schema).gather(store, np.arange(EVENTS), values, np.empty(values.shape, np.bool_))
    return values, np.random.default_rng(2).integers(0, 2, EVENTS)[:, None].astype(np.float32)


def with_torch(torch: Any, batch: int) -> tuple[float, float]:
    """Rates of a plain loop and of the adapter, for a module of PyTorch."""
    from mlaas4hep.training.torch_adapter import TorchAdapter
    from mlaas4hep.training.user_model import UserModel

    def module() -> Any:
        linear, relu = torch.nn.Linear, torch.nn.ReLU
        return torch.nn.Sequential(linear(schema.idim, 128), relu(), linear(128, 64), relu(), linear(64, 1))

    store, schema = events()
    values, labels = matrices(store, schema)
    network = module().cuda()
    optimizer, loss = torch.optim.Adam(network.parameters()), torch.nn.BCEWithLogitsLoss()
    data = torch.utils.data.TensorDataset(torch.from_numpy(values), torch.from_numpy(labels))
    order = torch.utils.data.BatchSampler(torch.utils.data.RandomSampler(data), batch, drop_last=False)
    loader = torch.utils.data.DataLoader(data, sampler=order, batch_size=None, pin_memory=True)

    def plain() -> None:
        for inputs, targets in loader:
            optimizer.zero_grad(set_to_none=True)
            loss(network(inputs.cuda(non_blocking=True)), targets.cuda(non_blocking=True)).backward()
            optimizer.step()

    adapter = TorchAdapter(module(), TASK, UserModel(Path("model.py"), ModuleType("model")))
    feeding = feed(store, schema, batch)
    adapter.check(values[:2], np.zeros(values[:2].shape, np.bool_))
    return rate(plain, torch), rate(lambda: adapter.fit_epoch(feeding, 0, lambda done: None), torch)


def with_keras(torch: Any, batch: int) -> tuple[float, float]:
    """Rates of `fit` and of the adapter, for a model of Keras on the backend of this process."""
    from mlaas4hep.training.keras_adapter import KerasAdapter, start_keras

    keras = start_keras()

    def model() -> Any:
        dense = keras.layers.Dense
        layers = [dense(128, activation="relu"), dense(64, activation="relu"), dense(1, activation="sigmoid")]
        network = keras.Sequential([keras.Input((schema.idim,)), *layers])
        network.compile("adam", "binary_crossentropy")
        return network

    store, schema = events()
    values, labels = matrices(store, schema)
    plain, adapter = model(), KerasAdapter(model(), TASK, Path())
    adapter.check(values[:2], np.zeros(values[:2].shape, np.bool_))
    feeding = feed(store, schema, batch)
    return (
        rate(lambda: plain.fit(values, labels, batch_size=batch, verbose=0), torch),
        rate(lambda: adapter.fit_epoch(feeding, 0, lambda done: None), torch),
    )


def measure(way: str) -> None:
    """One way, in this process; prints JSON."""
    import torch

    train = with_torch if way == "torch" else with_keras
    print(json.dumps({batch: train(torch, batch) for batch in BATCHES}))


def main(ways: list[str]) -> None:
    """Measure transfer, then each way in a process of its own, and print Markdown."""
    import torch

    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, {EVENTS} events\n")
    transfer(torch)
    print("\n| framework | batch | plain, 1/s | here, 1/s | ratio |\n|---|--:|--:|--:|--:|")
    for way in ways or WAYS:
        environment = {**os.environ, "KERAS_BACKEND": way.partition(":")[2] or "torch", "GPU_WAY": way}
        environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        done = subprocess.run([sys.executable, __file__], env=environment, stdout=subprocess.PIPE, check=True)
        for batch, (plain, here) in json.loads(done.stdout.splitlines()[-1]).items():
            print(f"| {way} | {batch} | {plain:,.0f} | {here:,.0f} | {here / plain:.2f} |", flush=True)


if __name__ == "__main__":
    if way := os.environ.get("GPU_WAY"):
        measure(way)
    else:
        main(sys.argv[1:])
