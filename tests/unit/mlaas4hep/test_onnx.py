"""ONNX models: every framework in one form, checked against the trained model before they are published."""

from __future__ import annotations

import itertools
import json
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from mlaas4hep.training import onnx_export
from mlaas4hep.training.adapters import make_adapter
from mlaas4hep.training.contract import Adapter, Chunk, Task
from mlaas4hep.training.onnx_estimator import exact_threshold
from mlaas4hep.training.onnx_export import TOLERANCE, ExportError, HeldOut, export_onnx
from mlaas4hep.training.onnx_model import MODEL_FILE, OnnxModel
from mlaas4hep.training.user_model import UserModel

EVENTS, IDIM = 400, 6
BINARY, THREE = Task("classification", ("0", "1")), Task("classification", ("a", "b", "c"))
REGRESSION = Task("regression")


class Events:
    """Events with missing values, in two chunks, as a feed gives them."""

    events = EVENTS
    batch_size = 100

    def __init__(self, task: Task) -> None:
        generator = np.random.default_rng(3)
        self.values = generator.random((EVENTS, IDIM)).astype(np.float32)
        self.mask = generator.random((EVENTS, IDIM)) < 0.3
        self.values[self.mask] = 0.0
        if task.kind == "regression":
            self.targets: NDArray[Any] = 300.0 * self.values[:, 0] + self.mask[:, 1]
        else:
            self.targets = np.digitize(self.values[:, 0], np.linspace(0.1, 0.7, task.width + 1)[1:-1])

    def chunks(self, epoch: int) -> Iterator[Chunk]:
        for first in range(0, EVENTS, EVENTS // 2):
            piece = slice(first, first + EVENTS // 2)
            rows = np.arange(EVENTS)[piece]
            yield Chunk(rows, self.values[piece], self.mask[piece], self.targets[piece])


def exported(adapter: Adapter, task: Task, folder: Path) -> tuple[onnx_export.Export, Events]:
    events = Events(task)
    held_out = HeldOut(events.values, events.mask)
    return export_onnx(adapter, task, folder, held_out, schema_digest="d1g357"), events


def assert_same(adapter: Adapter, task: Task, folder: Path) -> onnx.ModelProto:
    """The file predicts what the adapter predicts, for one event as for many; returns it."""
    export, events = exported(adapter, task, folder)
    assert (export.runtime, export.reason) == ("onnx", "")
    assert export.difference <= TOLERANCE
    model = OnnxModel(folder / MODEL_FILE)
    found = model.predict(events.values, events.mask)
    expected = adapter.predict(events.values, events.mask)
    assert found.shape == (EVENTS, task.width)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE * max(1.0, np.abs(expected).max()), rtol=0)
    np.testing.assert_allclose(model.predict(events.values[:1], events.mask[:1]), found[:1], rtol=1e-5, atol=1e-6)
    return onnx.load(folder / MODEL_FILE)


def trained_estimator(native: Any, task: Task) -> Adapter:
    from mlaas4hep.training.sklearn_adapter import SklearnAdapter

    adapter = SklearnAdapter(native, task, Path("model.py"))
    events = Events(task)
    adapter.check(events.values[:2], events.mask[:2])
    adapter.fit_epoch(events, 0, lambda done: None)  # type: ignore[arg-type]
    return adapter


def trained_booster(native: Any, task: Task) -> Adapter:
    from mlaas4hep.training.xgboost_adapter import XgboostAdapter

    adapter = XgboostAdapter(native, task, Path("model.py"))
    events = Events(task)
    adapter.validation = events  # type: ignore[assignment]
    adapter.check(events.values[:4], events.mask[:4])
    adapter.fit_epoch(events, 0, lambda done: None)  # type: ignore[arg-type]
    return adapter


def estimators() -> dict[str, tuple[Callable[[], Any], Task]]:
    from sklearn import ensemble, linear_model, neural_network, pipeline, preprocessing

    return {
        "histogram-based boosting": (lambda: ensemble.HistGradientBoostingClassifier(max_iter=5), BINARY),
        "three classes": (lambda: ensemble.HistGradientBoostingClassifier(max_iter=3), THREE),
        "regression": (lambda: ensemble.HistGradientBoostingRegressor(max_iter=5), REGRESSION),
        "forest with missing values": (lambda: ensemble.RandomForestClassifier(8, random_state=1), BINARY),
        "boosting": (lambda: ensemble.GradientBoostingClassifier(n_estimators=4), BINARY),
        "gradient descent": (lambda: linear_model.SGDClassifier(loss="log_loss", random_state=1), BINARY),
        "perceptron": (
            lambda: neural_network.MLPRegressor(hidden_layer_sizes=(4,), max_iter=500, tol=1.0, random_state=1),
            REGRESSION,
        ),
        "pipeline": (
            lambda: pipeline.make_pipeline(
                preprocessing.StandardScaler(), ensemble.RandomForestClassifier(5, random_state=1)
            ),
            BINARY,
        ),
    }


@pytest.mark.parametrize("name", estimators())
def test_estimators_of_scikit_learn_predict_the_same(name: str, tmp_path: Path) -> None:
    make, task = estimators()[name]
    assert_same(trained_estimator(make(), task), task, tmp_path)


@pytest.mark.parametrize(
    ("parameters", "task"),
    [
        ({}, BINARY),
        ({"base_score": 0.2}, BINARY),
        ({"objective": "binary:logitraw"}, BINARY),
        ({"booster": "dart", "rate_drop": 0.5}, BINARY),
        ({"num_parallel_tree": 3, "subsample": 0.5}, BINARY),
        ({"early_stopping_rounds": 1, "n_estimators": 40}, BINARY),
        ({}, THREE),
        ({}, REGRESSION),
        ({"objective": "count:poisson"}, REGRESSION),
    ],
)
def test_trees_of_xgboost_predict_the_same(parameters: dict[str, Any], task: Task, tmp_path: Path) -> None:
    adapter = trained_booster({"n_estimators": 6, "n_jobs": 1} | parameters, task)
    model = assert_same(adapter, task, tmp_path)
    assert [node.name for node in model.graph.input] == ["values", "mask"]


def keras_model(outputs: int, activation: str | None, loss: Any, *, masked: bool = False) -> Any:
    import keras

    keras.utils.set_random_seed(1)
    values = keras.Input((IDIM,), name="values")
    mask = keras.Input((IDIM,), name="mask", dtype="bool")
    inputs = keras.ops.cast(mask, "float32") if masked else values
    inner = keras.layers.Dense(4, activation="gelu")(keras.layers.Concatenate()([values, inputs]))
    output = keras.layers.Dense(outputs, activation=activation)(keras.layers.Dropout(0.5)(inner))
    model = keras.Model([mask, values] if masked else values, output)
    model.compile(loss=loss)
    return model


def keras_adapter(model: Any, task: Task) -> Adapter:
    from mlaas4hep.training.keras_adapter import KerasAdapter

    adapter = KerasAdapter(model, task, Path("model.py"))
    events = Events(task)
    adapter.check(events.values[:2], events.mask[:2])
    return adapter


def test_a_keras_model_with_logits_and_a_mask_predicts_the_same(tmp_path: Path) -> None:
    import keras

    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    model = assert_same(keras_adapter(keras_model(1, None, loss, masked=True), BINARY), BINARY, tmp_path)
    assert [(node.name, node.type.tensor_type.elem_type) for node in model.graph.input] == [("values", 1), ("mask", 1)]
    assert [node.name for node in model.graph.output] == ["predictions"]
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert facts["schema_sha256"] == "d1g357"
    assert json.loads(facts["classes"]) == ["0", "1"]


def test_a_keras_model_of_three_classes_predicts_the_same(tmp_path: Path) -> None:
    model = keras_model(3, "softmax", "sparse_categorical_crossentropy")
    assert_same(keras_adapter(model, THREE), THREE, tmp_path)


def test_a_keras_model_whose_backend_has_no_exporter_is_exported_on_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlaas4hep.training import onnx_network

    def refused(*_: object) -> None:
        raise ValueError("this backend cannot be exported")

    adapter = keras_adapter(keras_model(1, "sigmoid", "binary_crossentropy"), BINARY)
    monkeypatch.setattr(onnx_network, "_keras_here", refused)
    assert_same(adapter, BINARY, tmp_path)


def test_a_torch_module_that_gives_logits_and_takes_the_mask_predicts_the_same(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")

    class Network(torch.nn.Module):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.first = torch.nn.Linear(2 * IDIM, 5)
            self.drop = torch.nn.Dropout(0.5)
            self.last = torch.nn.Linear(5, 3)

        def forward(self, values: Any, mask: Any) -> Any:
            inner = torch.relu(self.first(torch.cat([values, mask.float()], dim=1)))
            return self.last(self.drop(inner))

    torch.manual_seed(1)
    adapter = make_adapter(Network(), THREE, UserModel(tmp_path / "model.py", ModuleType("user")))
    events = Events(THREE)
    adapter.check(events.values[:2], events.mask[:2])
    model = assert_same(adapter, THREE, tmp_path)
    assert {opset.domain: opset.version for opset in model.opset_import}[""] == 18


def test_a_model_that_differs_is_refused_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = onnx_export.xgboost_graph

    def wrong(*arguments: Any) -> onnx.ModelProto:
        model = right(*arguments)
        for node in model.graph.node:
            for attribute in node.attribute:
                if attribute.name == "base_values":
                    attribute.floats[0] += 1e-3
        return model

    monkeypatch.setattr(onnx_export, "xgboost_graph", wrong)
    adapter = trained_booster({"n_estimators": 3}, BINARY)
    with pytest.raises(ExportError, match=r"differs from the trained xgboost model by .* is not published"):
        exported(adapter, BINARY, tmp_path)
    assert not list(tmp_path.glob(f"{MODEL_FILE}*"))


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: trained_booster({"n_estimators": 2, "objective": "binary:hinge"}, BINARY), "binary:hinge"),
        (lambda: trained_estimator(_linear(), BINARY), "no probabilities"),
    ],
)
def test_what_onnx_cannot_express_keeps_its_own_runtime_and_says_why(make: Any, why: str, tmp_path: Path) -> None:
    export, _ = exported(make(), BINARY, tmp_path)
    assert export.runtime == "native"
    assert why in export.reason
    assert not list(tmp_path.glob(f"{MODEL_FILE}*"))


def _linear() -> Any:
    from sklearn.svm import LinearSVC

    return LinearSVC()


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("rounds", [False, True])
def test_an_exact_threshold_decides_as_the_tree_does(double: bool, rounds: bool) -> None:
    generator = np.random.default_rng(5)
    thresholds = [*generator.normal(size=200), 0.0, -0.0, 1e-46, 0.1, 1 + 2**-24, 1 + 3 * 2**-24, math.inf]
    for threshold in thresholds:
        with np.errstate(over="ignore"):
            near = np.float32(threshold)
        around = [np.nextafter(near, np.float32(-np.inf)), near, np.nextafter(near, np.float32(np.inf))]
        xs = [float(value) for value in around if np.isfinite(value)]
        if double:
            xs += [(low + high) / 2 for low, high in itertools.pairwise(xs)] + [float(threshold)]
            xs = [x for x in xs if math.isfinite(x)]
        exact = exact_threshold(float(threshold), double=double, rounds=rounds)
        for x in xs:
            compared = float(np.float32(x)) if rounds else x
            assert (x <= exact) == (compared <= threshold), (threshold, x)


def test_trees_take_neighbouring_float32_values_apart(tmp_path: Path) -> None:
    """A threshold half way between two neighbours would be rounded to the upper one."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    low = np.float32(1 + 2**-23)
    high = np.nextafter(low, np.float32(2))
    values = np.full((EVENTS, IDIM), low, dtype=np.float32)
    values[::2] = high
    targets = (values[:, 0] == high).astype(np.int64)
    adapter = trained_estimator(HistGradientBoostingClassifier(max_iter=2), BINARY)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapter.native.fit(values, targets)
    mask = np.zeros(values.shape, dtype=np.bool_)
    export_onnx(adapter, BINARY, tmp_path, HeldOut(values, mask), schema_digest="")
    found = OnnxModel(tmp_path / MODEL_FILE).predict(values, mask)
    np.testing.assert_allclose(found, adapter.predict(values, mask), atol=TOLERANCE)
    assert ((found[:, 1] > 0.5) == (targets == 1)).all()


def test_held_out_events_are_copied_and_limited() -> None:
    events = Events(BINARY)
    held = HeldOut.of(events, 250)  # type: ignore[arg-type]
    assert held.values.shape == (250, IDIM)
    assert not np.shares_memory(held.values, events.values)
    assert (held.mask == events.mask[:250]).all()
