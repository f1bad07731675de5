"""Events of arrays as an adapter is fed them, and some to learn from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlaas4hep.training.contract import Chunk


@dataclass
class ArrayFeed:
    """A `Feed` without a store. Like the real one, it hands out views of buffers that the next chunk overwrites."""

    values: NDArray[np.float32]
    mask: NDArray[np.bool_]
    targets: NDArray[Any]
    weights: NDArray[np.float32] | None = None
    chunk: int = 100
    batch_size: int = 50

    @property
    def events(self) -> int:
        return len(self.targets)

    def chunks(self, epoch: int) -> Iterator[Chunk]:
        values = np.empty((self.chunk, self.values.shape[1]), dtype=np.float32)
        mask = np.empty(values.shape, dtype=np.bool_)
        for start in range(0, self.events, self.chunk):
            rows = np.arange(start, min(start + self.chunk, self.events))
            values[: rows.size], mask[: rows.size] = self.values[rows], self.mask[rows]
            weights = None if self.weights is None else self.weights[rows]
            yield Chunk(rows, values[: rows.size], mask[: rows.size], self.targets[rows], weights)

    def all(self) -> Chunk:
        return Chunk(np.arange(self.events), self.values, self.mask, self.targets, self.weights)


def blobs(events: int = 600, classes: int = 2, seed: int = 1, **more: Any) -> ArrayFeed:
    """Classes whose two inputs have different means, and a third input that is missing in every other event."""
    generator = np.random.default_rng(seed)
    targets = np.arange(events) % classes
    values = generator.normal(size=(events, 3)).astype(np.float32)
    values[:, :2] += 1.5 * np.stack([np.cos(2 * np.pi * targets / classes), np.sin(2 * np.pi * targets / classes)], 1)
    mask = np.zeros(values.shape, dtype=np.bool_)
    mask[::4, 2] = mask[1::4, 2] = True
    values[mask] = 0.0
    return ArrayFeed(values, mask, targets, **more)


def slope(events: int = 600, seed: int = 1, **more: Any) -> ArrayFeed:
    """Values of a regression, 3 times the first input and a little noise."""
    feed = blobs(events, seed=seed, **more)
    feed.targets = 3.0 * feed.values[:, 0].astype(np.float64) + np.random.default_rng(seed).normal(size=events) * 0.1
    return feed


def hidden_by_absence(events: int = 400) -> ArrayFeed:
    """Two classes that differ only in whether the second input is there; missing values are filled with its mean."""
    targets = np.arange(events) % 2
    values = np.random.default_rng(3).normal(size=(events, 2)).astype(np.float32)
    mask = np.zeros(values.shape, dtype=np.bool_)
    mask[targets == 1, 1] = True
    values[:, 1] = 0.0
    return ArrayFeed(values, mask, targets)
