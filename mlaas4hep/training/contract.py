"""Between an experiment and a framework: the task, the events as they are fed, and what an adapter does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from mlaas4hep.data.batches import Batches

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Task:
    """What is learned.

    Attributes:
        kind: `classification` or `regression`.
        classes: names of the classes, in the order of the probabilities; empty for a regression.
    """

    kind: Literal["classification", "regression"]
    classes: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """Columns of a prediction: a probability a class, or one value."""
        return len(self.classes) or 1


@dataclass(frozen=True)
class Chunk:
    """Some events as an adapter takes them; the arrays may be views that the next chunk overwrites.

    Attributes:
        rows: shape (n,), int64, rows of the store.
        values: shape (n, idim), float32, the scaled input vectors.
        mask: shape (n, idim), bool, True where there is no value.
        targets: shape (n,), int64 class numbers, or float64 values of a regression.
        weights: shape (n,), float32, the weight of each event in the loss; None where all are 1.
    """

    rows: NDArray[np.int64]
    values: NDArray[np.float32]
    mask: NDArray[np.bool_]
    targets: NDArray[Any]
    weights: NDArray[np.float32] | None = None


class Feed:
    """The events of one part of a store with their targets and weights.

    Args:
        batches: the events in order.
        targets: shape (events of the store,), by row.
        weights: shape (events of the store,), by row, or None.
    """

    def __init__(self, batches: Batches, targets: NDArray[Any], weights: NDArray[np.float32] | None = None) -> None:
        self.batches = batches
        self._targets = targets
        self._weights = weights

    @property
    def events(self) -> int:
        """Number of events."""
        return self.batches.events

    @property
    def batch_size(self) -> int:
        """Events a step."""
        return self.batches.batch_size

    def chunks(self, epoch: int) -> Iterator[Chunk]:
        """The events of an epoch (from 0), in its order, a whole number of batches at a time but for the last."""
        for piece in self.batches.chunks(epoch):
            targets, weights = self.answers(piece.rows)
            yield Chunk(piece.rows, piece.values, piece.mask, targets, weights)

    def answers(self, rows: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
        """Targets and weights of some rows, as a `Chunk` has them."""
        return self._targets[rows], None if self._weights is None else self._weights[rows]


class Adapter(Protocol):
    """A model of one framework, ready to be trained.

    Attributes:
        framework: `keras`, `torch`, `sklearn` or `xgboost`.
        native: the framework's own object.
        takes_mask: whether the model is fed the mask beside the values.
        size: number of trained weights, 0 where there is no such number.
    """

    framework: str
    native: Any
    takes_mask: bool
    size: int

    def check(self, values: NDArray[np.float32], mask: NDArray[np.bool_]) -> None:
        """Learn the model's output from a few events; raises UsageError for one that does not fit the task."""

    def fit_epoch(self, feed: Feed, epoch: int, progress: Progress) -> bool:
        """Train on each event once, telling the number of events done.

        Returns whether another epoch makes sense: False for an estimator that is fitted in one go.
        Raises MlaasError when the loss is no longer finite, or when the user's code fails.
        """

    def evaluate(self, chunk: Chunk) -> tuple[float, NDArray[np.float64]]:
        """Mean of the model's own loss, and its predictions, shape (n, width): probabilities, or values."""

    def predict(self, values: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Predictions, shape (n, width)."""

    def save(self, folder: Path) -> str:
        """Write the trained model in the framework's own format; returns the file's name in the folder."""

    def save_state(self, folder: Path) -> None:
        """Write all that the next epoch depends on: weights, optimizer, random state."""

    def load_state(self, folder: Path) -> None:
        """Take up what `save_state` wrote; training then goes on as if it had never stopped."""
