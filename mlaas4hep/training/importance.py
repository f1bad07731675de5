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

from mlaas4hep.training.contract import Chunk

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
            give the negative loss, so that the importance is by how much the loss grows.
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


def _chosen(events: int, cells_an_event: int) -> NDArray[np.int64]:
    """The rows to use, at equal distances."""
    affordable = max(_CELLS // max(cells_an_event, 1), _FEWEST_EVENTS)
    wanted = min(events, _EVENTS, affordable)
    return np.arange(wanted, dtype=np.int64) * events // max(wanted, 1)
