"""The measures against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mlaas4hep.training.metrics import confusion, decide, macro_area, roc_area


def by_definition(positive, scores) -> float:
    """Every signal event against every background event."""
    pairs = [(s > b) + 0.5 * (s == b) for s in scores[positive] for b in scores[~positive]]
    return sum(pairs) / len(pairs)


@pytest.mark.parametrize("digits", [1, 9])
def test_the_area_is_the_probability_that_signal_scores_higher(digits: int) -> None:
    generator = np.random.default_rng(3)
    positive = generator.random(120) < 0.4
    scores = np.round(generator.normal(positive * 0.8, 1.0), digits)
    assert roc_area(positive, scores).value == pytest.approx(by_definition(positive, scores))


def test_its_error_is_the_spread_over_repeated_samples() -> None:
    generator = np.random.default_rng(4)
    positive = np.arange(400) < 200
    areas = [roc_area(positive, generator.normal(positive * 1.0, 1.0)) for _ in range(400)]
    spread = np.std([area.value for area in areas])
    assert np.mean([area.error for area in areas]) == pytest.approx(spread, rel=0.1)


def test_perfect_and_missing_classes() -> None:
    scores = np.array([0.1, 0.2, 0.8, 0.9])
    assert roc_area(scores > 0.5, scores).value == 1.0
    assert math.isnan(roc_area(np.ones(4, dtype=bool), scores).value)


def test_three_classes_count_alike() -> None:
    targets = np.array([0, 1, 2, 2])
    assert macro_area(targets, np.eye(3)[targets]).value == 1.0


def test_decisions_and_their_confusion() -> None:
    two = np.array([[0.7, 0.3], [0.4, 0.6], [0.55, 0.45]])
    assert decide(two, 0.4).tolist() == [0, 1, 1]
    assert decide(np.array([[0.2, 0.3, 0.5]]), 0.4).tolist() == [2]
    assert confusion(np.array([0, 1, 0]), decide(two, 0.4), 2).tolist() == [[1, 1], [0, 1]]
