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


def load_function(path: Path, name: str, remedy: str) -> Callable[..., Any]:
    """Run the file and return one of its functions; modules beside the file can be imported by it.

    Args:
        path: a Python file.
        name: the function.
        remedy: what to do when the file raises.

    Raises MlaasError that names file, line and exception when the file raises, UsageError without such a function.
    """
    spec = importlib.util.spec_from_file_location(f"mlaas4hep_user_{name}", path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is not a Python file.", "Its name must end in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(path.parent))
    with explained(path, remedy):
        spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        raise UsageError(f"{path} has no function {name}.", did_you_mean(name, _functions(module), "functions"))
    chosen: Callable[..., Any] = function
    return chosen


def _functions(module: ModuleType) -> list[str]:
    return [
        name
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__
    ]


@contextmanager
def explained(path: Path, remedy: str) -> Iterator[None]:
    """Turn an exception of the user's code into one sentence with its file and line."""
    try:
        yield
    except MlaasError:
        raise
    except (Exception, SystemExit) as error:
        raise MlaasError(f"{_place(error, path)}: {describe(error)}.", remedy) from error


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
