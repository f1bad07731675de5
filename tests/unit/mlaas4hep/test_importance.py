"""The importance of inputs by permutation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mlaas4hep.training.contract import Chunk, Task
from mlaas4hep.training.importance import permutation_importance, sample, score_of
from mlaas4hep.training.metrics import roc_area

SLICES = {"noise": slice(0, 1), "signal": slice(1, 2), "Muon_pt": slice(2, 5)}


def events(count: int, *, idim: int = 5, seed: int = 1, weights=None) -> Chunk:
    """Events whose class follows from the second column and from how many of the last three columns are filled."""
    generator = np.random.default_rng(seed)
    values = generator.random((count, idim), dtype=np.float32)
    filled = generator.integers(0, 4, count)
    mask = np.zeros((count, idim), dtype=bool)
    mask[:, 2:5] = np.arange(3) >= filled[:, None]
    targets = (values[:, 1] + 0.2 * filled > 0.8).astype(np.int64)
    return Chunk(np.arange(count), values, mask, targets, weights)


def predict(values, mask):
    score = values[:, 1] + 0.2 * (3 - mask[:, 2:5].sum(axis=1))
    return np.stack([1 - score, score], axis=1).astype(np.float64)


def area(targets, predictions, weights) -> float:
    return roc_area(targets == 1, predictions[:, 1]).value


def by_name(found):
    return {importance.name: importance for importance in found}


def test_what_the_model_relies_on_comes_first_and_noise_is_worth_nothing() -> None:
    found = permutation_importance(predict, events(2000), SLICES, area)
    assert [importance.name for importance in found][-1] == "noise"
    assert by_name(found)["noise"].mean == 0.0
    assert by_name(found)["signal"].mean > 0.1


def test_a_branch_is_permuted_with_its_mask() -> None:
    assert by_name(permutation_importance(predict, events(2000), SLICES, area))["Muon_pt"].mean > 0.05


def test_all_columns_of_a_branch_come_from_the_same_event() -> None:
    seen = []

    def spy(values, mask):
        seen.append((values.copy(), mask.copy()))
        return predict(values, mask)

    chunk = events(300)
    permutation_importance(spy, chunk, {"Muon_pt": SLICES["Muon_pt"]}, area, repeats=1)
    original = np.concatenate([chunk.values, chunk.mask], axis=1)
    values, mask = seen[-1]
    assert (values[:, :2] == chunk.values[:, :2]).all()
    rows = {tuple(row) for row in original[:, [2, 3, 4, 7, 8, 9]]}
    assert {tuple(row) for row in np.concatenate([values, mask], axis=1)[:, [2, 3, 4, 7, 8, 9]]} == rows
    assert (values != chunk.values).any()


def test_it_is_the_mean_loss_with_its_standard_deviation() -> None:
    outcomes = iter([0.9, 0.8, 0.7, 0.6])
    found = permutation_importance(predict, events(50), {"signal": slice(1, 2)}, lambda *_: next(outcomes), repeats=3)
    assert found[0].mean == pytest.approx(0.2)
    assert found[0].deviation == pytest.approx(0.1)


def test_a_single_repeat_has_no_deviation() -> None:
    found = permutation_importance(predict, events(50), SLICES, area, repeats=1)
    assert all(math.isnan(importance.deviation) for importance in found)


def test_the_same_seed_gives_the_same_numbers_and_the_events_stay_as_they_were() -> None:
    chunk = events(400)
    before = chunk.values.copy(), chunk.mask.copy()
    first = permutation_importance(predict, chunk, SLICES, area, seed=7)
    assert permutation_importance(predict, chunk, SLICES, area, seed=7) == first
    assert permutation_importance(predict, chunk, SLICES, area, seed=8) != first
    assert (chunk.values == before[0]).all() and (chunk.mask == before[1]).all()


def test_a_loss_counts_by_how_much_it_grows() -> None:
    chunk = events(500)

    def negative_loss(targets, predictions, weights) -> float:
        return -float(np.mean((predictions[:, 1] - chunk.values[:, 1]) ** 2))

    found = permutation_importance(predict, chunk, {"signal": slice(1, 2)}, negative_loss)
    assert found[0].mean > 0


def test_weights_reach_the_score() -> None:
    chunk = events(6000, weights=np.arange(6000, dtype=np.float32))
    sizes = set()

    def weighted(targets, predictions, weights) -> float:
        sizes.add(weights.size)
        assert (weights == chunk.weights[np.arange(5000) * 6000 // 5000]).all()
        return 0.0

    permutation_importance(predict, chunk, SLICES, weighted)
    assert sizes == {5000}


class Pieces:
    """A feed of given events in chunks of a given size, in buffers that are used again."""

    def __init__(self, chunk: Chunk, size: int) -> None:
        self.chunk, self.size, self.events = chunk, size, chunk.targets.size

    def chunks(self, epoch: int):
        values, mask = np.empty_like(self.chunk.values[: self.size]), np.empty_like(self.chunk.mask[: self.size])
        for start in range(0, self.events, self.size):
            piece = slice(start, start + self.size)
            rows = self.chunk.rows[piece]
            values[: rows.size], mask[: rows.size] = self.chunk.values[piece], self.chunk.mask[piece]
            weights = self.chunk.weights[piece]
            yield Chunk(rows, values[: rows.size], mask[: rows.size], self.chunk.targets[piece], weights)


@pytest.mark.parametrize("size", [700, 12_000])
def test_a_sample_takes_events_at_equal_distances_whatever_the_chunks(size: int) -> None:
    chunk = events(12_000, weights=np.arange(12_000, dtype=np.float32))
    found = sample(Pieces(chunk, size))
    assert found.rows.tolist() == list(range(0, 12_000, 3))
    assert (found.values == chunk.values[::3]).all() and (found.mask == chunk.mask[::3]).all()
    assert (found.targets == chunk.targets[::3]).all() and (found.weights == chunk.weights[::3]).all()


def test_classes_are_scored_by_the_area_and_values_by_the_negative_error() -> None:
    targets = np.array([0, 1, 0, 1], dtype=np.int8)
    perfect = np.eye(2)[targets]
    assert score_of(Task("classification", ("b", "s")))(targets, perfect, None) == 1.0
    assert score_of(Task("regression"))(np.array([1.0, 2.0]), np.array([[1.0], [4.0]]), None) == -2.0


def test_many_inputs_take_fewer_events() -> None:
    width = 2000
    chunk = Chunk(
        np.arange(1000),
        np.zeros((1000, width), dtype=np.float32),
        np.zeros((1000, width), dtype=bool),
        np.zeros(1000, dtype=np.int64),
    )
    sizes = set()

    def model(values, mask):
        sizes.add(len(values))
        return np.zeros((len(values), 1))

    slices = {f"x{number}": slice(number, number + 1) for number in range(width)}
    permutation_importance(model, chunk, slices, lambda *_: 0.0, repeats=1)
    assert sizes == {500}


def test_a_score_that_is_not_a_number_comes_last() -> None:
    outcomes = iter([0.9, float("nan"), 0.5])
    found = permutation_importance(
        predict,
        events(50),
        {"noise": slice(0, 1), "signal": slice(1, 2)},
        lambda *_: next(outcomes),
        repeats=1,
    )
    assert [importance.name for importance in found] == ["signal", "noise"]
