"""The adapters by framework: the one place where a new framework is added.

A framework is recognised by the classes of the object that `model` returned, so that none is imported which the user's
file has not imported itself.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlaas4hep.data.schema import Schema
from mlaas4hep.errors import MlaasError, UsageError
from mlaas4hep.training.contract import Adapter, Task
from mlaas4hep.training.launch import Workers
from mlaas4hep.training.user_model import UserModel


def make_adapter(native: Any, task: Task, user: UserModel) -> Adapter:
    """The adapter of a new model.

    Args:
        native: what the user's function `model` returned.
        task: what is learned.
        user: the user's file: its path is named in messages, its functions steer the training.

    Raises UsageError for an object of no known framework, and for a model that the adapter refuses.
    """
    framework = framework_of(native)
    make = _MAKERS.get(framework)
    if make is None:
        raise UsageError(
            f"{user.path}: model returned {type(native).__module__}.{type(native).__name__}, which is no model.",
            "Return a compiled Keras model, a torch.nn.Module, or an estimator of scikit-learn or XGBoost.",
        )
    if framework not in _PARALLEL and Workers.here().world > 1:
        raise UsageError(
            f"{user.path}: a model of {framework} is trained by one process only.",
            "Set workers to 1, or write it as a torch.nn.Module.",
        )
    return make(native, task, user)


def load_adapter(framework: str, file: Path, task: Task, schema: Schema, code: Path) -> Adapter:
    """The adapter of a model that `Adapter.save` wrote.

    Args:
        framework: the adapter's `framework`.
        file: what `save` wrote.
        task: what was learned.
        schema: the layout of the input vector.
        code: the user's file, for frameworks that store weights only.

    Raises MlaasError when the file cannot be loaded.
    """
    load = _LOADERS.get(framework)
    if load is None:
        raise MlaasError(f"{file} is a model of {framework}, which this version does not know.", "Update mlaas4hep.")
    return load(file, task, schema, code)


def framework_of(native: Any) -> str:
    """`keras`, `torch`, `sklearn` or `xgboost`; "" for anything else.

    Keras comes first: with its torch backend, its models are torch modules as well. A dict holds XGBoost's parameters.
    """
    if isinstance(native, dict):
        return "xgboost"
    packages = {base.__module__.partition(".")[0] for base in type(native).__mro__}
    return next((name for name in _MAKERS if name in packages), "")


def _keras(native: Any, task: Task, user: UserModel) -> Adapter:
    from mlaas4hep.training.keras_adapter import KerasAdapter

    return KerasAdapter(native, task, user.path)


def _load_keras(file: Path, task: Task, schema: Schema, code: Path) -> Adapter:
    del schema, code
    from mlaas4hep.training.keras_adapter import load_keras

    return load_keras(file, task)


def _xgboost(native: Any, task: Task, user: UserModel) -> Adapter:
    from mlaas4hep.training.xgboost_adapter import XgboostAdapter

    return XgboostAdapter(native, task, user.path)


def _load_xgboost(file: Path, task: Task, schema: Schema, code: Path) -> Adapter:
    del schema, code
    from mlaas4hep.training.xgboost_adapter import load_xgboost

    return load_xgboost(file, task)


def _sklearn(native: Any, task: Task, user: UserModel) -> Adapter:
    from mlaas4hep.training.sklearn_adapter import make_sklearn

    return make_sklearn(native, task, user)


def _load_sklearn(file: Path, task: Task, schema: Schema, code: Path) -> Adapter:
    del schema, code
    from mlaas4hep.training.sklearn_adapter import load_sklearn

    return load_sklearn(file, task)


def _torch(native: Any, task: Task, user: UserModel) -> Adapter:
    from mlaas4hep.training.torch_adapter import TorchAdapter

    return TorchAdapter(native, task, user)


def _load_torch(file: Path, task: Task, schema: Schema, code: Path) -> Adapter:
    from mlaas4hep.training.torch_adapter import load_torch

    return load_torch(file, task, schema, code)


_PARALLEL = frozenset({"torch"})
# xgboost before sklearn: its estimators are estimators of scikit-learn as well
_MAKERS: dict[str, Callable[[Any, Task, UserModel], Adapter]] = {
    "keras": _keras,
    "torch": _torch,
    "xgboost": _xgboost,
    "sklearn": _sklearn,
}
_LOADERS: dict[str, Callable[[Path, Task, Schema, Path], Adapter]] = {
    "keras": _load_keras,
    "torch": _load_torch,
    "xgboost": _load_xgboost,
    "sklearn": _load_sklearn,
}
