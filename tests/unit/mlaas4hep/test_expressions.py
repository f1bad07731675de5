"""What an expression over branches means, what it refuses, and that it can do nothing else."""

from __future__ import annotations

import ast
import math
import random
from itertools import pairwise

import numpy as np
import pytest

from mlaas4hep.data.blocks import FlatValues, JaggedValues
from mlaas4hep.data.evaluation import evaluate
from mlaas4hep.data.expressions import LONGEST, find_branch, parse
from mlaas4hep.errors import MlaasError, UsageError

NAN, INF = float("nan"), float("inf")


def jagged(*lists, dtype=np.float32) -> JaggedValues:
    offsets = np.concatenate([[0], np.cumsum([len(values) for values in lists])]).astype(np.int64)
    return JaggedValues(offsets, np.array([value for values in lists for value in values], dtype=dtype))


def flat(*values, dtype=np.float64) -> FlatValues:
    return FlatValues(np.array(values, dtype=dtype))


COLUMNS = {
    "MET": flat(10.0, -2.0, NAN),
    "n": flat(1, 2, 0, dtype=np.int32),
    "event": flat(2**53 + 1, 7, 2**63 + 3, dtype=np.uint64),
    "trigger": flat(True, False, True, dtype=bool),
    "Muon_pt": jagged([1.0, 2.0], [], [4.0]),
    "Muon_eta": jagged([-1.0, 0.5], [], [NAN]),
    "Muon_id": jagged([True, False], [], [True], dtype=bool),
    "Muon_charge": jagged([1, -1], [], [1], dtype=np.int8),
    "Jet_pt": jagged([9.0], [], [5.0]),
    "cov": FlatValues(np.arange(12.0).reshape(3, 2, 2)),
    "vars": FlatValues(np.array([(1.0, 2), (3.0, 4), (5.0, 6)], dtype=[("pt", "f4"), ("k", "i4")])),
    "jet/eta": flat(0.5, 1.5, 2.5),
    "a-b": flat(1.0, 2.0, 3.0),
    "vars.mass": flat(100.0, 200.0, 300.0),
    "μ_pt": flat(1.0, 2.0, 3.0),
    "µ": flat(7.0, 8.0, 9.0),
    "log": flat(2.0, 4.0, 8.0),
}


def result(text: str, columns=COLUMNS):
    """The values for each event: a list of numbers, or of lists."""
    value = evaluate(parse(text, "test"), columns)
    if isinstance(value, FlatValues):
        return value.values.tolist()
    ends = value.offsets.tolist()
    return [value.values[start:stop].tolist() for start, stop in pairwise(ends)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("MET * 2 + 1", [21.0, -3.0, NAN]),
        ("-MET ** 2", [-100.0, -4.0, NAN]),
        ("(MET + n) / 0", [INF, NAN, NAN]),
        ("n // 2 + n % 2", [1.0, 1.0, 0.0]),
        ("log10(MET)", [1.0, NAN, NAN]),
        ("np.hypot(3, numpy.abs(n) * 4)", [5.0, math.hypot(3, 8), 3.0]),
        ("Muon_pt ** 2", [[1.0, 4.0], [], [16.0]]),
        ("Muon_pt * MET", [[10.0, 20.0], [], [NAN]]),
        ("Muon_pt * Muon_charge", [[1.0, -2.0], [], [4.0]]),
        ("where(Muon_pt > 1.5, Muon_pt, -1)", [[-1.0, 2.0], [], [4.0]]),
        ("clip(Muon_pt, 1.5, 3)", [[1.5, 2.0], [], [3.0]]),
        ("minimum(Muon_pt, n)", [[1.0, 1.0], [], [0.0]]),
        ("MET + pi - np.pi", [10.0, -2.0, NAN]),
        ("trigger * 3", [3.0, 0.0, 3.0]),
    ],
)
def test_arithmetic_and_functions_work_on_flat_and_jagged_branches(text: str, expected) -> None:
    np.testing.assert_equal(result(text), expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1 <= n <= 1", [True, False, False]),
        ("MET > -5", [True, True, False]),
        ("MET == MET", [True, True, False]),
        ("MET != 10", [False, True, True]),
        ("not MET > -5", [False, False, True]),
        ("trigger and MET > 0 or n == 0", [True, False, True]),
        ("(MET > 0) & trigger | ~trigger", [True, True, False]),
        ("Muon_pt > 1.5 and trigger", [[False, True], [], [True]]),
        ("-1 < Muon_eta <= 0.5", [[False, True], [], [False]]),
        ("isnan(Muon_eta)", [[False, False], [], [True]]),
        ("trigger == True", [True, False, True]),
        ("where(n > 0, trigger, False)", [True, False, False]),
    ],
)
def test_a_condition_is_true_or_false_and_false_for_nan(text: str, expected) -> None:
    assert result(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sum(Muon_pt)", [3.0, 0.0, 4.0]),
        ("min(Muon_pt)", [1.0, NAN, 4.0]),
        ("max(Muon_eta)", [0.5, NAN, NAN]),
        ("mean(Muon_pt)", [1.5, NAN, 4.0]),
        ("count(Muon_pt)", [2, 0, 1]),
        ("len(Muon_pt) == n + 1", [True, False, True]),
        ("sum(Muon_pt > 1.5)", [1, 0, 1]),
        ("any(Muon_pt > 1.5)", [True, False, True]),
        ("all(Muon_pt > 1.5)", [False, True, True]),
        ("any(Muon_id)", [True, False, True]),
        ("Muon_pt[0]", [1.0, NAN, 4.0]),
        ("Muon_pt[1]", [2.0, NAN, NAN]),
        ("Muon_pt[-1]", [2.0, NAN, 4.0]),
        ("Muon_pt[-2]", [1.0, NAN, NAN]),
        ("(Muon_pt * 2)[0] + 1", [3.0, NAN, 9.0]),
        ("Muon_pt / sum(Muon_pt)", [[1 / 3, 2 / 3], [], [1.0]]),
        ("sum(Muon_pt) + sum(Jet_pt)", [12.0, 0.0, 9.0]),
    ],
)
def test_a_list_is_reduced_to_one_value_an_event(text: str, expected) -> None:
    np.testing.assert_equal(result(text), expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("vars.pt", [1.0, 3.0, 5.0]),
        ("vars.mass", [100.0, 200.0, 300.0]),
        ("`vars`.k + vars.`pt`", [3.0, 7.0, 11.0]),
        ("cov[1][0] + cov[0, 1] + cov[-1][-1]", [6.0, 18.0, 30.0]),
        ("`jet/eta` * 2", [1.0, 3.0, 5.0]),
        ("`a-b` - 1", [0.0, 1.0, 2.0]),
        ("μ_pt", [1.0, 2.0, 3.0]),
        ("µ", [7.0, 8.0, 9.0]),
        ("log(log) / log(2)", [1.0, 2.0, 3.0]),
    ],
)
def test_any_branch_can_be_named(text: str, expected) -> None:
    np.testing.assert_allclose(result(text), expected, rtol=1e-15)


def test_a_dotted_name_is_the_branch_before_it_is_a_member() -> None:
    assert find_branch("a.b", {"a", "a.b"}) == ("a.b", "")
    assert find_branch("a.b.c", {"a", "a.b"}) == ("a.b", "c")
    assert find_branch("a.b", {"b"}) is None
    assert find_branch("np.pi", {"np.pi"}) == ("np.pi", "")


def test_only_a_branch_by_itself_a_count_and_a_condition_keep_another_type_than_float64() -> None:
    def dtype(text: str) -> str:
        return evaluate(parse(text, "test"), COLUMNS).values.dtype.name

    assert [dtype(text) for text in ("n", "Muon_charge", "trigger", "Muon_pt")] == ["int32", "int8", "bool", "float32"]
    assert [dtype(text) for text in ("n + n", "n ** 2", "-n", "Muon_pt * 1", "Muon_charge[0]")] == ["float64"] * 5
    assert [dtype(text) for text in ("len(Muon_pt)", "sum(Muon_id)", "n > 1")] == ["int64", "int64", "bool"]


def test_powers_of_integers_do_not_overflow() -> None:
    assert result("n ** 100", {"n": flat(10, -3, dtype=np.int64)}) == [1e100, float(3**100)]
    assert result("n * n", {"n": flat(100, dtype=np.int8)}) == [10_000.0]
    assert result("n - 300", {"n": flat(5, dtype=np.uint8)}) == [-295.0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"event == {2**53}", [False, False, False]),
        (f"event == {2**53 + 1}", [True, False, False]),
        (f"event > {2**63 + 2}", [False, False, True]),
        ("event >= 7.0", [True, True, True]),
        ("event > 6.5", [True, True, True]),
        ("event > -1", [True, True, True]),
        ("event < 1e300", [True, True, True]),
        ("event % 10 == 3", [True, False, False]),
        ("event % 10", [(2**53 + 1) % 10, 7, (2**63 + 3) % 10]),
        ("n < 3000000000", [True, True, True]),
    ],
)
def test_integers_of_any_size_are_compared_exactly(text: str, expected) -> None:
    assert result(text) == expected


@pytest.mark.parametrize("text", ["event + 1", "event / 2", "event == MET", "where(n > 0, event, 0)", "sqrt(event)"])
def test_arithmetic_that_would_round_an_integer_is_refused(text: str) -> None:
    with pytest.raises(MlaasError, match=r"integers beyond 2\*\*53"):
        result(text)


def test_single_precision_is_computed_in_double_precision() -> None:
    columns = {"x": jagged([0.1, 1e30], [])}
    assert result("x * x", columns) == [[float(np.float32(0.1)) ** 2, float(np.float32(1e30)) ** 2], []]


def test_lists_of_different_lengths_are_an_error_with_names_entry_and_counts() -> None:
    with pytest.raises(
        MlaasError, match=r"data.root: .*Muon_pt has 2 and Jet_pt has 1 values in entry 1000\."
    ) as caught:
        evaluate(parse("Muon_pt + Jet_pt", "test"), COLUMNS, 1000, "data.root")
    assert not isinstance(caught.value, UsageError)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cov + 1", r"cov is a fixed array.*such as cov\[0\]\[0\]"),
        ("cov[2][0]", r"cov\[2\]\[0\] does not exist"),
        ("cov[0]", r"cov\[0\] does not exist"),
        ("vars > 1", r"vars is a struct.*such as vars\.pt"),
        ("vars.ptt", r"vars has no member ptt.*Did you mean pt"),
        ("MET.x", r"MET has no member x.*no struct"),
        ("MET[0]", "only jagged branches and fixed arrays"),
        ("Muon_pt[0][0]", "one index"),
        ("sum(MET)", "sum takes a jagged branch, and this is flat"),
        ("any(Muon_pt)", "any stands beside a number"),
        ("MET and trigger", "'and' stands beside a number"),
        ("MET > 1 & n < 2", "stands beside a number.*in parentheses"),
        ("~n", "stands beside a number"),
        ("where(n, 1, 2)", "first argument of where is a number"),
    ],
)
def test_what_does_not_fit_a_branch_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        result(text)


def test_an_unknown_name_is_refused_with_near_misses() -> None:
    with pytest.raises(UsageError, match=r"'log\(Enrgy\)' refers to Enrgy, which is no branch\. Did you mean Energy\?"):
        parse("log(Enrgy)", "test").inputs(["Energy", "pt"])
    with pytest.raises(UsageError, match="refers to no branch"):
        parse("pi * 2", "test").inputs(["Energy"])


def test_the_branches_that_are_needed_are_named_once() -> None:
    expression = parse("vars.pt + vars.eta * nMuon + pi + nMuon", "test")
    assert expression.inputs(["nMuon", "vars", "x"]) == ("vars", "nMuon")
    assert expression.inputs(["nMuon", "vars.pt", "vars", "pi"]) == ("vars.pt", "vars", "nMuon", "pi")


ATTACKS = {
    "import": "__import__('os').system('true')",
    "builtin": "open(x)",
    "attribute of a call": "log(x).__class__",
    "attribute of a number": "(1).__class__",
    "method": "x.tofile(y)",
    "lambda": "(lambda: x)()",
    "list comprehension": "[x for x in y]",
    "generator": "sum(x for x in y)",
    "formatted string": "f'{x}'",
    "string": "'x'",
    "bytes": "b'x'",
    "walrus": "(y := x)",
    "statement": "x; y",
    "assignment": "x = 1",
    "imports": "import os",
    "await": "await x",
    "yield": "(yield x)",
    "dict": "{x: 1}",
    "tuple": "(x, y)",
    "list": "[x]",
    "slice": "x[1:2]",
    "list as a mask": "x[y > 1]",
    "starred": "log(*x)",
    "keyword": "log(x, out=y)",
    "conditional": "x if y else z",
    "identity": "x is y",
    "membership": "x in y",
    "matrix product": "x @ y",
    "exclusive or": "x ^ 2",
    "shift": "x << 2",
    "complex": "1j * x",
    "ellipsis": "x[...]",
    "NumPy's other functions": "np.load(x)",
    "NumPy's other modules": "np.ctypeslib.load_library(x, y)",
    "huge power": "x + 9**9**9**9",
    "huge number": "x + 1e999",
    "number of many digits": "x + " + "9" * 400,
    "number of too many digits": "x + " + "9" * 9000,
    "null character": "x\0",
    "surrogate": "x + \ud800",
    "comment": "x # y",
    "line break that hides a comment": "x > 1 # and\n or y",
    "odd backquotes": "`x",
    "no name": "`` + 1",
    "name next to a quoted one": "a`b`",
    "nothing": "  ",
    "parentheses": "(" * 100_000 + "x" + ")" * 100_000,
    "parentheses within the limit": "(" * 4_000 + "x" + ")" * 4_000,
    "brackets": "x" + "[0]" * 3_000,
    "signs": "-" * 9_000 + "x",
    "negations": "not " * 2_000 + "x",
    "attributes": "x" + ".a" * 4_000,
    "sums": "x" + "+x" * 4_900,
    "powers": "x" + "**x" * 3_000,
    "calls": "abs(" * 2_000 + "x" + ")" * 2_000,
    "comparisons": "x" + "<x" * 4_900,
    "length": "x" * (LONGEST + 1),
    "no argument": "log()",
    "two arguments": "min(x, y)",
    "unknown function": "lgo(x)",
}


@pytest.mark.parametrize("text", ATTACKS.values(), ids=ATTACKS.keys())
def test_everything_else_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text, "test")
    assert len(str(caught.value)) < 400


def test_special_names_are_only_ever_names_of_branches() -> None:
    for text in ("__builtins__", "x.__class__", "x.__class__.__mro__"):
        with pytest.raises(UsageError, match="is no branch"):
            parse(text, "test").inputs(["y"])


def test_a_text_that_is_no_string_is_refused() -> None:
    for value in (None, 1, ["x"], {"def": "x"}):
        with pytest.raises(UsageError, match="no expression"):
            parse(value, "test")


def test_random_garbage_raises_nothing_but_our_own_errors() -> None:
    generator = random.Random(5)
    pieces = [*"()[]+-<`,.:='{}\"éµxe01_~&@! \n\\", "x", "np.", "log", "1.5", "**", "==", "and ", "not ", "lambda "]
    for _ in range(2_000):
        text = "".join(generator.choices(pieces, k=generator.randrange(1, 15)))
        try:
            expression = parse(text, "test")
            evaluate(expression, {"x": jagged([1.0], []), "log": flat(1.0, 2.0)})
        except MlaasError:
            continue


# An independent reference: the same text, read by Python's grammar, computed one event and one value at a time with
# Python's own numbers. A jagged value is a list, a flat one a number.


def _divided(a: float, b: float) -> float:
    if b != 0:
        return a / b
    if a == 0 or math.isnan(a):
        return NAN
    return math.copysign(INF, a) * math.copysign(1, b)


def _power(a: float, b: float) -> float:
    try:
        value = a**b
    except ZeroDivisionError:
        odd = float(b).is_integer() and b % 2 == 1
        return math.copysign(INF, a) if odd else INF
    except OverflowError:
        return -INF if a < 0 and b % 2 == 1 else INF
    return NAN if isinstance(value, complex) else value


_BINARY = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: _divided,
    ast.Pow: _power,
}
_COMPARE = {
    ast.Lt: lambda a, b: a < b,
    ast.LtE: lambda a, b: a <= b,
    ast.Gt: lambda a, b: a > b,
    ast.GtE: lambda a, b: a >= b,
    ast.Eq: lambda a, b: a == b,
    ast.NotEq: lambda a, b: a != b,
}


def _guarded(function, at_zero=NAN):
    def call(a: float) -> float:
        try:
            return function(a)
        except ValueError:
            return at_zero if a == 0 else NAN
        except OverflowError:
            return INF

    return call


_FUNCTIONS = {
    "log": _guarded(math.log, -INF),
    "exp": _guarded(math.exp),
    "sqrt": _guarded(math.sqrt),
    "abs": abs,
    "cos": _guarded(math.cos),
    "floor": lambda a: math.copysign(math.floor(a), a) if math.isfinite(a) else a,
    "hypot": math.hypot,
    "arctan2": math.atan2,
    "maximum": lambda a, b: NAN if math.isnan(a) or math.isnan(b) else max(a, b),
    "where": lambda c, a, b: a if c else b,
}
_LISTS = {
    "sum": lambda a: float(sum(a)),
    "max": lambda a: NAN if not a or any(map(math.isnan, a)) else max(a),
    "mean": lambda a: sum(a) / len(a) if a else NAN,
    "count": len,
    "any": any,
    "all": all,
}


def _elementwise(function, *values):
    lengths = {len(value) for value in values if isinstance(value, list)}
    if not lengths:
        return function(*values)
    (length,) = lengths
    spread = [value if isinstance(value, list) else [value] * length for value in values]
    return [function(*row) for row in zip(*spread, strict=True)]


def _expected(node: ast.AST, event: dict):
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name):
            return event[name]
        case ast.BinOp(left=left, op=op, right=right):
            return _elementwise(_BINARY[type(op)], _expected(left, event), _expected(right, event))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return _elementwise(lambda a: -a, _expected(operand, event))
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return _elementwise(lambda a: not a, _expected(operand, event))
        case ast.BoolOp(op=op, values=values):
            function = all if isinstance(op, ast.And) else any
            return _elementwise(lambda *row: function(row), *[_expected(value, event) for value in values])
        case ast.Compare(left=left, ops=ops, comparators=others):
            operands = [_expected(operand, event) for operand in (left, *others)]
            functions = [_COMPARE[type(op)] for op in ops]
            return _elementwise(
                lambda *row: all(f(a, b) for f, a, b in zip(functions, row, row[1:], strict=False)), *operands
            )
        case ast.Call(func=ast.Name(id=name), args=arguments):
            values = [_expected(argument, event) for argument in arguments]
            return _LISTS[name](values[0]) if name in _LISTS else _elementwise(_FUNCTIONS[name], *values)
        case ast.Subscript(value=of, slice=ast.Constant(value=index)):
            values = _expected(of, event)
            return values[index] if index < len(values) else NAN
    raise AssertionError(ast.dump(node))


class _Writer:
    """Writes random expressions of a given kind and type."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def number(self, depth: int, lists: bool) -> str:
        choice = self.random.randrange(9) if depth else self.random.randrange(2)
        if choice == 0:
            return self.random.choice(["v", "w"] if lists else ["x", "y", "k"])
        if choice == 1:
            return self.random.choice(["v", "2", "0.5", "x"] if lists else ["1", "3", "0.25", "k"])
        if choice in (2, 3):
            operator = self.random.choice(["+", "-", "*", "/", "**"])
            return f"({self.number(depth - 1, lists)} {operator} {self.number(depth - 1, self.mixed(lists))})"
        if choice == 4:
            return f"(-{self.number(depth - 1, lists)})"
        if choice == 5:
            name = self.random.choice(["log", "exp", "sqrt", "abs", "cos", "floor"])
            return f"{name}({self.number(depth - 1, lists)})"
        if choice == 6:
            name = self.random.choice(["hypot", "arctan2", "maximum"])
            return f"{name}({self.number(depth - 1, lists)}, {self.number(depth - 1, self.mixed(lists))})"
        if choice == 7:
            arms = f"{self.number(depth - 1, lists)}, {self.number(depth - 1, self.mixed(lists))}"
            return f"where({self.condition(depth - 1, self.mixed(lists))}, {arms})"
        if lists:
            return "w"
        if self.random.random() < 0.3:
            return f"{self.random.choice(['v', 'w'])}[{self.random.randrange(3)}]"
        return f"{self.random.choice(['sum', 'max', 'mean'])}(({self.number(depth - 1, True)}) + v)"

    def condition(self, depth: int, lists: bool) -> str:
        choice = self.random.randrange(5) if depth > 0 else 0
        if choice <= 1:
            symbols = self.random.choices(["<", "<=", ">", ">=", "==", "!="], k=self.random.randrange(1, 3))
            text = self.number(max(depth - 1, 0), lists)
            for symbol in symbols:
                text += f" {symbol} {self.number(max(depth - 1, 0), self.mixed(lists))}"
            return f"({text})"
        if choice == 2:
            return f"(not {self.condition(depth - 1, lists)})"
        if choice == 3 or lists:
            word = self.random.choice(["and", "or"])
            return f"({self.condition(depth - 1, lists)} {word} {self.condition(depth - 1, self.mixed(lists))})"
        return f"{self.random.choice(['any', 'all'])}(({self.condition(depth - 1, True)}) and v == v)"

    def mixed(self, lists: bool) -> bool:
        return lists and self.random.random() < 0.6


def _events(seed: int, n: int = 12):
    generator = np.random.default_rng(seed)
    special = np.array([NAN, INF, -INF, 0.0, -0.0, 1.0, -1.0])

    def some(size: int):
        values = generator.normal(0, 5, size)
        return np.where(generator.random(size) < 0.2, generator.choice(special, size), values)

    offsets = np.concatenate([[0], np.cumsum(generator.poisson(1.5, n))]).astype(np.int64)
    columns = {
        "x": FlatValues(some(n).astype(np.float32)),
        "y": FlatValues(some(n)),
        "k": FlatValues(generator.integers(-3, 4, n)),
        "v": JaggedValues(offsets, some(offsets[-1]).astype(np.float32)),
        "w": JaggedValues(offsets.copy(), some(offsets[-1])),
    }
    events = []
    for i in range(n):
        event = {name: float(columns[name].values[i]) for name in ("x", "y", "k")}
        for name in ("v", "w"):
            event[name] = columns[name].values[offsets[i] : offsets[i + 1]].astype(float).tolist()
        events.append(event)
    return columns, events


@pytest.mark.parametrize("seed", range(300))
def test_random_expressions_agree_with_a_computation_of_single_values(seed: int) -> None:
    writer = _Writer(seed)
    write = writer.number if seed % 2 else writer.condition
    text = f"({write(3, bool(seed % 4 // 2))})"
    columns, events = _events(seed)
    expression = parse(f"{text} + 0*k" if write == writer.number else f"{text} and k == k", "test")
    tree = ast.parse(expression.text, mode="eval").body
    value = evaluate(expression, columns)
    expected = [_expected(tree, event) for event in events]
    if isinstance(value, JaggedValues):
        # an expression of flat branches only is flat, whatever was asked for
        assert np.diff(value.offsets).tolist() == [len(values) for values in expected]
        expected = [number for values in expected for number in values]
    np.testing.assert_allclose(
        value.values.astype(float), np.array(expected, dtype=float), rtol=1e-9, atol=1e-12, err_msg=expression.text
    )


@pytest.mark.parametrize("seed", range(20))
def test_a_value_does_not_depend_on_the_events_around_it(seed: int) -> None:
    writer = _Writer(seed)
    expression = parse(f"{writer.number(3, False)} + sum(log(v)) + exp(x) + 0*k", "test")
    columns, _ = _events(seed, n=37)
    together = evaluate(expression, columns).values
    for i in range(37):
        alone = {}
        for name, column in columns.items():
            if isinstance(column, FlatValues):
                alone[name] = FlatValues(column.values[i : i + 1])
            else:
                start, stop = column.offsets[i], column.offsets[i + 1]
                alone[name] = JaggedValues(np.array([0, stop - start]), column.values[start:stop])
        np.testing.assert_array_equal(evaluate(expression, alone).values, together[i : i + 1])


def test_no_entries_are_no_problem() -> None:
    columns = {
        name: FlatValues(column.values[:0]) for name, column in COLUMNS.items() if isinstance(column, FlatValues)
    }
    columns["Muon_pt"] = JaggedValues(np.zeros(1, np.int64), np.empty(0, np.float32))
    for text in ("MET + cov[0][1]", "max(Muon_pt)", "Muon_pt[0]", "all(Muon_pt > MET)", "event % 2", "mean(Muon_pt)"):
        assert result(text, columns) == []
