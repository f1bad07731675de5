"""What a network gives, and what is made of it: its width by the task, probabilities, values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlaas4hep.errors import MlaasError, UsageError
from mlaas4hep.training.contract import Task

_TOLERANCE = 1e-4


def width_of(output: NDArray[Any], task: Task, path: Path) -> int:
    """Number of outputs of the model; raises UsageError where they do not fit the task.

    Args:
        output: what the model gave for a few events, shape (n, outputs).
        task: what is learned.
        path: the user's file.
    """
    width = int(output.shape[-1]) if output.ndim == 2 else 0
    if task.kind == "regression":
        allowed, wanted = {1}, "A regression needs 1 output."
    elif task.width == 2:
        allowed, wanted = {1, 2}, "Training on 2 classes needs 1 or 2 outputs."
    else:
        allowed, wanted = {task.width}, f"Training on {task.width} classes needs {task.width} outputs."
    if width not in allowed:
        raise UsageError(f"{path}: the model's output has the shape {list(output.shape[1:])}.", wanted)
    return width


def probabilities(scores: NDArray[np.float64], path: Path, remedy: str) -> NDArray[np.float64]:
    """Class probabilities, shape (n, classes), of scores, shape (n, 1) or (n, classes).

    Raises MlaasError where they are not finite, UsageError with the remedy where they are not between 0 and 1.
    """
    _refuse_infinite(scores, path)
    if scores.size and (scores.min() < -_TOLERANCE or scores.max() > 1 + _TOLERANCE):
        raise UsageError(
            f"{path}: the model's outputs are no probabilities ({scores.min():.3g} to {scores.max():.3g}).", remedy
        )
    return np.concatenate([1.0 - scores, scores], axis=1) if scores.shape[1] == 1 else scores


def values_of(scores: NDArray[np.float64], path: Path) -> NDArray[np.float64]:
    """The values of a regression as they are; raises MlaasError where they are not finite."""
    _refuse_infinite(scores, path)
    return scores


def _refuse_infinite(scores: NDArray[np.float64], path: Path) -> None:
    if not np.isfinite(scores).all():
        raise MlaasError(f"The model {path} gives NaN or infinite outputs.", "Lower the learning rate.")


def identity(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """The scores as they are."""
    return scores


def sigmoid(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """The logistic function of each score."""
    return 1.0 / (1.0 + np.exp(-np.clip(scores, -700.0, 700.0)))


def softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Softmax over the columns, shape (n, classes)."""
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))
