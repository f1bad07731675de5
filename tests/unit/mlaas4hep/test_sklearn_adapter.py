"""Estimators of scikit-learn: in steps or at once, probabilities, weights, memory, and who may load them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LinearRegression, RidgeClassifier, SGDClassifier, SGDRegressor
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from mlaas4hep.errors import MlaasError, UsageError
from mlaas4hep.training import sklearn_adapter
from mlaas4hep.training.adapters import load_adapter, make_adapter
from mlaas4hep.training.contract import Task
from mlaas4hep.training.memory import available_memory
from mlaas4hep.training.metrics import macro_area
from mlaas4hep.training.sklearn_adapter import SklearnAdapter, weight_argument
from mlaas4hep.training.user_model import load_user_model
from tests.unit.mlaas4hep.array_feed import ArrayFeed, blobs, hidden_by_absence, slope

TWO = Task("classification", ("background", "signal"))
THREE = Task("classification", ("a", "b", "c"))
VALUE = Task("regression")


def trained(native: Any, feed: ArrayFeed, task: Task = TWO, epochs: int = 3, missing: str = "") -> SklearnAdapter:
    adapter = SklearnAdapter(native, task, Path("model.py"), missing)
    adapter.check(feed.values[:2], feed.mask[:2])
    for epoch in range(epochs):
        if not adapter.fit_epoch(feed, epoch, lambda _: None):
            break
    return adapter


def predictions(adapter: SklearnAdapter, feed: ArrayFeed) -> np.ndarray:
    return adapter.predict(feed.values, feed.mask)


def area(adapter: SklearnAdapter, feed: ArrayFeed) -> float:
    return macro_area(feed.targets, predictions(adapter, feed)).value


@pytest.mark.parametrize(
    "make",
    [
        lambda: SGDClassifier(random_state=0),
        lambda: SGDClassifier(loss="log_loss", random_state=0),
        lambda: RandomForestClassifier(30, random_state=0),
        lambda: make_pipeline(StandardScaler(), RidgeClassifier()),
        lambda: GridSearchCV(DecisionTreeClassifier(random_state=0), {"max_depth": [2, 4]}, cv=3),
    ],
)
@pytest.mark.parametrize("task", [TWO, THREE])
def test_any_classifier_gives_probabilities_that_tell_the_classes_apart(make: Callable[[], Any], task: Task) -> None:
    adapter = trained(make(), blobs(classes=task.width), task)
    unseen = blobs(classes=task.width, seed=2)
    found = predictions(adapter, unseen)
    assert found.shape == (600, task.width)
    assert found.sum(axis=1) == pytest.approx(1.0)
    assert area(adapter, unseen) > 0.88


def test_in_steps_the_classes_need_not_be_in_the_first_chunk() -> None:
    feed = blobs(classes=3)
    order = np.argsort(feed.targets, kind="stable")
    sorted_feed = ArrayFeed(feed.values[order], feed.mask[order], feed.targets[order])
    adapter = trained(SGDClassifier(loss="log_loss", random_state=0), sorted_feed, THREE, epochs=1)
    assert adapter.native.classes_.tolist() == [0, 1, 2]


def test_an_epoch_in_steps_equals_partial_fit_on_the_chunks() -> None:
    feed = blobs()
    reference = SGDClassifier(random_state=0)
    for _ in range(2):
        for start in range(0, 600, 100):
            piece = slice(start, start + 100)
            reference.partial_fit(feed.values[piece], feed.targets[piece], classes=[0, 1])
    adapter = trained(SGDClassifier(random_state=0), feed, epochs=2)
    assert np.array_equal(adapter.native.coef_, reference.coef_)


def test_at_once_equals_fit_on_all_events_and_there_is_no_second_epoch() -> None:
    feed = blobs(weights=np.linspace(0.1, 2.0, 600, dtype=np.float32))
    adapter = SklearnAdapter(RandomForestClassifier(5, random_state=0), TWO, Path("model.py"))
    adapter.check(feed.values[:2], feed.mask[:2])
    told: list[int] = []
    assert adapter.fit_epoch(feed, 0, told.append) is False
    assert told == [600]
    values = np.where(feed.mask, np.nan, feed.values)
    reference = RandomForestClassifier(5, random_state=0).fit(values, feed.targets, sample_weight=feed.weights)
    assert np.array_equal(predictions(adapter, feed), reference.predict_proba(values))


def test_a_regression_gives_values() -> None:
    for native in (LinearRegression(), SGDRegressor(random_state=0)):
        adapter = trained(native, slope(), VALUE, epochs=10)
        loss, found = adapter.evaluate(slope(seed=2).all())
        assert found.shape == (600, 1)
        assert loss < 0.05


def test_an_estimator_that_declares_it_is_given_nan() -> None:
    feed = hidden_by_absence()
    boosted, neighbours = (
        trained(HistGradientBoostingClassifier(max_iter=5), feed),
        trained(KNeighborsClassifier(), feed),
    )
    assert area(boosted, feed) == 1.0
    assert area(neighbours, feed) < 0.99
    assert (boosted.gets_nan, neighbours.gets_nan) == (True, False)


def test_the_users_file_decides_for_one_that_does_not_declare_it(tmp_path: Path) -> None:
    file = tmp_path / "model.py"
    file.write_text(
        "from sklearn.ensemble import HistGradientBoostingClassifier\n"
        "from sklearn.pipeline import make_pipeline\n"
        "missing = 'nan'\n"
        "def model():\n    return make_pipeline(HistGradientBoostingClassifier(max_iter=5))\n"
    )
    user = load_user_model(file)
    feed = hidden_by_absence()
    adapter = make_adapter(user.build(None), TWO, user)  # type: ignore[arg-type]
    adapter.check(feed.values[:2], feed.mask[:2])
    adapter.fit_epoch(feed, 0, lambda _: None)  # type: ignore[arg-type]
    assert macro_area(feed.targets, adapter.predict(feed.values, feed.mask)).value == 1.0
    with pytest.raises(UsageError, match="missing = 'zero' is not known"):
        SklearnAdapter(KNeighborsClassifier(), TWO, file, "zero")


def test_too_many_events_are_refused_before_they_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    feed = blobs()
    adapter = SklearnAdapter(RandomForestClassifier(), TWO, Path("model.py"))
    adapter.check(feed.values[:2], feed.mask[:2])
    monkeypatch.setattr(sklearn_adapter, "available_memory", lambda: 600 * 3 * 4.0)
    monkeypatch.setattr(feed, "chunks", lambda epoch: pytest.fail("events were loaded"))
    with pytest.raises(MlaasError, match=r"600 events of 3 inputs .* Lower nevts, leave out branches, .*partial_fit"):
        adapter.fit_epoch(feed, 0, lambda _: None)


def test_weights_are_never_silently_ignored() -> None:
    feed = blobs(weights=np.ones(600, dtype=np.float32))
    with pytest.raises(UsageError, match=r"KNeighborsClassifier\.fit does not take weights"):
        trained(KNeighborsClassifier(), feed)


def test_where_weights_go_in_pipelines_and_searches() -> None:
    search = GridSearchCV(make_pipeline(StandardScaler(), RidgeClassifier()), {})
    assert weight_argument(search, "fit") == "ridgeclassifier__sample_weight"
    assert weight_argument(make_pipeline(StandardScaler(), KNeighborsClassifier()), "fit") == ""
    weights = np.ones(600, dtype=np.float32)
    weights[1::2] = 0.01
    light = trained(search, blobs(weights=weights))
    assert predictions(light, blobs())[:, 1].mean() < predictions(trained(search, blobs()), blobs())[:, 1].mean()


def test_the_wrong_kind_of_estimator_is_refused() -> None:
    with pytest.raises(UsageError, match="LinearRegression is a regressor, but the task is a classification"):
        SklearnAdapter(LinearRegression(), TWO, Path("model.py"))
    with pytest.raises(UsageError, match="Return a regressor"):
        SklearnAdapter(RidgeClassifier(), VALUE, Path("model.py"))


def test_an_error_of_the_estimator_is_one_sentence() -> None:
    adapter = SklearnAdapter(DecisionTreeClassifier(max_depth=-3), TWO, Path("/workflow/model.py"))
    adapter.check(blobs().values[:2], blobs().mask[:2])
    with pytest.raises(MlaasError, match=r"^/workflow/model\.py: .*max_depth"):
        adapter.fit_epoch(blobs(), 0, lambda _: None)


def test_a_saved_estimator_predicts_the_same(tmp_path: Path) -> None:
    feed = hidden_by_absence()
    adapter = trained(make_pipeline(HistGradientBoostingClassifier(max_iter=5)), feed, missing="nan")
    file = tmp_path / adapter.save(tmp_path)
    again = load_adapter("sklearn", file, TWO, None, Path("model.py"))  # type: ignore[arg-type]
    assert np.array_equal(again.predict(feed.values, feed.mask), predictions(adapter, feed))


@pytest.mark.parametrize("what", ["another user", "changed", "no seal"])
def test_an_estimator_from_elsewhere_is_refused_unread(what: str, tmp_path: Path, monkeypatch) -> None:
    file = tmp_path / trained(SGDClassifier(), blobs()).save(tmp_path)
    if what == "another user":
        monkeypatch.setenv("MLAAS4HEP_HOME", str(tmp_path / "another"))
    elif what == "changed":
        file.write_bytes(file.read_bytes() + b"\0")
    else:
        (tmp_path / f"{file.name}.seal").unlink()
    monkeypatch.setattr("joblib.load", lambda *_: pytest.fail("it was unpickled"))
    with pytest.raises(MlaasError, match="was not written by this user on this computer, or was changed"):
        load_adapter("sklearn", file, TWO, None, Path("model.py"))  # type: ignore[arg-type]


def test_the_key_of_the_seals_is_the_users_alone(tmp_path: Path, own_store: Path) -> None:
    trained(SGDClassifier(), blobs()).save(tmp_path)
    key = tmp_path / "home" / "seal.key"
    assert key.stat().st_mode & 0o077 == 0
    assert len(key.read_bytes()) == 32


def test_training_goes_on_from_a_checkpoint_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    np.random.seed(4)
    whole = trained(SGDClassifier(), blobs(), epochs=4)
    np.random.seed(4)
    trained(SGDClassifier(), blobs(), epochs=2).save_state(tmp_path)
    np.random.seed(99)
    resumed = SklearnAdapter(SGDClassifier(), TWO, Path("model.py"))
    resumed.load_state(tmp_path)
    for epoch in (2, 3):
        resumed.fit_epoch(blobs(), epoch, lambda _: None)
    assert np.array_equal(resumed.native.coef_, whole.native.coef_)
    with pytest.raises(MlaasError, match="of another model"):
        SklearnAdapter(RidgeClassifier(), TWO, Path("model.py")).load_state(tmp_path)


def system(root: Path, cgroup: str, files: dict[str, str]) -> Path:
    for name, text in {
        "proc/meminfo": "MemTotal: 9000 kB\nMemAvailable: 8000 kB\n",
        "proc/self/cgroup": cgroup,
    }.items():
        files = {name: text} | files
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_memory_is_what_the_system_has_within_the_limits_of_each_cgroup(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/user/job"
    assert available_memory(system(tmp_path / "a", "0::/user/job\n", {f"{group}/memory.max": "max\n"})) == 8000 * 1024
    files = {
        f"{group}/memory.max": "max\n",
        f"{group}/memory.current": "100\n",
        "sys/fs/cgroup/user/memory.max": "5000\n",
        "sys/fs/cgroup/user/memory.current": "4000\n",
        "sys/fs/cgroup/user/memory.stat": "anon 3000\ninactive_file 700\n",
    }
    assert available_memory(system(tmp_path / "b", "0::/user/job\n", files)) == 1700
    files = {
        "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "5000\n",
        "sys/fs/cgroup/memory/job/memory.usage_in_bytes": "1000\n",
        "sys/fs/cgroup/memory/job/memory.stat": "inactive_file 500\n",
    }
    assert available_memory(system(tmp_path / "c", "4:cpu,memory:/job\n0::/\n", files)) == 4500
    assert available_memory(tmp_path / "nothing") == float("inf")
