"""Expressions computed with NumPy on blocks of entries: on the values of flat branches and the contents of jagged ones.

Numbers are computed as 64-bit floating point, as in ROOT. Integers are compared exactly, and refused in arithmetic
where floating point would round them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mlaas4hep.data.blocks import Column, FlatValues, JaggedValues
from mlaas4hep.data.expressions import (
    Comparison,
    Element,
    Expression,
    Node,
    Number,
    Operation,
    Reference,
    constant,
    find_branch,
    number,
)
from mlaas4hep.data.functions import LOGICAL, NUMERIC, REDUCTIONS, TESTS, WHERE
from mlaas4hep.errors import MlaasError, UsageError
from mlaas4hep.names import did_you_mean

Columns: TypeAlias = Mapping[str, Column]
_LIST_UFUNCS: dict[str, np.ufunc] = {
    "any": np.logical_or,
    "all": np.logical_and,
    "min": np.minimum,
    "max": np.maximum,
}
_EXACT = 2**53  # integers up to here are exact in 64-bit floating point


def evaluate(expression: Expression, columns: Columns, start: int = 0, origin: str = "") -> Column:
    """The value of an expression for each of n entries.

    Args:
        expression: what to compute.
        columns: the branches that it refers to, n entries each.
        start: number of the first entry, for errors.
        origin: the file that they come from, for errors.

    Returns values of type bool, float64, int64 for counts, or the branch's own type for a branch by itself.
    Raises UsageError for what cannot be computed from branches of these kinds, MlaasError for jagged branches whose
    lists differ in length and for integers that floating point would round.
    """
    evaluation = _Evaluation(expression, columns, start, origin)
    with np.errstate(all="ignore"):
        value = evaluation.value(expression.root)
    return FlatValues(value.data) if value.offsets is None else JaggedValues(value.offsets, value.data)


def available(expression: Expression, columns: Columns) -> bool:
    """Whether every branch that an expression refers to is among the columns."""
    return all(_there(reference, columns) for reference in expression.references)


def _there(reference: str, columns: Columns) -> bool:
    place = find_branch(reference, columns)
    if place is None:
        return constant(reference) is not None
    branch, member = place
    return not member or member in (columns[branch].values.dtype.names or ())


@dataclass(frozen=True)
class _Value:
    """What a node is for n entries.

    Attributes:
        data: a number; or the values, shape (n,); or the contents of the lists, shape (offsets[n],).
        offsets: the lists' ends, shape (n + 1,); None for a number and for flat values.
        name: a branch that has these lists.
    """

    data: Any
    offsets: NDArray[np.int64] | None = None
    name: str = ""


class _Evaluation:
    """Evaluates the nodes of one expression on one block of entries."""

    def __init__(self, expression: Expression, columns: Columns, start: int, origin: str) -> None:
        self._columns = columns
        self._start = start
        self._subject = f"{origin}: {expression}" if origin else str(expression)

    def value(self, node: Node) -> _Value:
        match node:
            case Number(value=written):
                return _Value(written)
            case Reference(name=name):
                return self._branch(name)
            case Element():
                return self._element(node)
            case Comparison():
                return self._comparison(node)
            case Operation(name=name, arguments=arguments):
                return self._operation(name, [self.value(argument) for argument in arguments])

    def _refuse(self, what: str, remedy: str = "") -> NoReturn:
        raise UsageError(f"{self._subject}: {what}.", remedy)

    def _branch(self, reference: str) -> _Value:
        column = self._column(reference)
        if column is None:
            return _Value(constant(reference))
        values = column.values
        if values.dtype.names is not None:
            member = f"{reference}.{values.dtype.names[0]}"
            self._refuse(f"{reference} is a struct", f"Write one of its members, such as {member}.")
        if values.ndim > 1:
            element = reference + "[0]" * (values.ndim - 1)
            self._refuse(f"{reference} is a fixed array", f"Write one of its elements, such as {element}.")
        if isinstance(column, JaggedValues):
            return _Value(values, column.offsets, reference)
        return _Value(values)

    def _column(self, reference: str) -> Column | None:
        """The branch, or the member of a struct, that is meant; None for a constant."""
        place = find_branch(reference, self._columns)
        if place is None:
            if constant(reference) is None:
                raise MlaasError(f"{self._subject} needs {reference}, which is not there.")
            return None
        branch, member = place
        column = self._columns[branch]
        if member:
            names = column.values.dtype.names or ()
            if member not in names:
                advice = did_you_mean(member, names, "members") if names else f"{branch} is no struct."
                self._refuse(f"{branch} has no member {member}", advice)
            column = FlatValues(column.values[member])
        if column.values.dtype.names is None and column.values.dtype.kind not in "biuf":
            self._refuse(f"{reference} is no number, but {column.values.dtype}")
        return column

    def _element(self, node: Element) -> _Value:
        if isinstance(node.node, Reference):
            column = self._column(node.node.name)
            if isinstance(column, FlatValues) and column.values.ndim > 1:
                return self._array_element(node.node.name, column.values, node.indices)
        value = self.value(node.node)
        if value.offsets is None:
            self._refuse("only jagged branches and fixed arrays have elements")
        if len(node.indices) > 1:
            self._refuse("a jagged branch has one index")
        return self._list_element(value, value.offsets, node.indices[0])

    def _array_element(self, name: str, values: NDArray[Any], indices: tuple[int, ...]) -> _Value:
        shape = values.shape[1:]
        inside = len(indices) == len(shape) and all(-n <= i < n for i, n in zip(indices, shape, strict=False))
        if not inside:
            written = "".join(f"[{index}]" for index in indices)
            self._refuse(f"{name}{written} does not exist, for {name} has the shape {list(shape)}")
        return _Value(np.moveaxis(values, 0, -1)[indices])

    def _list_element(self, value: _Value, offsets: NDArray[np.int64], index: int) -> _Value:
        place = (offsets[:-1] if index >= 0 else offsets[1:]) + index
        there = (place >= offsets[:-1]) & (place < offsets[1:])
        chosen = np.full(offsets.size - 1, np.nan)
        chosen[there] = self._float64(value.data[place[there]])
        return _Value(chosen)

    def _comparison(self, node: Comparison) -> _Value:
        operands = [self.value(operand) for operand in node.operands]
        pairs = zip(node.operators, operands, operands[1:], strict=False)
        compared = [self._compared(function, left, right) for function, left, right in pairs]
        return compared[0] if len(compared) == 1 else self._logical("and", compared)

    def _compared(self, function: Callable[[Any, Any], Any], left: _Value, right: _Value) -> _Value:
        """Integers are compared as integers: as floating-point numbers, different ones could be equal."""
        pair = [_whole(left, right), _whole(right, left)]
        if not all(_integral(value.data) for value in pair):
            # beside a number that is not whole, rounded integers compare as they do exactly
            convert = _rounded if any(isinstance(value.data, float) for value in pair) else self._float64
            pair = [_Value(convert(value.data), value.offsets, value.name) for value in pair]
        (first, second), offsets, name = self._aligned(pair)
        return _Value(function(first, second), offsets, name)

    def _operation(self, name: str, arguments: list[_Value]) -> _Value:
        if name in LOGICAL:
            return self._logical(name, arguments)
        if name in REDUCTIONS:
            return self._reduced(name, arguments[0])
        if name == WHERE:
            return self._where(*arguments)
        if name in TESTS:
            return _Value(TESTS[name](_rounded(arguments[0].data)), arguments[0].offsets, arguments[0].name)
        if name == "mod" and (exact := _exact_remainder(*arguments)) is not None:
            return exact
        aligned, offsets, source = self._aligned(
            [_Value(self._float64(value.data), value.offsets, value.name) for value in arguments]
        )
        return _Value(NUMERIC[name](*aligned), offsets, source)

    def _logical(self, name: str, arguments: list[_Value]) -> _Value:
        for argument in arguments:
            if not _boolean(argument.data):
                advice = " Put comparisons beside it in parentheses." if name in "&|~" else ""
                self._refuse(f"{name!r} stands beside a number", f"It takes comparisons and bool branches.{advice}")
        aligned, offsets, source = self._aligned(arguments)
        result = aligned[0] if len(aligned) > 1 else LOGICAL[name](aligned[0])
        for other in aligned[1:]:
            result = LOGICAL[name](result, other)
        return _Value(result, offsets, source)

    def _where(self, condition: _Value, yes: _Value, no: _Value) -> _Value:
        if not _boolean(condition.data):
            self._refuse("the first argument of where is a number", "Write a comparison.")
        if not (_boolean(yes.data) and _boolean(no.data)):
            yes, no = (_Value(self._float64(it.data), it.offsets, it.name) for it in (yes, no))
        aligned, offsets, source = self._aligned([condition, yes, no])
        return _Value(np.where(*aligned), offsets, source)

    def _reduced(self, name: str, value: _Value) -> _Value:
        if value.offsets is None:
            self._refuse(f"{name} takes a jagged branch, and this is flat")
        counts = np.diff(value.offsets)
        if name in ("count", "len"):
            return _Value(counts)
        if name in ("any", "all"):
            if not _boolean(value.data):
                self._refuse(f"{name} stands beside a number", "It takes a comparison over a jagged branch.")
            return _Value(_per_list(_LIST_UFUNCS[name], value.data, value.offsets, name == "all"))
        if name == "sum" and _boolean(value.data):
            return _Value(_true(value.data, value.offsets))
        numbers = self._float64(value.data)
        if name in ("min", "max"):
            return _Value(_per_list(_LIST_UFUNCS[name], numbers, value.offsets, np.nan))
        total = _per_list(np.add, numbers, value.offsets, 0.0)
        return _Value(total if name == "sum" else total / counts)

    def _aligned(self, values: list[_Value]) -> tuple[list[Any], NDArray[np.int64] | None, str]:
        """The values as arrays of one length: where one is jagged, flat ones are repeated for each of its values."""
        lists = next((value for value in values if value.offsets is not None), None)
        if lists is None or lists.offsets is None:
            return [value.data for value in values], None, ""
        arrays = []
        for value in values:
            if value.offsets is not None:
                self._refuse_difference(lists, value)
            flat = value.offsets is None and np.ndim(value.data) > 0
            arrays.append(np.repeat(value.data, np.diff(lists.offsets)) if flat else value.data)
        return arrays, lists.offsets, lists.name

    def _refuse_difference(self, one: _Value, other: _Value) -> None:
        if one.offsets is other.offsets or one.offsets is None or other.offsets is None:
            return
        counts, others = np.diff(one.offsets), np.diff(other.offsets)
        if np.array_equal(counts, others):
            return
        entry = int(np.flatnonzero(counts != others)[0])
        raise MlaasError(
            f"{self._subject}: {one.name} has {counts[entry]} and {other.name} has {others[entry]} values in entry"
            f" {self._start + entry}.",
            "Only jagged branches of one collection go together.",
        )

    def _float64(self, data: Any) -> Any:
        """As float64; integers that it would round are refused."""
        if _integral(data) and hasattr(data, "dtype") and data.dtype.itemsize == 8 and data.size and not _fits(data):
            raise MlaasError(
                f"{self._subject} computes with integers beyond 2**53, which floating point would round.",
                "They can be compared, and event % 10 is exact.",
            )
        return _rounded(data)


def _rounded(data: Any) -> Any:
    """As float64, contiguous, so that each value is computed in the same way whatever lies around it."""
    return data.astype(np.float64, order="C", copy=False) if hasattr(data, "dtype") else float(data)


def _fits(data: NDArray[Any]) -> bool:
    return int(data.min()) >= -_EXACT and int(data.max()) <= _EXACT


def _boolean(data: Any) -> bool:
    return isinstance(data, bool) or getattr(data, "dtype", None) == np.bool_


def _integral(data: Any) -> bool:
    """Whether these are integers or bools, by their type."""
    return isinstance(data, int) or (hasattr(data, "dtype") and data.dtype.kind in "biu")


def _whole(value: _Value, beside: _Value) -> _Value:
    """A whole number written as `1e6` becomes an integer beside integers."""
    if isinstance(value.data, float) and value.data.is_integer() and _integral(beside.data):
        return _Value(number(int(value.data)).value)
    return value


def _exact_remainder(value: _Value, divisor: _Value) -> _Value | None:
    """Integers modulo a positive whole number, None for anything else: exact for event numbers of any size."""
    if type(divisor.data) is not int or not 0 < divisor.data <= _EXACT:
        return None
    if not hasattr(value.data, "dtype") or value.data.dtype.kind not in "iu":
        return None
    wide = value.data.astype(np.uint64 if value.data.dtype.kind == "u" else np.int64, copy=False)
    return _Value(np.remainder(wide, divisor.data).astype(np.float64), value.offsets, value.name)


def _per_list(function: np.ufunc, data: NDArray[Any], offsets: NDArray[np.int64], empty: float) -> NDArray[Any]:
    """Reduce the values of each list; `empty` for a list without values. Shape (n,)."""
    result = np.full(offsets.size - 1, empty, dtype=data.dtype)
    filled = offsets[1:] > offsets[:-1]
    if filled.any():
        result[filled] = function.reduceat(data, offsets[:-1][filled])
    return result


def _true(data: NDArray[np.bool_], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many values of each list are true; shape (n,)."""
    before = np.zeros(data.size + 1, dtype=np.int64)
    np.cumsum(data, out=before[1:])
    return before[offsets[1:]] - before[offsets[:-1]]
