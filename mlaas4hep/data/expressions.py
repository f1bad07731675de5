"""Expressions over branches, such as `log(Jet_E)` and `1 <= nMuon <= 16`, parsed against a white list.

Python's own grammar (`ast`) reads the text, nothing ever runs it: what it says becomes a small tree of five kinds of
nodes, and whatever has no place in it is refused. `evaluation` computes the tree.
"""

from __future__ import annotations

import ast
import math
import operator
import unicodedata
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeAlias

import numpy as np

from mlaas4hep.data.functions import ARGUMENTS, CONSTANTS, NUMERIC
from mlaas4hep.errors import UsageError
from mlaas4hep.names import did_you_mean

LONGEST = 10_000  # characters
LARGEST = 4_000  # nodes of Python's syntax tree
DEEPEST = 120  # levels of it
_SHOWN = 80  # characters of an expression in an error
_LARGEST_INDEX = 2**31
_PREFIXES = ("np.", "numpy.")

_ARITHMETIC: dict[type[ast.AST], str] = {
    ast.Add: "add",
    ast.Sub: "subtract",
    ast.Mult: "multiply",
    ast.Div: "divide",
    ast.FloorDiv: "floor_divide",
    ast.Mod: "mod",
    ast.Pow: "power",
    ast.USub: "negative",
    ast.UAdd: "positive",
}
_LOGIC: dict[type[ast.AST], str] = {
    ast.And: "and",
    ast.Or: "or",
    ast.Not: "not",
    ast.BitAnd: "&",
    ast.BitOr: "|",
    ast.Invert: "~",
}
_COMPARISONS: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_REFUSED: dict[type[ast.AST], str] = {
    ast.Constant: "a string, or another value that is no number",
    ast.JoinedStr: "a string",
    ast.Lambda: "a lambda",
    ast.NamedExpr: "an assignment",
    ast.IfExp: "if ... else, which is written where(condition, a, b)",
    ast.Attribute: "an attribute of something that is no branch",
    ast.BitXor: "^, and a power is written **",
    ast.Slice: "a slice",
}
_SYNTAX = (
    "It follows Python: and, or, not, ==, ** for powers; a branch whose name is no Python name stands in `backquotes`."
)


@dataclass(frozen=True)
class Number:
    """A number, True or False in the text."""

    value: bool | int | float


@dataclass(frozen=True)
class Reference:
    """A branch, a member of a struct (`vars.pt`), or one of the constants pi, nan and inf."""

    name: str


@dataclass(frozen=True)
class Element:
    """`name[0]`: an element of a fixed array, or of each event's list."""

    node: Node
    indices: tuple[int, ...]


@dataclass(frozen=True)
class Comparison:
    """`a < b <= c`: every neighbouring pair holds."""

    operators: tuple[Callable[[Any, Any], Any], ...]
    operands: tuple[Node, ...]


@dataclass(frozen=True)
class Operation:
    """A function, or an operator under its function's name."""

    name: str
    arguments: tuple[Node, ...]


Node: TypeAlias = Number | Reference | Element | Comparison | Operation


@dataclass(frozen=True)
class Expression:
    """A parsed expression; made by `parse`.

    Attributes:
        text: as it was written.
        where: whose it is, for errors ("preproc.json: the def of log_Energy").
        root: the node that it is.
        references: the names in it, in order, each once.
    """

    text: str
    where: str
    root: Node = field(repr=False)
    references: tuple[str, ...]

    def __str__(self) -> str:
        """Whose it is and what it says, for errors."""
        return f"{self.where}, {shortened(self.text)!r}"

    def inputs(self, known: Collection[str]) -> tuple[str, ...]:
        """The branches among the known ones that it refers to, each once.

        Raises UsageError, with near misses, for a name that none of them has, and when there is no branch in it.
        """
        found: dict[str, None] = {}
        for reference in self.references:
            place = find_branch(reference, known)
            if place is not None:
                found.setdefault(place[0])
            elif constant(reference) is None:
                raise UsageError(
                    f"{self} refers to {reference}, which is no branch.",
                    did_you_mean(reference, list(known), "branches"),
                )
        if not found:
            raise UsageError(f"{self} refers to no branch.")
        return tuple(found)


def find_branch(reference: str, known: Collection[str]) -> tuple[str, str] | None:
    """The branch that a name in an expression stands for, and the member of it, if it is a struct; None without one.

    That is the branch of this name; or of this name in the form that Python gives to names (Unicode's NFKC); or, for a
    dotted name, the branch with the longest name before one of the dots, whose member is what follows.
    """
    parts = reference.split(".")
    for end in range(len(parts), 0, -1):
        name, member = ".".join(parts[:end]), ".".join(parts[end:])
        if end < len(parts) and not member:
            continue
        if name in known:
            return name, member
        for candidate in known:
            if not candidate.isascii() and unicodedata.normalize("NFKC", candidate) == name:
                return candidate, member
    return None


def constant(reference: str) -> float | None:
    """The value of pi, nan or inf, with or without `np.`; None for any other name."""
    return CONSTANTS.get(_without_prefix(reference))


def shortened(text: str) -> str:
    """The text, or as much of it as an error can show."""
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _without_prefix(name: str) -> str:
    prefix = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), "")
    return name.removeprefix(prefix)


def number(value: bool | int | float) -> Number:
    """A number as a node; an integer that no 64-bit integer type holds is a floating-point one."""
    if type(value) is not int or -(2**63) <= value < 2**64:
        return Number(value)
    try:
        return Number(float(value))
    except OverflowError:
        return Number(float("inf"))


def parse(text: object, where: str) -> Expression:
    """Parse an expression.

    Args:
        text: a string of at most `LONGEST` characters.
        where: whose it is, for errors.

    Raises UsageError for everything that is not arithmetic, comparisons and known functions over branches.
    """
    if not isinstance(text, str) or not text.strip():
        raise UsageError(f"{where} is no expression.", 'Write one in quotes, such as "log(Energy)".')
    if len(text) > LONGEST:
        raise UsageError(f"{where} has {len(text)} characters.", f"An expression may have {LONGEST}: make two of it.")
    parser = _Parser(text.strip(), where)
    root = parser.parsed()
    return Expression(text.strip(), where, root, tuple(parser.references))


class _Parser:
    """Turns text into nodes, and keeps the names that it meets."""

    def __init__(self, text: str, where: str) -> None:
        self._text = text
        self._where = where
        self._quoted: dict[str, str] = {}
        self.references: dict[str, None] = {}

    def parsed(self) -> Node:
        tree = self._syntax(self._unquoted())
        self._refuse_large(tree)
        return self._node(tree)

    def _refuse(self, what: str, remedy: str = "") -> NoReturn:
        raise UsageError(f"{self._where}, {shortened(self._text)!r}, {what}.", remedy)

    def _unquoted(self) -> str:
        """The text in one line, with a Python name for each name in backquotes."""
        pieces = self._text.split("`")
        if len(pieces) % 2 == 0:
            self._refuse("has a backquote without its partner")
        stem = "_quoted"
        while stem in self._text:
            stem += "_"
        for place, piece in enumerate(pieces):
            if place % 2:
                self._quoted[f"{stem}{place}"] = piece
                pieces[place] = f" {stem}{place} "
            elif "#" in piece:
                self._refuse("has a comment", _SYNTAX)
        return " ".join("".join(pieces).split())

    def _syntax(self, text: str) -> ast.expr:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return ast.parse(text, mode="eval").body
        # beside syntax errors: null characters, and numbers of thousands of digits
        except (SyntaxError, ValueError):
            self._refuse("is no expression", _SYNTAX)
        # nesting deeper than the stack of Python's parser
        except (MemoryError, RecursionError):
            self._refuse_size()

    def _refuse_large(self, tree: ast.expr) -> None:
        """Count level by level, so that the rest may recurse."""
        nodes = 0
        level: list[ast.AST] = [tree]
        for _ in range(DEEPEST):
            nodes += len(level)
            level = [child for node in level for child in ast.iter_child_nodes(node)]
            if nodes > LARGEST:
                break
            if not level:
                return
        self._refuse_size()

    def _refuse_size(self) -> NoReturn:
        self._refuse("is too large", "Make several new branches of it.")

    def _node(self, node: ast.AST) -> Node:
        match node:
            case ast.Constant(value=bool() | int() | float() as value):
                return self._finite(number(value))
            case ast.Name() | ast.Attribute() if name := self._dotted(node):
                self.references.setdefault(name)
                return Reference(name)
            case ast.Subscript(value=of, slice=index):
                return self._element(of, index)
            case ast.BinOp(op=op, left=left, right=right):
                return self._operation(op, left, right)
            case ast.UnaryOp(op=op, operand=operand):
                return self._operation(op, operand)
            case ast.BoolOp(op=op, values=values):
                return self._operation(op, *values)
            case ast.Compare(left=left, ops=ops, comparators=others) if all(type(op) in _COMPARISONS for op in ops):
                operators = tuple(_COMPARISONS[type(op)] for op in ops)
                return Comparison(operators, tuple(self._node(operand) for operand in [left, *others]))
            case ast.Call(func=function, args=arguments, keywords=[]):
                return self._call(function, arguments)
        return self._refuse_part(node)

    def _refuse_part(self, part: ast.AST) -> NoReturn:
        self._refuse(f"has {_REFUSED.get(type(part), 'something that expressions do not have')}", _SYNTAX)

    def _dotted(self, node: ast.AST) -> str:
        """The name that `a`, `a.b` or `a.b.c` is, "" for anything else."""
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if not isinstance(node, ast.Name):
            return ""
        return ".".join(self._quoted.get(part, part) for part in (node.id, *reversed(parts)))

    def _element(self, of: ast.expr, index: ast.expr) -> Element:
        indices: list[int] = []
        for part in index.elts if isinstance(index, ast.Tuple) else [index]:
            place = self._node(part)
            if not isinstance(place, Number) or type(place.value) is not int or abs(place.value) > _LARGEST_INDEX:
                self._refuse("has an index that is no whole number", "Write name[0] for the first element.")
            indices.append(place.value)
        inner = self._node(of)
        if isinstance(inner, Element):
            return Element(inner.node, (*inner.indices, *indices))
        return Element(inner, tuple(indices))

    def _operation(self, op: ast.AST, *operands: ast.expr) -> Node:
        name = _ARITHMETIC.get(type(op)) or _LOGIC.get(type(op))
        if name is None:
            self._refuse_part(op)
        arguments = tuple(self._node(operand) for operand in operands)
        return self._folded(Operation(name, arguments)) if type(op) in _ARITHMETIC else Operation(name, arguments)

    def _folded(self, operation: Operation) -> Node:
        """Arithmetic between numbers as a number: `-1` may be an index, and `9**9**9` is refused."""
        numbers = [argument.value for argument in operation.arguments if isinstance(argument, Number)]
        if len(numbers) < len(operation.arguments):
            return operation
        if operation.name == "negative" and type(numbers[0]) is int:
            return number(-numbers[0])
        with np.errstate(all="ignore"):
            return self._finite(Number(float(NUMERIC[operation.name](*map(float, numbers)))))

    def _finite(self, node: Number) -> Number:
        if not math.isfinite(node.value):
            self._refuse("has a number that is not finite", "Write inf or nan if you mean it.")
        return node

    def _call(self, function: ast.expr, arguments: list[ast.expr]) -> Operation:
        name = _without_prefix(self._dotted(function))
        if name not in ARGUMENTS:
            what = f"calls {name}, which is no function here" if name else "calls something that is no function"
            self._refuse(what, did_you_mean(name, list(ARGUMENTS), "functions"))
        if len(arguments) != ARGUMENTS[name]:
            advice = {"min": "minimum takes two.", "max": "maximum takes two."}.get(name, "")
            self._refuse(f"calls {name} with {len(arguments)} arguments, and it takes {ARGUMENTS[name]}", advice)
        return Operation(name, tuple(self._node(argument) for argument in arguments))
