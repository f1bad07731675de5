"""The user's model file: run it, call its `model` function, and explain what goes wrong in it.

`def model(idim)` receives the width of the input vector. `def model(schema)`, with exactly that parameter name,
receives the whole `Schema`: `schema.idim`, `schema.names`, `schema.kinds`, `schema.multiplicities`, `schema.slices`.
Either returns a compiled Keras model.

A model with one input gets the values, shape (events, idim), float32. A model with two inputs, of which one is named
`mask` (`keras.Input((idim,), name="mask")`), also gets the mask: 1 (or True) where the event has no value.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from mlaas4hep.data.schema import Schema
from mlaas4hep.errors import MlaasError, UsageError
from mlaas4hep.names import did_you_mean

FUNCTION = "model"


def load_model_function(path: Path) -> Callable[..., Any]:
    """Run the file and return its function `model`; modules beside the file can be imported by it.

    Raises MlaasError that names file, line and exception when the file raises, UsageError without such a function.
    """
    spec = importlib.util.spec_from_file_location("mlaas4hep_user_model", path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is not a Python file.", "Its name must end in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(path.parent))
    with explained(path):
        spec.loader.exec_module(module)
    return _function(module, path)


def _function(module: ModuleType, path: Path) -> Callable[..., Any]:
    function = getattr(module, FUNCTION, None)
    if not callable(function):
        others = [
            name
            for name, value in vars(module).items()
            if inspect.isfunction(value) and value.__module__ == module.__name__
        ]
        raise UsageError(f"{path} has no function {FUNCTION}.", did_you_mean(FUNCTION, others, "functions"))
    parameters = [
        parameter
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    if not parameters:
        raise UsageError(
            f"{path}: model() without a parameter is for scikit-learn and XGBoost, which this version does not train.",
            "Write def model(idim) and return a compiled Keras model.",
        )
    chosen: Callable[..., Any] = function
    return chosen


def build_model(function: Callable[..., Any], schema: Schema, path: Path) -> Any:
    """Call the user's function with what its first parameter asks for."""
    first = next(iter(inspect.signature(function).parameters))
    with explained(path):
        return function(schema if first == "schema" else schema.idim)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn an exception of the user's code into one sentence with its file and line."""
    try:
        yield
    except MlaasError:
        raise
    except (Exception, SystemExit) as error:
        raise MlaasError(f"{_place(error, path)}: {describe(error)}.", "Correct the model.") from error


def describe(error: BaseException) -> str:
    """The exception's type and the first line of its text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__


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
