"""Estimators of scikit-learn and XGBoost as ONNX graphs.

scikit-learn is converted by skl2onnx. XGBoost's trees are written here, from the model's own JSON format (documented as
`model.schema`), as one sum over trees, so that the start value, dropped trees and the directions of missing values are
taken over exactly.

Trees decide by comparing with thresholds, so an event could fall on the other side of one that was rounded. That is
excluded: the inputs are float32, XGBoost's thresholds are float32 as well, and scikit-learn's doubles are rounded down
to the next float32, which leaves `x <= threshold` the same for every float32 x. Where an estimator computes with its
inputs before it compares them (a scaler in front of trees), the graph can be asked to do so in float64.
"""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from mlaas4hep.training.onnx_model import MASK, VALUES
from mlaas4hep.training.onnx_network import OPSET, Inexpressible, quiet, reason

_ML = "ai.onnx.ml"
_ML_VERSION = 3
_INNER = "inputs"
_SCORES = "scores"


@dataclass(frozen=True)
class _Objective:
    """How XGBoost makes a prediction of the sum over trees: the operator, and the start value as a part of that sum."""

    operator: str
    margin: Callable[[float], float]


def _same(value: float) -> float:
    return value


def _logit(value: float) -> float:
    return math.log(value / (1.0 - value))


_OBJECTIVES = {
    "binary:logistic": _Objective("Sigmoid", _logit),
    "reg:logistic": _Objective("Sigmoid", _logit),
    "binary:logitraw": _Objective("Identity", _same),
    "multi:softprob": _Objective("Softmax", _same),
    "multi:softmax": _Objective("Softmax", _same),
    "reg:squarederror": _Objective("Identity", _same),
    "reg:squaredlogerror": _Objective("Identity", _same),
    "reg:absoluteerror": _Objective("Identity", _same),
    "reg:pseudohubererror": _Objective("Identity", _same),
    "count:poisson": _Objective("Exp", math.log),
    "reg:gamma": _Objective("Exp", math.log),
    "reg:tweedie": _Objective("Exp", math.log),
}


def sklearn_graph(estimator: Any, idim: int, gets_nan: bool, *, double: bool = False) -> onnx.ModelProto:
    """An estimator or pipeline of scikit-learn as a graph.

    Args:
        estimator: the fitted estimator.
        idim: width of the input vector.
        gets_nan: whether it gets NaN where the mask says that there is no value.
        double: whether the graph computes in float64.

    Raises Inexpressible when skl2onnx cannot convert it.
    """
    with quiet():
        try:
            from skl2onnx import convert_sklearn
            from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType

            kind = DoubleTensorType if double else FloatTensorType
            options = {id(estimator): {"zipmap": False}} if hasattr(estimator, "predict_proba") else None
            with _corrected():
                model = convert_sklearn(
                    estimator,
                    initial_types=[(_INNER, kind([None, idim]))],
                    options=options,
                    target_opset={"": OPSET, _ML: _ML_VERSION},
                )
        except Exception as error:
            raise Inexpressible(reason(error)) from error
    probabilities = model.graph.output[-1]
    del model.graph.output[:]
    model.graph.output.append(probabilities)
    return _with_inputs(model, idim, gets_nan, TensorProto.DOUBLE if double else TensorProto.FLOAT)


def xgboost_graph(booster: Any, idim: int) -> onnx.ModelProto:
    """A booster of trees, with NaN for what is missing, as a graph that gives what the objective makes of their sum.

    Args:
        booster: an `xgboost.Booster`.
        idim: width of the input vector.

    Raises Inexpressible for linear boosters, vector leaves, categorical splits and objectives without a known form.
    """
    learner = json.loads(bytes(booster.save_raw("json")))["learner"]
    name = learner["objective"]["name"]
    objective = _OBJECTIVES.get(name)
    if objective is None:
        raise Inexpressible(f"the objective {name} has no known form")
    parameters = learner["learner_model_param"]
    width = max(int(parameters["num_class"]), 1)
    if int(parameters.get("num_target", 1)) > 1:
        raise Inexpressible("it predicts several values")
    trees = _trees(learner["gradient_booster"])
    scores = [float(value) for value in re.findall(r"[-+.\deE]+", str(parameters["base_score"]))]
    start = [objective.margin(score) for score in (scores if len(scores) == width else scores[:1] * width)]
    nodes = [
        helper.make_node(
            "TreeEnsembleRegressor",
            [_INNER],
            ["sums"],
            domain=_ML,
            n_targets=width,
            aggregate_function="SUM",
            post_transform="NONE",
            base_values=start,
            **trees,
        ),
        helper.make_node(objective.operator, ["sums"], [_SCORES]),
    ]
    inner = helper.make_tensor_value_info(_INNER, TensorProto.FLOAT, [None, idim])
    outer = helper.make_tensor_value_info(_SCORES, TensorProto.FLOAT, [None, width])
    graph = helper.make_graph(nodes, "xgboost", [inner], [outer])
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(_ML, _ML_VERSION)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    return _with_inputs(model, idim, True, TensorProto.FLOAT)


@contextmanager
def _corrected() -> Iterator[None]:
    """skl2onnx with what its trees lack: exact thresholds, the way of missing values, and numbers that are no booleans.

    Its own search for a threshold in float64 does not end for infinite ones, it rounds those of histogram-based
    gradient boosting to the nearest float32, forgets which way NaN goes in other trees, and hands booleans to protobuf,
    which takes them for numbers no longer.
    """
    from skl2onnx.common import tree_ensemble
    from skl2onnx.operator_converters import decision_tree, random_forest

    original, add_tree = tree_ensemble.add_node, tree_ensemble.add_tree_to_attribute_pairs
    node_signature, tree_signature = inspect.signature(original), inspect.signature(add_tree)
    ways: list[Any] = []

    def add_node(*arguments: Any, **named: Any) -> None:
        bound = node_signature.bind(*arguments, **named)
        given = bound.arguments
        if given["mode"] == "BRANCH_LEQ":
            double, rounds = given["dtype"] == np.float64, bool(given["adjust_threshold_for_sklearn"])
            given["value"] = exact_threshold(float(given["value"]), double=double, rounds=rounds)
        way = ways[-1][given["node_id"]] if ways else given.get("nodes_missing_value_tracks_true", 0)
        given |= {"adjust_threshold_for_sklearn": False, "nodes_missing_value_tracks_true": int(way)}
        original(*bound.args, **bound.kwargs)

    def add_tree_with_ways(*arguments: Any, **named: Any) -> None:
        tree = tree_signature.bind(*arguments, **named).arguments["tree"]
        ways.append(tree.missing_go_to_left)
        add_tree(*arguments, **named)
        ways.pop()

    tree_ensemble.add_node = add_node
    for module in (decision_tree, random_forest):
        module.add_tree_to_attribute_pairs = add_tree_with_ways
    try:
        yield
    finally:
        tree_ensemble.add_node = original
        for module in (decision_tree, random_forest):
            module.add_tree_to_attribute_pairs = add_tree


def exact_threshold(threshold: float, *, double: bool, rounds: bool) -> float:
    """The threshold t' for which `x <= t'` in a graph decides as `x <= threshold` does in the trained tree.

    Args:
        threshold: that of the tree.
        double: whether the graph compares float64; else x and t' are float32.
        rounds: whether the tree rounds x to float32 before it compares.
    """
    if double and not rounds:
        return threshold
    lower = np.float32(threshold)
    if float(lower) > threshold:
        lower = np.nextafter(lower, np.float32(-np.inf))
    if not double or not np.isfinite(lower):
        return float(lower)
    # the largest float64 that is rounded to `lower`: half way to the next float32, which itself goes to the even one
    middle = (float(lower) + float(np.nextafter(lower, np.float32(np.inf)))) / 2.0
    return middle if np.float32(middle) == lower else float(np.nextafter(middle, -np.inf))


@dataclass
class _Ensemble:
    """The attributes of a tree ensemble, a node of a tree after another."""

    columns: dict[str, list[Any]] = field(default_factory=dict)

    def add(self, **values: Any) -> None:
        for name, value in values.items():
            self.columns.setdefault(name, []).append(value)


def _trees(gradient_booster: dict[str, Any]) -> dict[str, list[Any]]:
    """The trees as attributes of ONNX."""
    kind = gradient_booster["name"]
    if kind not in ("gbtree", "dart"):
        raise Inexpressible(f"the booster {kind} is none of trees")
    inner = gradient_booster["gbtree"] if kind == "dart" else gradient_booster
    weights = gradient_booster.get("weight_drop")
    found = _Ensemble()
    model = inner["model"]
    for number, (tree, target) in enumerate(zip(model["trees"], model["tree_info"], strict=True)):
        if int(tree["tree_param"].get("size_leaf_vector", 1)) > 1:
            raise Inexpressible("its leaves hold several values")
        if any(tree["split_type"]):
            raise Inexpressible("it splits by categories")
        _add_tree(found, number, tree, int(target), float(weights[number]) if weights else 1.0)
    return found.columns


def _add_tree(found: _Ensemble, number: int, tree: dict[str, Any], target: int, weight: float) -> None:
    left, right = tree["left_children"], tree["right_children"]
    for node, (yes, no) in enumerate(zip(left, right, strict=True)):
        leaf = yes == -1
        value = tree["split_conditions"][node]
        found.add(
            nodes_treeids=number,
            nodes_nodeids=node,
            nodes_featureids=0 if leaf else int(tree["split_indices"][node]),
            nodes_modes="LEAF" if leaf else "BRANCH_LT",
            nodes_values=0.0 if leaf else float(np.float32(value)),
            nodes_truenodeids=0 if leaf else yes,
            nodes_falsenodeids=0 if leaf else no,
            nodes_missing_value_tracks_true=0 if leaf else int(bool(tree["default_left"][node])),
        )
        if leaf:
            found.add(
                target_treeids=number,
                target_nodeids=node,
                target_ids=target,
                target_weights=float(np.float32(value)) * weight,
            )


def _with_inputs(model: onnx.ModelProto, idim: int, gets_nan: bool, kind: int) -> onnx.ModelProto:
    """Put our own inputs in front of a graph: NaN where there is no value, and the type that it computes in."""
    names = [VALUES, MASK] if gets_nan else [VALUES]
    nodes, last = [], VALUES
    if gets_nan:
        half = helper.make_tensor("half", TensorProto.FLOAT, [], [0.5])
        missing = helper.make_tensor("missing", TensorProto.FLOAT, [], [math.nan])
        nodes += [
            helper.make_node("Constant", [], ["half"], value=half),
            helper.make_node("Constant", [], ["missing"], value=missing),
            helper.make_node("Greater", [MASK, "half"], ["absent"]),
            helper.make_node("Where", ["absent", "missing", VALUES], ["with_missing"]),
        ]
        last = "with_missing"
    nodes.append(helper.make_node("Cast", [last], [_INNER], to=kind))
    inner = list(model.graph.node)
    del model.graph.node[:], model.graph.input[:]
    model.graph.node.extend(nodes + inner)
    model.graph.input.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", idim]) for name in names)
    return model
