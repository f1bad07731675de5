"""The functions that expressions over branches may call, and the operators by their functions' names.

All are NumPy's, of real numbers, an element at a time; or reductions of each event's list to one value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

_ONE_ARGUMENT = (
    *("negative", "positive", "abs", "absolute", "fabs", "sign", "sqrt", "cbrt", "square", "reciprocal"),
    *("exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "floor", "ceil", "trunc", "rint"),
    *("sin", "cos", "tan", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "arcsinh", "arccosh", "arctanh"),
    *("degrees", "radians", "deg2rad", "rad2deg"),
)
_TWO_ARGUMENTS = (
    *("add", "subtract", "multiply", "divide", "floor_divide", "mod", "remainder", "fmod", "power"),
    *("arctan2", "hypot", "minimum", "maximum", "fmin", "fmax", "copysign", "heaviside", "logaddexp", "logaddexp2"),
)
_ALIASES = {
    "asin": "arcsin",
    "acos": "arccos",
    "atan": "arctan",
    "atan2": "arctan2",
    "asinh": "arcsinh",
    "acosh": "arccosh",
    "atanh": "arctanh",
    "pow": "power",
    "round": "rint",
}

# of numbers, giving numbers
NUMERIC: dict[str, Callable[..., Any]] = {name: getattr(np, name) for name in _ONE_ARGUMENT + _TWO_ARGUMENTS}
NUMERIC |= {alias: NUMERIC[name] for alias, name in _ALIASES.items()}
NUMERIC["clip"] = np.clip

# of a number, giving true or false
TESTS: dict[str, Callable[..., Any]] = {"isnan": np.isnan, "isinf": np.isinf, "isfinite": np.isfinite}

# of true and false; two spellings, for `&` and `|` need parentheses around comparisons
LOGICAL: dict[str, Callable[..., Any]] = {
    "and": np.logical_and,
    "&": np.logical_and,
    "or": np.logical_or,
    "|": np.logical_or,
    "not": np.logical_not,
    "~": np.logical_not,
}

# of a jagged branch, giving one value an event
REDUCTIONS = ("sum", "min", "max", "mean", "count", "len", "any", "all")

# a condition and two values
WHERE = "where"

ARGUMENTS: dict[str, int] = {
    **dict.fromkeys((*NUMERIC, *TESTS, *REDUCTIONS), 1),
    **dict.fromkeys((*_TWO_ARGUMENTS, "atan2", "pow"), 2),
    **dict.fromkeys(("clip", WHERE), 3),
}

CONSTANTS = {"pi": float(np.pi), "nan": float("nan"), "inf": float("inf")}
