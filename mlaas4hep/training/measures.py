"""What is measured of a model on some events, by definition and independently of the framework."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlaas4hep.training.contract import Adapter, Feed, Task
from mlaas4hep.training.metrics import confusion, decide, macro_area, mean_absolute_error, mean_squared_error, r_squared


@dataclass(frozen=True)
class Scored:
    """A model's predictions of some events.

    Attributes:
        rows: shape (n,), rows of the store.
        targets: shape (n,), class numbers or values.
        predictions: shape (n, width), probabilities or values.
        weights: shape (n,), or None where all are 1.
        loss: mean of the model's own loss.
    """

    rows: NDArray[np.int64]
    targets: NDArray[Any]
    predictions: NDArray[np.float64]
    weights: NDArray[np.float32] | None
    loss: float


def score(adapter: Adapter, feed: Feed) -> Scored:
    """Predict all events of a feed."""
    losses, sums, pieces = [], [], []
    for chunk in feed.chunks(0):
        loss, predictions = adapter.evaluate(chunk)
        losses.append(loss)
        sums.append(chunk.rows.size)
        pieces.append((chunk.rows, chunk.targets, predictions, chunk.weights))
    rows, targets, predictions, weights = zip(*pieces, strict=True)
    return Scored(
        rows=np.concatenate(rows),
        targets=np.concatenate(targets),
        predictions=np.concatenate(predictions),
        weights=None if weights[0] is None else np.concatenate(weights),
        loss=float(np.dot(losses, sums) / sum(sums)),
    )


def measures(scored: Scored, task: Task, threshold: float) -> dict[str, Any]:
    """For metrics.json: loss, and AUC with its error, accuracy and confusion, or the errors of a regression.

    NaN, which JSON lacks, becomes None.
    """
    found: dict[str, Any] = {"loss": scored.loss, "events": int(scored.targets.size)}
    if task.kind == "regression":
        found |= _of_values(scored)
    else:
        found |= _of_classes(scored, len(task.classes), threshold)
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in found.items()}


def _of_classes(scored: Scored, classes: int, threshold: float) -> dict[str, Any]:
    targets = scored.targets.astype(np.int64)
    area = macro_area(targets, scored.predictions, scored.weights)
    decisions = decide(scored.predictions, threshold)
    return {
        "auc": area.value,
        "auc_error": area.error,
        "accuracy": float((decisions == targets).mean()),
        "confusion": confusion(targets, decisions, classes).tolist(),
    }


def _of_values(scored: Scored) -> dict[str, float]:
    values = scored.predictions[:, 0]
    return {
        "mse": mean_squared_error(scored.targets, values, scored.weights),
        "mae": mean_absolute_error(scored.targets, values, scored.weights),
        "r2": r_squared(scored.targets, values, scored.weights),
    }
