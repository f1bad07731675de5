"""preproc.json and the user's function: new branches, cuts, removals, and what they refuse."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from mlaas4hep.data.blocks import Block, FlatValues, JaggedValues
from mlaas4hep.data.expressions import parse
from mlaas4hep.data.formats import open_source
from mlaas4hep.data.functions import ARGUMENTS
from mlaas4hep.data.preprocessing import Preprocessing
from mlaas4hep.data.schema import Branch, Kind
from mlaas4hep.data.sources import resolve_files
from mlaas4hep.errors import MlaasError, UsageError

# the example of MLaaS4HEP's documentation
REFERENCE = {
    "new_branch": {
        "log_Energy": {
            "def": "log(Energy)",
            "type": "jagged",
            "cut_1": ["log_Energy<6.31", "any"],
            "cut_2": ["log_Energy>5.85", "all"],
            "remove": "False",
            "keys_to_remove": ["Energy"],
        },
        "nMuon_square": {
            "def": "nMuon**2",
            "type": "flat",
            "cut": "1<=nMuon_square<=16",
            "remove": "False",
            "keys_to_remove": ["nMuon"],
        },
    },
    "flat_cut": {"nLeptons": {"cut": "nLeptons<=2", "remove": "False"}},
    "jagged_cut": {"Muon_Pt": {"cut": ["Muon_Pt>200", "all"], "remove": "False"}},
}

BRANCHES = {
    branch.name: branch
    for branch in (
        Branch("Energy", Kind.JAGGED, dtype="float32"),
        Branch("Muon_Pt", Kind.JAGGED, dtype="float32"),
        Branch("nLeptons", Kind.FLAT, dtype="int32"),
        Branch("nMuon", Kind.FLAT, dtype="uint32"),
        Branch("good", Kind.BOOL, dtype="bool"),
        Branch("vars", Kind.STRUCT, members=(("pt", "float32"), ("eta", "float32"))),
        Branch("cov", Kind.FIXED, dtype="float64", shape=(2,)),
        Branch("name", Kind.STRING),
    )
}


def lists(rows, dtype=np.float32) -> JaggedValues:
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    return JaggedValues(offsets, np.array([value for row in rows for value in row], dtype=dtype))


def rows_of(column: FlatValues | JaggedValues) -> list:
    if isinstance(column, FlatValues):
        return column.values.tolist()
    return [part.tolist() for part in np.split(column.values, column.offsets[1:-1])] if column.offsets.size > 1 else []


def block(start: int = 0) -> Block:
    columns = {
        "Energy": lists([[400.0, 500.0], [1000.0], [], [400.0, 100.0], [380.0]]),
        "Muon_Pt": lists([[250.0, 300.0], [250.0], [], [300.0, 500.0], [100.0]]),
        "nLeptons": FlatValues(np.array([2, 1, 0, 2, 1], dtype=np.int32)),
        "nMuon": FlatValues(np.array([2, 1, 3, 5, 1], dtype=np.uint32)),
        "good": FlatValues(np.array([True, True, False, True, False])),
        "vars": FlatValues(np.array([(i, -i) for i in range(5)], dtype=[("pt", "f4"), ("eta", "f4")])),
        "cov": FlatValues(np.arange(10.0).reshape(5, 2)),
    }
    return Block(start, start + 5, columns)


def rules(**sections) -> Preprocessing:
    return Preprocessing.from_json(sections, "preproc.json")


def test_the_reference_example_makes_its_branches() -> None:
    after = Preprocessing.from_json(REFERENCE, "preproc.json").output_branches(BRANCHES)
    assert set(after) == {"Muon_Pt", "nLeptons", "good", "vars", "cov", "name", "log_Energy", "nMuon_square"}
    assert (after["log_Energy"].kind, after["log_Energy"].dtype) == (Kind.JAGGED, "float64")
    assert (after["nMuon_square"].kind, after["nMuon_square"].dtype) == (Kind.FLAT, "float64")


def test_the_reference_example_cuts_as_it_says() -> None:
    preprocessing = Preprocessing.from_json(REFERENCE, "preproc.json")
    processed = preprocessing.apply(block())
    assert preprocessing.cuts == (
        "any log_Energy<6.31",
        "all log_Energy>5.85",
        "1<=nMuon_square<=16",
        "nLeptons<=2",
        "all Muon_Pt>200",
    )
    # any is false for the empty list of entry 2, and for log(1000); all is false for log(100)
    assert processed.passed.tolist() == [3, 2, 2, 2, 1]
    assert processed.kept.tolist() == [True, False, False, False, False]
    assert set(processed.columns) == {"Muon_Pt", "nLeptons", "good", "vars", "cov", "log_Energy", "nMuon_square"}
    np.testing.assert_allclose(processed.columns["log_Energy"].values, np.log([400.0, 500.0]))
    assert processed.columns["log_Energy"].offsets.tolist() == [0, 2]
    assert processed.columns["nMuon_square"].values.tolist() == [4.0]
    assert processed.columns["vars"].values.tolist() == [(0.0, 0.0)]
    assert processed.columns["cov"].values.tolist() == [[0.0, 1.0]]


def test_the_reference_example_needs_the_branches_of_its_cuts() -> None:
    preprocessing = Preprocessing.from_json(REFERENCE, "preproc.json")
    assert preprocessing.required(["good"], BRANCHES) == ("Energy", "Muon_Pt", "nLeptons", "nMuon", "good")


def test_only_what_is_wanted_is_read_and_computed() -> None:
    preprocessing = rules(
        new_branch={
            "a": {"def": "vars.pt * 2", "type": "flat"},
            "b": {"def": "a + nMuon", "type": "flat"},
            "c": {"def": "cov[1] + pi", "type": "flat"},
        }
    )
    assert preprocessing.required(["b"], BRANCHES) == ("nMuon", "vars")
    assert preprocessing.required(["c", "good"], BRANCHES) == ("good", "cov")
    assert preprocessing.required([], BRANCHES) == ()
    given = Block(0, 5, {name: block().columns[name] for name in ("nMuon", "vars")})
    assert set(preprocessing.apply(given).columns) == {"nMuon", "vars", "a", "b"}
    with pytest.raises(UsageError, match=r"no branch nMuo\. Did you mean nMuon"):
        preprocessing.required(["nMuo"], BRANCHES)


def test_an_empty_list_passes_all_and_not_any() -> None:
    def kept(mode: str) -> list[bool]:
        return rules(jagged_cut={"Energy": {"cut": ["Energy > 0", mode]}}).apply(block()).kept.tolist()

    assert kept("all") == [True, True, True, True, True]
    assert kept("any") == [True, True, False, True, True]


def test_nan_fails_a_cut() -> None:
    columns = {"x": FlatValues(np.array([1.0, math.nan])), "v": lists([[1.0], [math.nan, 2.0]])}
    preprocessing = rules(flat_cut={"x": {"cut": "x > 0 or x <= 0"}})
    assert preprocessing.apply(Block(0, 2, columns)).kept.tolist() == [True, False]
    preprocessing = rules(jagged_cut={"v": {"cut_1": ["v > 0", "all"]}})
    assert preprocessing.apply(Block(0, 2, columns)).kept.tolist() == [True, False]


def test_the_cut_flow_counts_what_passed_all_cuts_so_far() -> None:
    preprocessing = rules(
        flat_cut={"nMuon": {"cut_1": "nMuon > 1", "cut_2": "nMuon < 5"}, "good": {"cut": "not good"}},
    )
    processed = preprocessing.apply(block())
    assert preprocessing.cuts == ("nMuon > 1", "nMuon < 5", "not good")
    assert processed.passed.dtype == np.int64
    assert processed.passed.tolist() == [3, 2, 1]
    assert rows_of(processed.columns["nMuon"]) == [3]
    assert rows_of(processed.columns["Energy"]) == [[]]


def test_blocks_of_any_size_give_the_same_events() -> None:
    preprocessing = Preprocessing.from_json(REFERENCE | {"flat_cut": {}, "jagged_cut": {}}, "preproc.json")
    whole = block()
    together = preprocessing.apply(whole)
    kept, columns = [], {name: [] for name in together.columns}
    passed = np.zeros(3, dtype=np.int64)
    for i in range(5):
        alone = {}
        for name, column in whole.columns.items():
            if isinstance(column, FlatValues):
                alone[name] = FlatValues(column.values[i : i + 1])
            else:
                start, stop = column.offsets[i : i + 2]
                alone[name] = JaggedValues(np.array([0, stop - start]), column.values[start:stop])
        processed = preprocessing.apply(Block(i, i + 1, alone))
        kept += processed.kept.tolist()
        passed += processed.passed
        for name in columns:
            columns[name] += rows_of(processed.columns[name])
    assert kept == together.kept.tolist()
    assert passed.tolist() == together.passed.tolist()
    assert columns == {name: rows_of(column) for name, column in together.columns.items()}


def test_no_entry_and_no_rule_are_fine() -> None:
    nothing = rules()
    assert nothing.cuts == ()
    assert nothing.output_branches(BRANCHES) == BRANCHES
    processed = nothing.apply(block())
    assert processed.kept.all()
    assert processed.passed.size == 0
    empty = {"nLeptons": FlatValues(np.empty(0, np.int32)), "Muon_Pt": lists([])}
    preprocessing = rules(flat_cut=REFERENCE["flat_cut"], jagged_cut=REFERENCE["jagged_cut"])
    assert preprocessing.apply(Block(0, 0, empty)).passed.tolist() == [0, 0]


def test_new_branches_may_be_written_in_any_order() -> None:
    preprocessing = rules(
        new_branch={
            "c": {"def": "b * 2", "type": "flat", "cut": "c > 8"},
            "b": {"def": "a + 1", "type": "flat", "remove": "True"},
            "a": {"def": "nMuon + 1", "type": "flat", "remove": True},
        }
    )
    assert list(preprocessing.output_branches(BRANCHES)) == [*BRANCHES, "c"]
    processed = preprocessing.apply(block())
    assert processed.columns["c"].values.tolist() == [10.0, 14.0]
    assert not {"a", "b"} & set(processed.columns)


def test_branches_are_removed_after_the_cuts_that_use_them() -> None:
    preprocessing = rules(
        new_branch={"twice": {"def": "nMuon * 2", "type": "flat", "keys_to_remove": "nMuon, good"}},
        flat_cut={"nMuon": {"cut": "nMuon > 2"}, "cov": {"remove": "True"}},
        jagged_cut={"Energy": {"cut": ["Energy > 0", "all"], "remove": "true"}},
    )
    assert list(preprocessing.output_branches(BRANCHES)) == ["Muon_Pt", "nLeptons", "vars", "name", "twice"]
    assert set(preprocessing.apply(block()).columns) == {"Muon_Pt", "nLeptons", "vars", "twice"}


def test_conditions_counts_and_copies_keep_their_type() -> None:
    after = rules(
        new_branch={
            "high": {"def": "Muon_Pt > 200", "type": "jagged"},
            "nHigh": {"def": "sum(Muon_Pt > 200)", "type": "flat"},
            "any_high": {"def": "any(Muon_Pt > 200)", "type": "flat", "cut": "any_high"},
            "copy": {"def": "nMuon", "type": "flat"},
            "lead": {"def": "Muon_Pt[0]", "type": "flat"},
        }
    ).output_branches(BRANCHES)
    assert {name: after[name].dtype for name in ("high", "nHigh", "any_high", "copy", "lead")} == {
        "high": "bool",
        "nHigh": "int64",
        "any_high": "bool",
        "copy": "uint32",
        "lead": "float64",
    }


NEW = {"def": "nMuon + 1", "type": "flat"}


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"new_branches": {}}, r"unknown key new_branches\. Did you mean new_branch"),
        ({"new_branch": {"a": {**NEW, "cuts": "a>1"}}}, r"new_branch a has the unknown key cuts\. Did you mean cut"),
        ({"new_branch": {"a": {**NEW, "cut_x": "a>1"}}}, "unknown key cut_x"),
        ({"flat_cut": {"nMuon": {"cut": "nMuon>1", "def": "x"}}}, "unknown key def"),
        ({"new_branch": []}, "new_branch is no JSON object"),
        ({"new_branch": {"a": "nMuon"}}, "new_branch a is no JSON object"),
        ({"new_branch": {"a": {"def": "nMuon"}}}, "has the type None.*flat"),
        ({"new_branch": {"a": {**NEW, "type": ["flat"]}}}, "has the type"),
        ({"new_branch": {"a": {"type": "flat"}}}, "a, def is no expression"),
        ({"new_branch": {" ": NEW}}, "is no name"),
        ({"new_branch": {"a": {**NEW, "remove": "yes"}}}, "has remove yes"),
        ({"new_branch": {"a": {**NEW, "keys_to_remove": 1}}}, "no list of names"),
        ({"new_branch": {"a": {**NEW, "cut": 3}}}, "a, cut has the wrong form"),
        ({"flat_cut": {"nMuon": {"cut": ["nMuon>1", "all"]}}}, 'wrong form.*Write "x > 0"'),
        ({"jagged_cut": {"Energy": {"cut": "Energy>1"}}}, r'wrong form.*\["x > 0", "all"\]'),
        ({"jagged_cut": {"Energy": {"cut": ["Energy>1", "some"]}}}, "wrong form"),
        ({"flat_cut": {"nMuon": {}}}, "nMuon has no cut"),
        ({"new_branch": {"a": {"def": "b", "type": "flat"}, "b": {"def": "a", "type": "flat"}}}, "in a circle: . -> ."),
        ({"new_branch": {"nMuon": {"def": "log(nMuon)", "type": "flat"}}}, "circle: nMuon -> nMuon"),
        ({"new_branch": {"a": {"def": "__import__('os')", "type": "flat"}}}, "__import__, which is no function"),
    ],
)
def test_what_has_no_meaning_is_refused_before_any_file_is_read(sections: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Preprocessing.from_json(sections, "preproc.json")


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"new_branch": {"a": {"def": "nMun + 1", "type": "flat"}}}, r"refers to nMun.*Did you mean nMuon"),
        ({"new_branch": {"a": {**NEW, "keys_to_remove": ["Enrgy"]}}}, "names Enrgy.*Did you mean Energy"),
        ({"new_branch": {"a": {**NEW, "cut": "b > 1"}}}, "a, cut, 'b > 1' refers to b"),
        ({"flat_cut": {"nMun": {"cut": "nMuon>1"}}}, "names nMun.*Did you mean nMuon"),
        ({"new_branch": {"good": NEW}}, "already a branch good"),
        ({"new_branch": {"vars.pt": NEW}}, r"already a branch vars\.pt"),
        ({"new_branch": {"a": {"def": "Energy", "type": "flat"}}}, "is jagged, and its type says flat"),
        ({"new_branch": {"a": {"def": "sum(Energy)", "type": "jagged"}}}, "is flat, and its type says jagged"),
        ({"new_branch": {"a": {"def": "name + 1", "type": "flat"}}}, "refers to name, which is no number but string"),
        ({"new_branch": {"a": {"def": "2 * pi", "type": "flat"}}}, "refers to no branch"),
        ({"new_branch": {"a": {"def": "cov + 1", "type": "flat"}}}, "cov is a fixed array"),
        ({"new_branch": {"a": {"def": "vars.phi", "type": "flat"}}}, "vars has no member phi"),
        ({"new_branch": {"a": {"def": "x.__class__", "type": "flat"}}}, "is no branch"),
        ({"flat_cut": {"nMuon": {"cut": "nMuon"}}}, "is a number, not a condition"),
        ({"flat_cut": {"nMuon": {"cut": "Energy > 1"}}}, r'is jagged.*Write \["Energy > 1", "all"\]'),
        ({"flat_cut": {"Energy": {"cut": "sum(Energy) > 1"}}}, "Energy is jagged.*into jagged_cut"),
        ({"jagged_cut": {"nMuon": {"cut": ["Energy > 1", "all"]}}}, "nMuon is flat.*into flat_cut"),
        ({"jagged_cut": {"Energy": {"cut": ["nMuon > 1", "all"]}}}, "all takes a jagged branch, and this is flat"),
        ({"jagged_cut": {"Energy": {"cut": ["Energy", "any"]}}}, "any stands beside a number"),
    ],
)
def test_what_does_not_fit_the_branches_is_refused_before_values_are_read(sections: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Preprocessing.from_json(sections, "preproc.json").output_branches(BRANCHES)


def test_lists_of_different_lengths_are_refused_with_file_and_entry() -> None:
    preprocessing = rules(new_branch={"a": {"def": "Energy + Muon_Pt", "type": "jagged"}})
    given = Block(100, 102, {"Energy": lists([[1.0], [2.0]]), "Muon_Pt": lists([[1.0], [2.0, 3.0]])})
    with pytest.raises(MlaasError, match=r"a\.root:Events: .*Energy has 1 and Muon_Pt has 2 values in entry 101"):
        preprocessing.apply(given, "a.root:Events")


def test_a_bool_branch_that_is_a_number_in_another_file_is_refused_with_that_file() -> None:
    preprocessing = rules(flat_cut={"good": {"cut": "not good"}})
    with pytest.raises(UsageError, match=r"b\.root: .*good, cut, 'not good': 'not' stands beside a number"):
        preprocessing.apply(Block(0, 1, {"good": FlatValues(np.array([1], dtype=np.int8))}), "b.root")


def test_a_branch_that_a_cut_needs_and_the_block_lacks_is_named() -> None:
    with pytest.raises(MlaasError, match="needs nMuon, which is not there"):
        rules(flat_cut={"nMuon": {"cut": "nMuon > 1"}}).apply(Block(0, 1, {"x": FlatValues(np.ones(1))}))


def test_the_json_is_kept_and_its_digest_changes_with_it(tmp_path: Path) -> None:
    path = tmp_path / "preproc.json"
    path.write_text(json.dumps(REFERENCE))
    loaded = Preprocessing.load(path)
    assert loaded.as_json() == REFERENCE
    again = Preprocessing.from_json(loaded.as_json(), "a bundle")
    assert again.digest == loaded.digest
    assert again.cuts == loaded.cuts
    swapped = {"jagged_cut": REFERENCE["jagged_cut"], "flat_cut": REFERENCE["flat_cut"]}
    assert rules(**swapped).digest != rules(**dict(reversed(swapped.items()))).digest


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"flat_cut": {"x": {"cut": "x>1", "cut": "x<9"}}}', "has cut twice"),
        (b'{"flat_cut": ', "is no JSON"),
        (b"[]", "is no JSON object"),
        (b"\xff\xfe\x00", "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "preproc.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=rf"preproc\.json.*{message}"):
        Preprocessing.load(path)


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere\.json cannot be read"):
        Preprocessing.load(tmp_path / "nowhere.json")


@pytest.fixture(autouse=True)
def own_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders that a user's file was run in are forgotten again."""
    monkeypatch.setattr(sys, "path", list(sys.path))


def function(tmp_path: Path, body: str, more: str = "") -> Preprocessing:
    path = tmp_path / "preproc.py"
    text = "".join(f"    {line}\n" for line in body.splitlines())
    path.write_text(f"{more}\ndef preprocessing(record):\n{text}")
    return Preprocessing.load(path)


def test_a_function_changes_adds_removes_and_drops(tmp_path: Path) -> None:
    loaded = function(
        tmp_path,
        "if record['nMuon'] > 3: return None\n"
        "if not record['Energy']: return False\n"
        "record['log_Energy'] = [math.log(e) for e in record.pop('Energy')]\n"
        "record['ratio'] = record['vars']['pt'] / 2\n"
        "record['tight'] = record['nLeptons'] > 1\n"
        "return record",
        "import math",
    )
    assert loaded.needs_sample
    assert loaded.required(["nMuon"], BRANCHES) == tuple(name for name in BRANCHES if name != "name")
    sampled = loaded.sampled(block())
    assert not sampled.needs_sample
    after = sampled.output_branches(BRANCHES)
    assert list(after) == ["Muon_Pt", "nLeptons", "nMuon", "good", "vars", "cov", "log_Energy", "ratio", "tight"]
    assert {name: (branch.kind, branch.dtype) for name, branch in after.items()} == {
        "Muon_Pt": (Kind.JAGGED, "float64"),
        "nLeptons": (Kind.FLAT, "int64"),
        "nMuon": (Kind.FLAT, "uint64"),
        "good": (Kind.FLAT, "bool"),
        "vars": (Kind.STRUCT, ""),
        "cov": (Kind.FIXED, "float64"),
        "log_Energy": (Kind.JAGGED, "float64"),
        "ratio": (Kind.FLAT, "float64"),
        "tight": (Kind.FLAT, "bool"),
    }
    processed = sampled.apply(block())
    assert sampled.cuts == ("preprocessing() of preproc.py",)
    assert processed.kept.tolist() == [True, True, False, False, True]
    assert processed.passed.tolist() == [3]
    assert rows_of(processed.columns["log_Energy"]) == [
        [math.log(400), math.log(500)],
        [math.log(1000)],
        [math.log(380)],
    ]
    assert processed.columns["ratio"].values.tolist() == [0.0, 0.5, 2.0]
    assert processed.columns["vars"].values["eta"].tolist() == [0.0, -1.0, -4.0]
    assert processed.columns["cov"].values.tolist() == [[0.0, 1.0], [2.0, 3.0], [8.0, 9.0]]


def test_a_function_agrees_with_the_same_rules_in_json(tmp_path: Path) -> None:
    by_function = function(
        tmp_path,
        "record['double'] = [2 * e for e in record['Energy']]\nreturn record if record['nMuon'] <= 2 else None",
    ).sampled(block())
    by_rules = rules(
        new_branch={"double": {"def": "2 * Energy", "type": "jagged"}}, flat_cut={"nMuon": {"cut": "nMuon <= 2"}}
    )
    one, other = by_function.apply(block()), by_rules.apply(block())
    assert one.kept.tolist() == other.kept.tolist()
    assert set(one.columns) == set(other.columns)
    for name, column in one.columns.items():
        assert rows_of(column) == rows_of(other.columns[name])


def test_a_function_works_on_one_event_and_on_none(tmp_path: Path) -> None:
    sampled = function(tmp_path, "return record if record['nMuon'] < 2 else None").sampled(
        Block(0, 1, {"nMuon": FlatValues(np.array([1])), "v": lists([[]])})
    )
    processed = sampled.apply(Block(0, 1, {"nMuon": FlatValues(np.array([5])), "v": lists([[1.0]])}))
    assert processed.kept.tolist() == [False]
    assert processed.columns["nMuon"].values.size == 0
    assert processed.columns["v"].offsets.tolist() == [0]
    processed = sampled.apply(Block(0, 1, {"nMuon": FlatValues(np.array([0])), "v": lists([[1.0, 2.0]])}))
    assert rows_of(processed.columns["v"]) == [[1.0, 2.0]]


def test_events_to_predict_need_no_sample(tmp_path: Path) -> None:
    loaded = function(tmp_path, "return {'x': [record['nMuon']]} if record['nMuon'] > 1 else None")
    kept = loaded.apply(Block(0, 1, {"nMuon": FlatValues(np.array([3.0]))}))
    assert rows_of(kept.columns["x"]) == [[3.0]]
    dropped = loaded.apply(Block(0, 1, {"nMuon": FlatValues(np.array([1.0]))}))
    assert (dropped.kept.tolist(), dropped.columns) == ([False], {})
    with pytest.raises(MlaasError, match="not tried on any event"):
        loaded.output_branches(BRANCHES)


def test_none_in_a_record_is_a_missing_value(tmp_path: Path) -> None:
    sampled = function(tmp_path, "return {'x': None if record['good'] else 1.5}").sampled(block())
    assert np.isnan(sampled.apply(block()).columns["x"].values).tolist() == [True, True, False, True, False]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return record['nMuno']", r"preproc\.py, line 3: KeyError: 'nMuno'.*Correct the preprocessing"),
        ("return 1 / 0", r"preproc\.py, line 3: ZeroDivisionError"),
        ("raise SystemExit(3)", r"preproc\.py, line 3: SystemExit"),
        ("return 5", "returns int for entry 40.*Return the record"),
        ("return None", "drops each of the first 5 events"),
        ("return {1: 2}", "1 is no name"),
        ("return {'x': 'a'}", "x is 'a' in entry 40"),
        ("return {'x': [[1]]}", r"x is \[1\] in entry 40"),
        ("return {'x': 2**60}", "x is 1152921504606846976 in entry 40, which float64 would round"),
        ("return {'x': 10**400}", "x has an integer that float64 does not hold"),
        ("return {'x': 1} if record['nMuon'] == 2 else {'y': 1}", "record of entry 41 lacks x, unlike the first"),
        ("return {'x': 1} if record['nMuon'] == 2 else {'x': 1, 'y': 1}", "entry 41 has also y"),
        ("return {'x': [1] if record['nMuon'] == 2 else 1}", "x is 1 in entry 41, and was a list before"),
        ("return {'x': 1 if record['nMuon'] == 2 else [1]}", r"x is \[1\] in entry 41"),
        ("return {'cov': record['cov'][:1]}", r"cov is no longer an array.*shape \[2\]"),
        ("return {'vars': {'pt': 1.0}}", "vars has other members than eta, pt in entry 40"),
    ],
)
def test_what_goes_wrong_in_a_function_is_one_sentence(tmp_path: Path, body: str, message: str) -> None:
    with pytest.raises(MlaasError, match=message) as caught:
        function(tmp_path, body).sampled(block(40)).apply(block(40))
    assert "\n" not in str(caught.value)


def test_types_of_the_first_events_hold_for_all(tmp_path: Path) -> None:
    sampled = function(tmp_path, "return {'x': record['x'], 'n': record['n']}").sampled(
        Block(0, 1, {"x": FlatValues(np.array([True])), "n": FlatValues(np.array([3]))})
    )
    later = Block(7, 8, {"x": FlatValues(np.array([True])), "n": FlatValues(np.array([0.5]))})
    with pytest.raises(MlaasError, match=r"n is 0\.5 in entry 7, and was int64 before"):
        sampled.apply(later)
    later = Block(7, 8, {"x": FlatValues(np.array([2])), "n": FlatValues(np.array([1]))})
    with pytest.raises(MlaasError, match="x is 2 in entry 7, and was bool before"):
        sampled.apply(later)


def test_integers_of_the_file_stay_exact_through_a_function(tmp_path: Path) -> None:
    numbers = np.array([2**63 + 1, 5], dtype=np.uint64)
    given = Block(0, 2, {"event": FlatValues(numbers)})
    processed = function(tmp_path, "return record").sampled(given).apply(given)
    np.testing.assert_array_equal(processed.columns["event"].values, numbers)


def test_a_function_file_without_the_function_is_refused_with_near_misses(tmp_path: Path) -> None:
    path = tmp_path / "preproc.py"
    path.write_text("def preprocess(record): return record\n")
    with pytest.raises(UsageError, match=r"has no function preprocessing\..*Did you mean preprocess"):
        Preprocessing.load(path)


def test_a_function_file_that_raises_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "preproc.py"
    path.write_text("import math\nx = math.log(0)\n")
    with pytest.raises(MlaasError, match=r"preproc\.py, line 2: ValueError"):
        Preprocessing.load(path)
    path.write_text("def preprocessing(record:\n")
    with pytest.raises(MlaasError, match=r"preproc\.py, line 1: SyntaxError"):
        Preprocessing.load(path)


def test_a_function_file_may_import_what_lies_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "beside_preproc.py").write_text("def doubled(value):\n    return value * 2 / 0\n")
    function(tmp_path, "return {'x': doubled(record['nMuon'])}", "from beside_preproc import doubled")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MlaasError, match=r"/beside_preproc\.py, line 2: ZeroDivisionError"):
        Preprocessing.load(Path("preproc.py")).sampled(block())


def test_a_function_has_a_digest_and_no_json(tmp_path: Path) -> None:
    one, other = function(tmp_path, "return record"), function(tmp_path, "return dict(record)")
    assert one.as_json() is None
    assert one.digest != other.digest
    assert one.digest == one.sampled(block()).digest


def test_real_files_are_processed_as_an_event_at_a_time_would_be(real_data: Path) -> None:
    """Muons of CMS open data: leading momentum, mass of the first two, cuts; against plain Python."""
    with open_source(resolve_files(str(real_data / "cms_opendata_muons_100k.root"), "Events")[0]) as reader:
        branches = {branch.name: branch for branch in reader.branches}
        preprocessing = rules(
            new_branch={
                "pz": {"def": "Muon_pt * sinh(Muon_eta)", "type": "jagged"},
                "lead": {"def": "Muon_pt[0]", "type": "flat"},
                "ht": {"def": "sum(where(abs(Muon_eta) < 1.5, Muon_pt, 0))", "type": "flat", "cut": "ht >= 0"},
            },
            flat_cut={"nMuon": {"cut": "1 <= nMuon <= 4"}},
            jagged_cut={"Muon_pt": {"cut": ["Muon_pt > 3", "all"]}},
        )
        names = preprocessing.required(["pz", "lead"], branches)
        given = next(reader.blocks(names, min(reader.entries, 2_000)))
    processed = preprocessing.apply(given)
    n = given.stop - given.start
    pt, eta = (rows_of(given.columns[name]) for name in ("Muon_pt", "Muon_eta"))
    count = given.columns["nMuon"].values.tolist()
    kept = [1 <= count[i] <= 4 and all(value > 3 for value in pt[i]) for i in range(n)]
    assert 0 < sum(kept) < n
    assert processed.kept.tolist() == kept
    chosen = [i for i in range(n) if kept[i]]
    np.testing.assert_array_equal(processed.columns["lead"].values, [pt[i][0] for i in chosen])
    expected = [p * math.sinh(e) for i in chosen for p, e in zip(pt[i], eta[i], strict=True)]
    np.testing.assert_allclose(processed.columns["pz"].values, expected, rtol=1e-12)
    expected = [sum(p for p, e in zip(pt[i], eta[i], strict=True) if abs(e) < 1.5) for i in chosen]
    np.testing.assert_allclose(processed.columns["ht"].values, expected, rtol=1e-12)


def test_the_same_rules_mean_the_same_in_root_and_parquet(real_data: Path) -> None:
    preprocessing = rules(
        new_branch={
            "lead": {"def": "Jet_pt[0]", "type": "flat"},
            "energy": {"def": "Jet_pt * cosh(Jet_eta)", "type": "jagged"},
        },
        jagged_cut={"Muon_pt": {"cut": ["Muon_pt > 5", "all"]}},
        flat_cut={"nJet": {"cut": "nJet > 2"}},
    )
    results = []
    for name in ("nanoaod_dy.root", "nanoaod_dy.parquet"):
        with open_source(resolve_files(str(real_data / name), "Events")[0]) as reader:
            needed = preprocessing.required(["lead", "energy"], {branch.name: branch for branch in reader.branches})
            results.append(preprocessing.apply(next(iter(reader.blocks(needed, reader.entries)))))
    one, other = results
    assert one.passed.tolist() == other.passed.tolist()
    np.testing.assert_array_equal(one.kept, other.kept)
    for name in ("lead", "energy"):
        np.testing.assert_array_equal(one.columns[name].values, other.columns[name].values)


def test_what_the_documentation_shows_is_understood() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "preprocessing.md").read_text(encoding="utf-8")
    example = json.loads(page.split("```json")[1].split("```")[0])
    assert len(Preprocessing.from_json(example, "the example").cuts) == 5
    table = page.split("## Expressions")[1].split("`np.` or")[0].replace("\\|", "|")
    signs = ("(", "[", "1 <=", "event")
    expressions = [text for text in re.findall("`([^`]+)`", table) if any(sign in text for sign in signs)]
    assert len(expressions) > 10
    for text in expressions:
        parse(text, "the documentation")
    names = " ".join(re.findall("`([a-z0-9 ]+)`", table)).split()
    assert set(names) - {"and", "or", "not", "pi", "inf", "nan"} <= set(ARGUMENTS)
