"""Which branches become which columns."""

from __future__ import annotations

import pytest

from mlaas4hep.data.schema import Branch, FlatColumn, JaggedColumn, Kind, Schema, common_branches, select
from mlaas4hep.errors import MlaasError, UsageError

BRANCHES = {
    branch.name: branch
    for branch in (
        Branch("z", Kind.FLAT),
        Branch("trigger", Kind.BOOL),
        Branch("vars", Kind.STRUCT, members=(("m", "float32"), ("eta", "float32"))),
        Branch("cov", Kind.FIXED, shape=(2, 2)),
        Branch("Muon_pt", Kind.JAGGED),
        Branch("Jet_pt", Kind.JAGGED),
        Branch("MC_pt", Kind.JAGGED),
        Branch("hits", Kind.NESTED),
        Branch("name", Kind.STRING),
        Branch("event", Kind.FLAT),
    )
}


def test_flat_columns_come_sorted_and_then_jagged_branches() -> None:
    selection = select(BRANCHES, excluded=["MC*"], identifiers=["event"])
    assert [column.name for column in selection.flat] == [
        "cov[0][0]",
        "cov[0][1]",
        "cov[1][0]",
        "cov[1][1]",
        "trigger",
        "vars.eta",
        "vars.m",
        "z",
    ]
    assert selection.jagged == ("Jet_pt", "Muon_pt")
    assert selection.ignored == ("MC_pt", "event", "hits", "name")


def test_elements_of_a_long_array_stay_in_order() -> None:
    selection = select({"a": Branch("a", Kind.FIXED, shape=(12,))})
    assert [column.index for column in selection.flat] == list(range(12))


def test_what_cannot_be_an_input_is_skipped_and_told() -> None:
    notes = " ".join(select(BRANCHES).notes)
    assert "doubly jagged: hits" in notes
    assert "a string: name" in notes


def test_but_it_is_refused_when_it_was_asked_for_by_name() -> None:
    with pytest.raises(UsageError, match="hits is doubly jagged"):
        select(BRANCHES, selected=["z", "hits"])
    assert select(BRANCHES, selected=["z", "hi*"]).branches == ("z",)


@pytest.mark.parametrize("parameter", ["selected", "excluded", "identifiers"])
def test_an_unknown_name_is_refused_with_near_misses(parameter: str) -> None:
    with pytest.raises(UsageError, match=r"Muon_Pt.*Did you mean Muon_pt"):
        select(BRANCHES, **{parameter: ["Muon_Pt"]})


def test_a_pattern_without_match_is_told() -> None:
    assert "exclude_branches: no branch matches Tau*." in select(BRANCHES, excluded=["Tau*"]).notes


def test_nothing_left_is_refused() -> None:
    with pytest.raises(UsageError, match="No branch is left"):
        select(BRANCHES, excluded=["*"])


def test_two_inputs_of_one_name_are_refused() -> None:
    branches = {"v": Branch("v", Kind.STRUCT, members=(("x", "float32"),)), "v.x": Branch("v.x", Kind.FLAT)}
    with pytest.raises(MlaasError, match=r"both be called v\.x"):
        select(branches)


def test_files_with_other_branches_share_their_intersection() -> None:
    common, notes = common_branches({"a": [BRANCHES["z"], BRANCHES["name"]], "b": [BRANCHES["z"], BRANCHES["cov"]]})
    assert list(common) == ["z"]
    assert notes == ["Branches that only some of the files have are left out: cov, name."]


def test_a_branch_of_two_kinds_is_refused() -> None:
    with pytest.raises(MlaasError, match="z is flat in a but jagged in b"):
        common_branches({"a": [BRANCHES["z"]], "b": [Branch("z", Kind.JAGGED)]})


def test_the_layout_names_every_column_and_survives_json() -> None:
    schema = Schema(
        flat=(FlatColumn("a", "a"),),
        jagged=(JaggedColumn("b", 2),),
        shift=(0.0, -1.0),
        width=(1.0, 4.0),
        ignored=("event",),
    )
    assert (schema.idim, schema.names) == (3, ("a", "b[0]", "b[1]"))
    assert schema.slices == {"a": slice(0, 1), "b": slice(1, 3)}
    assert schema.kinds == {"a": "flat", "b": "jagged"}
    assert schema.multiplicities == {"b": 2}
    assert Schema.model_validate_json(schema.model_dump_json()) == schema
