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

import inspect
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from mlaas4hep import user_code
from mlaas4hep.data.schema import Schema
from mlaas4hep.user_code import find_function, run_file

FUNCTION = "model"
_REMEDY = "Correct the model."


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
    module = run_file(path, _REMEDY)
    find_function(module, FUNCTION)
    return UserModel(path, module)


def explained(path: Path) -> AbstractContextManager[None]:
    """Turn an exception of the user's model into one sentence with its file and line."""
    return user_code.explained(path, _REMEDY)
