"""Which inputs a model relies on: how much worse it is when one of them is shuffled among the events.

The importance is that of Breiman (Machine Learning 45, 2001) as Fisher, Rudin and Dominici (JMLR 20, 2019) generalise
it to any model. A branch is permuted as a whole, all its columns with their mask, so that an event gets the complete
list of another event. Inputs that say the same thing share their importance: each is of little use beside the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlaas4hep.training.contract import Chunk, Feed, Task
from mlaas4hep.training.metrics import macro_area, mean_squared_error

Predict = Callable[[NDArray[np.float32], NDArray[np.bool_]], NDArray[np.float64]]
Score = Callable[[NDArray[Any], NDArray[np.float64], "NDArray[np.float32] | None"], float]

_EVENTS = 5_000
_FEWEST_EVENTS = 500
_CELLS = 2_000_000_000
"""Most values that pass through the model: repeats x features x events x idim."""


@dataclass(frozen=True)
class Importance:
    """What the model loses without one input.

    Attributes:
        name: the flat column or jagged branch.
        mean: mean loss of the score over the repeats; about 0, of either sign, for an input of no use.
        deviation: standard deviation of the loss over the repeats; NaN for a single one.
    """

    name: str
    mean: float
    deviation: float


def permutation_importance(
    predict: Predict,
    chunk: Chunk,
    slices: Mapping[str, slice],
    score: Score,
    *,
    repeats: int = 3,
    seed: int = 0,
) -> list[Importance]:
    """The importance of each input, the greatest first.

    At most 5,000 events are used, taken at equal distances, and fewer (but 500) where the model has very many inputs.
    The chunk is not changed.

    Args:
        predict: the model; takes values and mask of shape (n, idim), returns predictions of shape (n, width).
        chunk: events that the model was not trained on.
        slices: the columns of each input: `Schema.slices`.
        score: of targets (n,), predictions (n, width) and weights (n,) or None; larger is better. For a regression
            give a negative error, so that the importance is by how much it grows: `score_of`.
        repeats: permutations of each input.
        seed: of the permutations.
    """
    rows = _chosen(chunk.targets.size, len(slices) * repeats * chunk.values.shape[1])
    values, mask, targets = chunk.values[rows], chunk.mask[rows], chunk.targets[rows]
    weights = None if chunk.weights is None else chunk.weights[rows]
    best = score(targets, predict(values, mask), weights)
    generator = np.random.default_rng(seed)
    found = []
    for name, columns in slices.items():
        kept_values, kept_mask = values[:, columns].copy(), mask[:, columns].copy()
        losses = []
        for _ in range(repeats):
            order = generator.permutation(rows.size)
            values[:, columns], mask[:, columns] = kept_values[order], kept_mask[order]
            losses.append(best - score(targets, predict(values, mask), weights))
        values[:, columns], mask[:, columns] = kept_values, kept_mask
        spread = float(np.std(losses, ddof=1)) if repeats > 1 else float("nan")
        found.append(Importance(name, float(np.mean(losses)), spread))
    return sorted(found, key=lambda importance: -np.nan_to_num(importance.mean, nan=-np.inf))


def sample(feed: Feed) -> Chunk:
    """Up to 5,000 events of a feed, taken at equal distances, in arrays of their own."""
    stride = max(-(-feed.events // _EVENTS), 1)
    pieces, before = [], 0
    for chunk in feed.chunks(0):
        chosen = slice(-before % stride, None, stride)
        weights = None if chunk.weights is None else chunk.weights[chosen]
        pieces.append(
            (chunk.rows[chosen], chunk.values[chosen].copy(), chunk.mask[chosen].copy(), chunk.targets[chosen], weights)
        )
        before += chunk.rows.size
    rows, values, mask, targets, heavy = zip(*pieces, strict=True)
    weights = None if heavy[0] is None else np.concatenate(heavy)
    return Chunk(np.concatenate(rows), np.concatenate(values), np.concatenate(mask), np.concatenate(targets), weights)


def score_of(task: Task) -> Score:
    """The AUC (the mean over the classes where there are more than two), or the negative mean squared error."""
    return _negative_error if task.kind == "regression" else _area


def _area(targets: NDArray[Any], predictions: NDArray[np.float64], weights: NDArray[np.float32] | None) -> float:
    return macro_area(targets.astype(np.int64), predictions, weights).value


def _negative_error(
    targets: NDArray[Any], predictions: NDArray[np.float64], weights: NDArray[np.float32] | None
) -> float:
    return -mean_squared_error(targets, predictions[:, 0], weights)


def _chosen(events: int, cells_an_event: int) -> NDArray[np.int64]:
    """The rows to use, at equal distances."""
    affordable = max(_CELLS // max(cells_an_event, 1), _FEWEST_EVENTS)
    wanted = min(events, _EVENTS, affordable)
    return np.arange(wanted, dtype=np.int64) * events // max(wanted, 1)
