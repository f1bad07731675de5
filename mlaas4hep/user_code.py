"""Python files of the user: run them, find a function in them, and explain what goes wrong there."""

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

from mlaas4hep.errors import MlaasError, UsageError
from mlaas4hep.names import did_you_mean

_EXTRAS = {"keras": "keras", "tensorflow": "keras", "jax": "jax", "torch": "torch"}
_EXTRAS |= {"sklearn": "training", "xgboost": "training"}


def run_file(path: Path, remedy: str) -> ModuleType:
    """Run the file; modules beside it can be imported by it.

    Args:
        path: a Python file.
        remedy: what to do when it raises.

    Raises UsageError for a file that is not Python's, MlaasError that names file, line and exception when it raises.
    """
    path = path.absolute()
    spec = importlib.util.spec_from_file_location(f"mlaas4hep_user_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is not a Python file.", "Its name must end in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    with explained(path, remedy):
        spec.loader.exec_module(module)
    return module


def find_function(module: ModuleType, name: str) -> Callable[..., Any]:
    """A function of a module that `run_file` made. Raises UsageError, with near misses, without it."""
    function = getattr(module, name, None)
    if not callable(function):
        others = [
            other
            for other, value in vars(module).items()
            if inspect.isfunction(value) and value.__module__ == module.__name__
        ]
        raise UsageError(f"{module.__file__} has no function {name}.", did_you_mean(name, others, "functions"))
    chosen: Callable[..., Any] = function
    return chosen


@contextmanager
def explained(path: Path, remedy: str) -> Iterator[None]:
    """Turn an exception of the user's code into one sentence with its file and line, and what to do about it."""
    try:
        yield
    except MlaasError:
        raise
    except (Exception, SystemExit) as error:
        missing = _EXTRAS.get(error.name or "") if isinstance(error, ModuleNotFoundError) else None
        raise MlaasError(
            f"{_place(error, path.absolute())}: {describe(error)}.",
            f"Install mlaas4hep[{missing}]." if missing else remedy,
        ) from error


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
