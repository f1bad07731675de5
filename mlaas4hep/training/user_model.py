"""The user's model file: run it, call its `model` function, and explain what goes wrong in it.

==========================  ===============================================================================
`def model(idim)`           receives the width of the input vector
`def model(schema)`         with exactly that parameter name, receives the whole `Schema`: `schema.idim`,
                            `schema.names`, `schema.kinds`, `schema.multiplicities`, `schema.slices`
`def model()`               for estimators, which learn the width from the events
==========================  ===============================================================================

It returns a compiled Keras model, a `torch.nn.Module`, or an estimator of scikit-learn or XGBoost.

A model with one input gets the values, shape (events, idim), float32. A Keras model with two inputs, of which one is
named `mask` (`keras.Input((idim,), name="mask")`), and a module whose `forward` has a parameter named `mask`, also get
the mask: 1 (or True) where the event has no value.

A file whose `model` returns a `torch.nn.Module` may have these functions beside it (see `torch_adapter`):

=========================================================  ================================================
`def loss(outputs, targets)`                                a value an event, shape (n,) or (n, 1), or a mean
`def optimizer(module)`                                     a `torch.optim.Optimizer`; Adam (1e-3) without it
`def torch_train(module, values, targets, **more)`          trains on some events in its own way
=========================================================  ================================================

Weights that are made outside these functions, while the file is run, do not follow the parameter `seed`.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from mlaas4hep.data.schema import Schema
from mlaas4hep.errors import MlaasError, UsageError
from mlaas4hep.names import did_you_mean

FUNCTION = "model"
_EXTRAS = {"keras": "keras", "tensorflow": "keras", "jax": "jax", "torch": "torch"}
_EXTRAS |= {"sklearn": "training", "xgboost": "training"}


@dataclass(frozen=True)
class UserModel:
    """The user's file after it was run.

    Attributes:
        path: the file.
        module: what running it made.
    """

    path: Path
    module: ModuleType

    def function(self, name: str) -> Callable[..., Any] | None:
        """A function that the file defines, None without it."""
        found = vars(self.module).get(name)
        return found if callable(found) else None

    def build(self, schema: Schema) -> Any:
        """Call `model` with what its first parameter asks for."""
        function = getattr(self.module, FUNCTION)
        names = list(inspect.signature(function).parameters)
        arguments = [schema if names[0] == "schema" else schema.idim] if names else []
        with explained(self.path):
            return function(*arguments)


def load_user_model(path: Path) -> UserModel:
    """Run the file; modules beside it can be imported by it.

    Keras takes the backend of KERAS_BACKEND, TensorFlow without it.

    Raises MlaasError that names file, line and exception when the file raises, UsageError without a function `model`.
    """
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    spec = importlib.util.spec_from_file_location("mlaas4hep_user_model", path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is not a Python file.", "Its name must end in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(path.parent))
    with explained(path):
        spec.loader.exec_module(module)
    if not callable(getattr(module, FUNCTION, None)):
        others = [
            name
            for name, value in vars(module).items()
            if inspect.isfunction(value) and value.__module__ == module.__name__
        ]
        raise UsageError(f"{path} has no function {FUNCTION}.", did_you_mean(FUNCTION, others, "functions"))
    return UserModel(path, module)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn an exception of the user's code into one sentence with its file and line."""
    try:
        yield
    except MlaasError:
        raise
    except (Exception, SystemExit) as error:
        raise MlaasError(f"{_place(error, path)}: {describe(error)}.", _remedy(error)) from error


def describe(error: BaseException) -> str:
    """The exception's type and the first line of its text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__


def _remedy(error: BaseException) -> str:
    extra = _EXTRAS.get(error.name or "") if isinstance(error, ModuleNotFoundError) else None
    return f"Install mlaas4hep[{extra}]." if extra else "Correct the model."


def _place(error: BaseException, path: Path) -> str:
    """The innermost line of the user's own files that the exception passed through."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [
        frame
        for frame in frames
        if Path(frame.filename).is_relative_to(path.parent) and "site-packages" not in frame.filename
    ]
    return f"{own[-1].filename}, line {own[-1].lineno}" if own else str(path)
