"""Targets: what each event is to be recognised as, and how much it counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlaas4hep.data.split import Part
from mlaas4hep.data.store import PackedStore
from mlaas4hep.errors import MlaasError, UsageError
from mlaas4hep.names import listing
from mlaas4hep.training.contract import Task
from mlaas4hep.training.parameters import Parameters
from mlaas4hep.training.workflow import Labels

_MOST_CLASSES = 100


@dataclass(frozen=True)
class Targets:
    """The task, and the target of each row of a store.

    Attributes:
        task: classes, or regression.
        values: shape (events,): class numbers in a small integer type, or float64 values of a regression.
        weights: shape (events,), float32, for the loss; None where all are 1. Their mean size is 1, so that the
            learning rate means the same with small and with large weights.
        measured: the same for the measures, without the balance of the classes.
    """

    task: Task
    values: NDArray[Any]
    weights: NDArray[np.float32] | None
    measured: NDArray[np.float32] | None


def make_targets(store: PackedStore, labels: Labels, parameters: Parameters) -> Targets:
    """The classes in sorted order, by number where all labels are numbers, and each row's class; or values to learn.

    Raises UsageError for fewer than two classes, for a label branch that does not hold classes, and for labels by file
    in a regression; MlaasError when a part of the events lacks a class.
    """
    if parameters.task == "regression":
        if store.labels is None:
            raise _no_values()
        weights = _normalised(store.weights)
        return Targets(Task("regression"), store.labels, weights, weights)
    if store.labels is None:
        classes, numbers = _classes_by_file(store, labels, parameters)
    else:
        classes, numbers = _classes_of_branch(store.labels, labels.branch)
    weights = measured = _normalised(store.weights)
    if parameters.class_weight == "balanced":
        weights = _normalised(_balanced(numbers, len(classes), weights))
    return Targets(Task("classification", classes), numbers, weights, measured)


def classes_of_files(texts: Sequence[str], parameters: Parameters) -> tuple[str, ...]:
    """The classes of labels by file, in their order.

    Args:
        texts: the label of each file that has events.
        parameters: the task.

    Raises UsageError for a regression, for a single class and for too many.
    """
    if parameters.task == "regression":
        raise _no_values()
    classes = tuple(sorted(set(texts), key=_label_order))
    if len(classes) > _MOST_CLASSES:
        raise UsageError(f"The files have {len(classes)} different labels.", f"At most {_MOST_CLASSES} are told apart.")
    return _several(classes)


def check_parts(store: PackedStore, targets: Targets) -> None:
    """Raise MlaasError unless there are events of every class to train, to validate and to test."""
    for part in Part:
        chosen = store.parts == part
        counts = np.bincount(targets.values[chosen], minlength=targets.task.width) if targets.task.classes else [0]
        empty = [name for name, count in zip(targets.task.classes, counts, strict=False) if not count]
        what = f"event of the class {listing(empty)}" if empty else "event"
        if empty or not chosen.any():
            raise MlaasError(
                f"No {what} is left for {part.name.lower()}.", "Read more events (nevts), or change split or folds."
            )


def _classes_by_file(
    store: PackedStore, labels: Labels, parameters: Parameters
) -> tuple[tuple[str, ...], NDArray[Any]]:
    texts = [labels.by_source[file.number] for file in store.facts.files]
    classes = classes_of_files(texts, parameters)
    by_file = np.array([classes.index(text) for text in texts], dtype=np.int8)
    return classes, np.repeat(by_file, [file.stop - file.start for file in store.facts.files])


def _classes_of_branch(labels: NDArray[np.float64], name: str) -> tuple[tuple[str, ...], NDArray[Any]]:
    values, numbers = np.unique(labels, return_inverse=True)
    if values.size > _MOST_CLASSES:
        raise UsageError(
            f"The label branch {name} has {values.size} different values, too many for classes.",
            'Set "task": "regression" to learn its value.',
        )
    return _several(tuple(f"{value:g}" for value in values)), numbers.astype(np.int8)


def _several(classes: tuple[str, ...]) -> tuple[str, ...]:
    if len(classes) < 2:
        raise UsageError(f"All events have the label {classes[0]}.", "Training needs at least two classes.")
    return classes


def _no_values() -> UsageError:
    return UsageError("A regression needs its values in a branch.", "Give the name of the branch as labels.")


def _label_order(text: str) -> tuple[int, float, str]:
    try:
        return (0, float(text), text)
    except ValueError:
        return (1, 0.0, text)


def _balanced(numbers: NDArray[Any], classes: int, weights: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """Weights whose sum is the same for each class."""
    sums = np.bincount(numbers, weights=weights, minlength=classes)
    if (sums <= 0).any():
        raise MlaasError(
            "The weights of a class do not add up to a positive number, so classes cannot be balanced.",
            'Set "class_weight": "none".',
        )
    factors = (sums.sum() / (classes * sums)).astype(np.float32)
    balanced: NDArray[np.float32] = factors[numbers]
    return balanced if weights is None else balanced * weights


def _normalised(weights: NDArray[np.float32] | None) -> NDArray[np.float32] | None:
    """The weights divided by their mean size; negative ones, as simulations have them, stay negative."""
    if weights is None:
        return None
    size = float(np.abs(weights).mean(dtype=np.float64))
    if not size:
        raise MlaasError("The weights of all events are 0.", "Name another branch in weight.")
    return (weights / size).astype(np.float32)
