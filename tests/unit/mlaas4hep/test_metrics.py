"""The measures against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mlaas4hep.training.metrics import (
    classification_report,
    confusion,
    decide,
    log_loss,
    macro_area,
    mean_absolute_error,
    mean_squared_error,
    r_squared,
    roc_area,
    roc_curve,
    weighted_confusion,
)


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


def test_a_weight_of_two_counts_like_the_event_twice() -> None:
    generator = np.random.default_rng(5)
    positive = generator.random(200) < 0.5
    scores = np.round(generator.normal(positive * 0.8, 1.0), 1)
    weights = generator.integers(1, 4, 200)
    repeated = np.repeat(positive, weights), np.repeat(scores, weights)
    assert roc_area(positive, scores, weights).value == pytest.approx(roc_area(*repeated).value)
    weighted, unweighted = roc_curve(positive, scores, weights), roc_curve(*repeated)
    assert weighted.true_positive == pytest.approx(unweighted.true_positive)
    assert weighted.false_positive == pytest.approx(unweighted.false_positive)


def test_the_error_with_weights_is_the_spread_over_repeated_samples() -> None:
    generator = np.random.default_rng(6)
    positive = np.arange(400) < 200
    weights = generator.exponential(1.0, (400, 400))
    areas = [roc_area(positive, generator.normal(positive * 1.0, 1.0), weights[i]) for i in range(400)]
    spread = np.std([area.value for area in areas])
    assert np.mean([area.error for area in areas]) == pytest.approx(spread, rel=0.1)


def test_the_area_under_the_points_of_the_curve_is_the_area() -> None:
    generator = np.random.default_rng(7)
    positive = generator.random(300) < 0.3
    scores = np.round(generator.normal(positive * 0.8, 1.0), 1)
    curve = roc_curve(positive, scores)
    area = np.trapezoid(curve.true_positive, curve.false_positive)
    assert area == pytest.approx(roc_area(positive, scores).value)
    cut = curve.threshold[5]
    assert curve.true_positive[5] == pytest.approx((scores[positive] >= cut).mean())
    assert (curve.true_positive[0], curve.false_positive[0], curve.threshold[0]) == (0.0, 0.0, math.inf)


def test_log_loss_is_the_mean_of_the_surprise() -> None:
    probabilities = np.array([[0.75, 0.25], [0.5, 0.5]])
    targets = np.array([0, 1])
    assert log_loss(targets, probabilities) == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)
    assert log_loss(targets, probabilities, np.array([3.0, 1.0])) == pytest.approx(
        (3 * math.log(4 / 3) + math.log(2)) / 4
    )
    assert math.isfinite(log_loss(np.array([1]), np.array([[1.0, 0.0]])))


def test_errors_of_a_regression() -> None:
    targets, values = np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.5, 2.0])
    assert mean_squared_error(targets, values) == pytest.approx(1.25 / 3)
    assert mean_absolute_error(targets, values) == pytest.approx(0.5)
    assert r_squared(targets, values) == pytest.approx(1 - 1.25 / 2)
    assert mean_squared_error(targets, values, np.array([1.0, 1.0, 0.0])) == pytest.approx(0.125)
    assert r_squared(targets, np.full(3, 2.0)) == pytest.approx(0.0)
    assert math.isnan(r_squared(np.ones(3), values))


def test_precision_recall_and_f1_of_each_class() -> None:
    first, second, third = classification_report(np.array([[3, 1, 0], [2, 4, 0], [0, 0, 0]]))
    assert (first.precision, first.recall, first.events) == (0.6, 0.75, 4)
    assert first.f1 == pytest.approx(2 * 0.6 * 0.75 / 1.35)
    assert second.precision == 0.8
    assert math.isnan(third.precision)
    assert math.isnan(third.recall)


def test_a_weighted_confusion_sums_the_weights() -> None:
    cells = weighted_confusion(np.array([0, 1, 1]), np.array([0, 0, 1]), 2, np.array([0.5, 2.0, 3.0]))
    assert cells.tolist() == [[0.5, 0.0], [2.0, 3.0]]
