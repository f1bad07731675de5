"""XGBoost: boosted over chunks, against its own in-memory training; tasks, rounds, early stopping, saving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xgboost

from mlaas4hep.errors import MlaasError, UsageError
from mlaas4hep.training import xgboost_adapter
from mlaas4hep.training.adapters import framework_of, load_adapter
from mlaas4hep.training.contract import Progress, Task
from mlaas4hep.training.metrics import macro_area
from mlaas4hep.training.xgboost_adapter import XgboostAdapter
from tests.unit.mlaas4hep.array_feed import ArrayFeed, blobs, hidden_by_absence, slope

TWO = Task("classification", ("background", "signal"))
THREE = Task("classification", ("a", "b", "c"))
VALUE = Task("regression")
SMALL: dict[str, Any] = {"n_estimators": 20, "max_depth": 3, "random_state": 0, "n_jobs": 1}


def trained(native: Any, feed: ArrayFeed, task: Task = TWO, validation: ArrayFeed | None = None) -> XgboostAdapter:
    adapter = XgboostAdapter(native, task, Path("model.py"))
    adapter.check(feed.values[:2], feed.mask[:2])
    adapter.validation = validation
    assert adapter.fit_epoch(feed, 0, lambda _: None) is False
    return adapter


def predictions(adapter: XgboostAdapter, feed: ArrayFeed) -> np.ndarray:
    return adapter.predict(feed.values, feed.mask)


def with_nan(feed: ArrayFeed) -> np.ndarray:
    return np.where(feed.mask, np.nan, feed.values)


@pytest.mark.parametrize("weighted", [False, True])
def test_boosting_over_chunks_equals_boosting_in_memory(weighted: bool) -> None:
    weights = np.linspace(0.1, 2.0, 600, dtype=np.float32) if weighted else None
    feed = blobs(weights=weights)
    adapter = trained(xgboost.XGBClassifier(**SMALL), feed)
    reference = xgboost.XGBClassifier(**SMALL).fit(with_nan(feed), feed.targets, sample_weight=weights)
    assert predictions(adapter, feed) == pytest.approx(reference.predict_proba(with_nan(feed)), abs=0.02)
    assert macro_area(feed.targets, predictions(adapter, feed)).value > 0.95


def test_with_too_little_memory_the_bins_are_on_disk_and_the_trees_the_same(monkeypatch, tmp_path: Path) -> None:
    feed = blobs()
    in_memory = trained(xgboost.XGBClassifier(**SMALL), feed)
    used = []
    real = xgboost.ExtMemQuantileDMatrix
    monkeypatch.setattr(xgboost, "ExtMemQuantileDMatrix", lambda *a, **k: used.append(1) or real(*a, **k))
    monkeypatch.setattr(xgboost_adapter, "available_memory", lambda: 1000.0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    on_disk = trained(xgboost.XGBClassifier(**SMALL), feed)
    assert used
    assert predictions(on_disk, feed) == pytest.approx(predictions(in_memory, feed), abs=1e-5)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("native", "task"),
    [
        (xgboost.XGBClassifier(**SMALL), THREE),
        (xgboost.XGBClassifier(**SMALL, objective="multi:softmax"), THREE),
        (xgboost.XGBRFClassifier(**SMALL), TWO),
        ({"max_depth": 3, "eta": 0.3, "n_estimators": 20, "nthread": 1}, TWO),
        ({"max_depth": 3, "n_estimators": 20, "nthread": 1, "objective": "binary:logitraw"}, TWO),
        ({"max_depth": 3, "n_estimators": 20, "nthread": 1}, THREE),
    ],
)
def test_classes_have_probabilities(native: Any, task: Task) -> None:
    assert framework_of(native) == "xgboost"
    adapter = trained(native, blobs(classes=task.width), task)
    unseen = blobs(classes=task.width, seed=2)
    found = predictions(adapter, unseen)
    assert found.shape == (600, task.width)
    assert found.sum(axis=1) == pytest.approx(1.0)
    assert macro_area(unseen.targets, found).value > 0.9


@pytest.mark.parametrize("native", [xgboost.XGBRegressor(**SMALL), {"n_estimators": 20, "nthread": 1}])
def test_a_regression_gives_values(native: Any) -> None:
    loss, found = trained(native, slope(), VALUE).evaluate(slope(seed=2).all())
    assert found.shape == (600, 1)
    assert loss < 1.0


def test_a_missing_value_is_not_its_fill() -> None:
    feed = hidden_by_absence()
    assert macro_area(feed.targets, predictions(trained(xgboost.XGBClassifier(**SMALL), feed), feed)).value == 1.0


def test_the_measures_of_each_round_are_kept_and_the_progress_counts_rounds() -> None:
    told: list[int] = []
    adapter = XgboostAdapter(xgboost.XGBClassifier(**SMALL | {"n_estimators": 4}), TWO, Path("model.py"))
    adapter.validation = blobs(seed=2)
    adapter.fit_epoch(blobs(), 0, told.append)
    assert [measures["round"] for measures in adapter.rounds] == [1, 2, 3, 4]
    assert set(adapter.rounds[0]) == {"round", "train_logloss", "validation_logloss"}
    assert adapter.rounds[-1]["train_logloss"] < adapter.rounds[0]["train_logloss"]
    assert adapter.evaluate(blobs(seed=2).all())[0] == pytest.approx(adapter.rounds[-1]["validation_logloss"], rel=1e-4)
    assert told == [150, 300, 450, 600, 600]


def test_early_stopping_keeps_the_best_round() -> None:
    native = xgboost.XGBClassifier(n_estimators=300, learning_rate=0.5, early_stopping_rounds=5, n_jobs=1)
    unseen = blobs(seed=2)
    adapter = trained(native, blobs(), validation=unseen)
    losses = [measures["validation_logloss"] for measures in adapter.rounds]
    best = int(np.argmin(losses))
    assert len(losses) == best + 6
    assert native.get_booster().num_boosted_rounds() == adapter.kept == best + 1
    assert adapter.evaluate(unseen.all())[0] == pytest.approx(min(losses), rel=1e-4)


@pytest.mark.parametrize(
    ("more", "task"),
    [
        ({}, THREE),
        ({"subsample": 0.5, "colsample_bytree": 0.7, "colsample_bynode": 0.7}, TWO),
        ({"num_parallel_tree": 3, "subsample": 0.5}, TWO),
        ({"booster": "dart", "rate_drop": 0.3}, TWO),
        ({"n_estimators": 200, "eta": 0.5, "early_stopping_rounds": 12, "subsample": 0.8}, TWO),
    ],
)
def test_boosting_that_was_cut_off_goes_on_to_the_same_trees(tmp_path: Path, more: dict[str, Any], task: Task) -> None:
    native = {"max_depth": 3, "n_estimators": 25, "seed": 4, "nthread": 1} | more

    def boosted(folder: Path, progress: Progress) -> XgboostAdapter:
        adapter = XgboostAdapter(dict(native), task, Path("model.py"))
        adapter.validation, adapter.checkpoints = blobs(classes=task.width, seed=2), folder
        adapter.fit_epoch(blobs(classes=task.width), 0, progress)
        return adapter

    def cut_off(done: int) -> None:
        if done > 0.09 * 600:
            raise KeyboardInterrupt

    told: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        boosted(tmp_path / "cut", lambda done: cut_off(done) if (tmp_path / "cut" / "epoch_0.ubj").exists() else None)
    after = boosted(tmp_path / "cut", told.append)
    undisturbed = boosted(tmp_path / "whole", lambda _: None)
    assert len(told) < len(undisturbed.rounds)
    assert after.native.save_raw("ubj") == undisturbed.native.save_raw("ubj")
    assert after.rounds == undisturbed.rounds


def test_early_stopping_needs_something_to_go_by() -> None:
    with pytest.raises(UsageError, match="early_stopping_rounds needs validation events"):
        trained({"early_stopping_rounds": 5}, blobs())


def test_the_users_estimator_is_fitted_afterwards() -> None:
    native = xgboost.XGBClassifier(**SMALL)
    adapter = trained(native, blobs())
    assert adapter.native is native
    assert native.predict_proba(with_nan(blobs())) == pytest.approx(predictions(adapter, blobs()), abs=1e-6)


def test_the_seed_of_the_workflow_decides_where_the_estimator_has_none() -> None:
    def found(seed: int) -> np.ndarray:
        np.random.seed(seed)
        return predictions(trained({"subsample": 0.5, "n_estimators": 5, "nthread": 1}, blobs()), blobs())

    assert np.array_equal(found(1), found(1))
    assert not np.array_equal(found(1), found(2))


@pytest.mark.parametrize("name", ["model", "checkpoint"])
def test_a_saved_model_predicts_the_same(name: str, tmp_path: Path) -> None:
    adapter = trained(xgboost.XGBClassifier(**SMALL), blobs(classes=3), THREE)
    if name == "model":
        file = tmp_path / adapter.save(tmp_path)
        again = load_adapter("xgboost", file, THREE, None, Path("model.py"))  # type: ignore[arg-type]
    else:
        adapter.save_state(tmp_path)
        again = XgboostAdapter(xgboost.XGBClassifier(**SMALL), THREE, Path("model.py"))
        again.load_state(tmp_path)
    unseen = blobs(classes=3, seed=2)
    assert np.array_equal(again.predict(unseen.values, unseen.mask), predictions(adapter, unseen))


def test_raw_scores_are_still_probabilities_after_loading(tmp_path: Path) -> None:
    adapter = trained({"objective": "binary:logitraw", "n_estimators": 5, "nthread": 1}, blobs())
    again = load_adapter("xgboost", tmp_path / adapter.save(tmp_path), TWO, None, Path("m.py"))  # type: ignore[arg-type]
    assert np.array_equal(again.predict(blobs().values, blobs().mask), predictions(adapter, blobs()))


def test_a_damaged_model_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.ubj"
    file.write_bytes(b"no model")
    with pytest.raises(MlaasError, match=r"model\.ubj cannot be loaded"):
        load_adapter("xgboost", file, TWO, None, Path("model.py"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("native", "task", "message"),
    [
        (xgboost.XGBRegressor(), TWO, "XGBRegressor, but the task is a classification"),
        (xgboost.XGBClassifier(), VALUE, "Return an XGBRegressor"),
        (xgboost.XGBRanker(), TWO, "model returned XGBRanker"),
        (xgboost.XGBClassifier(tree_method="exact"), TWO, "tree_method='exact' needs all events in memory"),
        (xgboost.XGBClassifier(booster="gblinear"), TWO, "booster='gblinear' needs all events in memory"),
        ({"n_estimators": 0}, TWO, "n_estimators=0 boosts nothing"),
        ({"objective": "binary:hinge"}, THREE, "gives no probabilities of 3 classes"),
        ({"objective": "rank:ndcg"}, TWO, "gives no probabilities of 2 classes"),
        ({"objective": "binary:logistic"}, VALUE, "tells classes apart"),
        (xgboost.XGBClassifier(eval_metric=lambda a, b: 0.0), TWO, "is a function"),
    ],
)
def test_what_does_not_fit_the_task_is_refused(native: Any, task: Task, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        XgboostAdapter(native, task, Path("model.py"))


def test_a_wrong_parameter_is_told_before_training() -> None:
    adapter = XgboostAdapter({"max_depth": -3}, TWO, Path("model.py"))
    with pytest.raises(MlaasError, match="max_depth"):
        adapter.check(blobs().values[:2], blobs().mask[:2])


@pytest.mark.parametrize("native", [{"max_dept": 3, "eta": 0.1}, xgboost.XGBClassifier(max_dept=3)])
def test_a_parameter_that_would_be_ignored_is_refused(native: Any) -> None:
    adapter = XgboostAdapter(native, TWO, Path("model.py"))
    with pytest.raises(UsageError, match="does not use max_dept here"):
        adapter.check(blobs().values[:2], blobs().mask[:2])


def test_bins_of_training_on_disk_serve_validation_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    full = trained(xgboost.XGBClassifier(**SMALL), blobs(), validation=blobs(100, seed=2))
    monkeypatch.setattr(xgboost_adapter, "available_memory", lambda: 2.0 * 500 * 3 * 8)
    mixed = trained(xgboost.XGBClassifier(**SMALL), blobs(), validation=blobs(100, seed=2))
    assert mixed.rounds[-1] == pytest.approx(full.rounds[-1])


def test_a_loss_that_is_not_finite_ends_the_training() -> None:
    feed = slope()
    feed.targets = np.where(np.arange(600) == 5, 1e38, feed.targets)
    with pytest.raises(MlaasError, match=r"train_rmse became .* in round 1 "):
        trained(xgboost.XGBRegressor(**SMALL), feed, VALUE)
