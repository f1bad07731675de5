"""Kinds of branches as they are read: names, kinds and values of what is unusual in real files."""

from __future__ import annotations

from pathlib import Path

import awkward as ak
import numpy as np
import pytest
import uproot

from mlaas4hep.data.blocks import JaggedValues
from mlaas4hep.data.compression import prepare_uproot, zlib_decompressor
from mlaas4hep.data.root import open_tree
from mlaas4hep.data.schema import Kind
from mlaas4hep.data.sources import Source
from mlaas4hep.errors import MlaasError


def read(path: Path, tree: str, *names: str):
    """The values of some branches in the first block."""
    with open_tree(Source(str(path), tree)) as opened:
        return [next(opened.blocks(names, opened.entries)).columns[name] for name in names]


def kinds(path: Path, tree: str) -> dict[str, Kind]:
    with open_tree(Source(str(path), tree)) as opened:
        assert len({branch.name for branch in opened.branches}) == len(opened.branches)
        return {branch.name: branch.kind for branch in opened.branches}


def test_an_ntuple_collection_appears_once_under_its_short_names(real_data: Path) -> None:
    found = kinds(real_data / "rntuple_cms_muons_1000.root", "Events")
    assert found == {f"Muon_{part}": Kind.JAGGED for part in ("pt", "eta", "phi", "mass", "charge")} | {
        "nMuon": Kind.FLAT
    }
    pt, count = read(real_data / "rntuple_cms_muons_1000.root", "Events", "Muon_pt", "nMuon")
    assert np.array_equal(np.diff(pt.offsets), count.values)


def test_records_and_arrays_of_an_ntuple_are_unpacked(real_data: Path) -> None:
    found = kinds(real_data / "rntuple_stl.root", "ntuple")
    assert found["lorentz_vector.pt"] is Kind.FLAT
    assert found["array_lv.pt"] is found["array_float"] is Kind.FIXED
    assert found["vector_tuple_int32_string.0"] is Kind.JAGGED
    assert found["vector_tuple_int32_string.1"] is found["vector_vector_string"] is Kind.STRING
    assert found["vector_vector_int32"] is Kind.NESTED
    assert found["variant_int32_string"] is Kind.OBJECT
    (array,) = read(real_data / "rntuple_stl.root", "ntuple", "array_lv.pt")
    assert array.values.shape == (5, 3)


def test_a_field_that_was_added_late_is_empty_before(real_data: Path) -> None:
    name = "AnalysisElectronsAuxDyn:ambiguityLink.m_persIndex"
    (late,) = read(real_data / "rntuple_physlite.root", "EventData", name)
    assert late.offsets.tolist()[:6] == [0, 0, 1, 1, 2, 2]


def test_jagged_objects_give_one_branch_a_number(real_data: Path) -> None:
    energy, x = read(real_data / "cms_zz_objects.root", "events", "muonp4.fE", "muonp4.fP.fX")
    (plain,) = read(real_data / "cms_zz.root", "events", "Muon_Px")
    assert isinstance(energy, JaggedValues)
    assert np.array_equal(x.offsets, plain.offsets)
    np.testing.assert_allclose(x.values, plain.values, rtol=1e-6)


def test_single_objects_are_structs(real_data: Path) -> None:
    assert kinds(real_data / "cms_zz_objects.root", "events")["MET"] is Kind.STRUCT
    (met,) = read(real_data / "cms_zz_objects.root", "events", "MET")
    (plain,) = read(real_data / "cms_zz.root", "events", "MET_px")
    np.testing.assert_allclose(met.values["fX"], plain.values, rtol=1e-6)


def test_vectors_that_are_streamed_member_by_member_are_read_right(real_data: Path) -> None:
    names = [f"METAssoc_AnalysisMETAux.jetLink.m_pers{part}" for part in ("Key", "Index")]
    key, index = read(real_data / "atlas_physlite.root", "CollectionTree", *names)
    assert set(key.values[:9]) == {0x1AFD1919, 0}
    assert index.values[:9].tolist() == [*range(8), 2**32 - 1]


def test_equal_names_under_different_parents_are_told_apart_by_path(real_data: Path) -> None:
    found = kinds(real_data / "nested_vectors_500.root", "CommonContainersTree")
    assert Kind.UNREADABLE not in found.values()


def test_branch_names_with_dots_and_slashes(real_data: Path) -> None:
    found = kinds(real_data / "fcc_edm4hep.root", "events")
    jagged = [name for name, kind in found.items() if kind is Kind.JAGGED]
    assert any("." in name for name in jagged)
    with open_tree(Source(str(real_data / "fcc_edm4hep.root"), "events")) as tree:
        assert set(next(tree.blocks(jagged, tree.entries)).columns) == set(jagged)


def test_blocks_share_baskets_without_loss(tmp_path: Path) -> None:
    counts = np.arange(5_000) % 4
    pt = ak.unflatten(np.arange(int(counts.sum()), dtype=np.float32), counts)
    with uproot.recreate(tmp_path / "f.root") as file:
        file.mktree("Events", {"pt": pt.type, "x": np.float64})
        for first in range(0, 5_000, 700):
            part = slice(first, first + 700)
            file["Events"].extend({"pt": pt[part], "x": np.arange(5_000.0)[part]})
    with open_tree(Source(str(tmp_path / "f.root"), "Events")) as tree:
        blocks = list(tree._contents.blocks(["pt", "x"], 5_000, 1_000))
    assert [(start, stop) for start, stop, _ in blocks] == [(n, n + 1_000) for n in range(0, 5_000, 1_000)]
    assert np.array_equal(np.concatenate([block["pt"].values for _, _, block in blocks]), ak.flatten(pt))
    assert np.array_equal(np.concatenate([np.diff(block["pt"].offsets) for _, _, block in blocks]), counts)
    assert np.array_equal(np.concatenate([block["x"].values for _, _, block in blocks]), np.arange(5_000.0))


def test_a_basket_whose_offsets_contradict_its_data_is_refused(tmp_path: Path) -> None:
    pt = ak.unflatten(np.arange(200, dtype=np.float32), [2] * 100)
    path = tmp_path / "f.root"
    with uproot.recreate(path, compression=None) as file:
        file.mktree("Events", {"pt": pt.type}).extend({"pt": pt})
    with uproot.open(path) as file:
        branch = file["Events"]["pt"]
        basket = branch.basket(0)
        place = int(branch.member("fBasketSeek")[0]) + basket.member("fKeylen") + basket.border + 8
    data = bytearray(path.read_bytes())
    data[place : place + 4] = (999).to_bytes(4, "big")
    path.write_bytes(data)
    with pytest.raises(MlaasError, match=r"The branch pt of .* contradict the data"):
        read(path, "Events", "pt")


def test_a_flipped_bit_in_a_page_of_an_ntuple_is_found(tmp_path: Path, real_data: Path) -> None:
    data = bytearray((real_data / "rntuple_staff.root").read_bytes())
    with uproot.open(real_data / "rntuple_staff.root") as file:
        place = file["Staff"].page_link_list[0][0].pages[0].locator
    data[place.offset + place.num_bytes // 2] ^= 1
    (tmp_path / "f.root").write_bytes(data)
    with pytest.raises(MlaasError, match=r"The branch Category of .* \(a checksum does not match\)"):
        read(tmp_path / "f.root", "Staff", "Category")


def test_uproot_decompresses_zlib_by_the_fastest_library() -> None:
    prepare_uproot()
    assert zlib_decompressor()[0] in ("libdeflate", "isal", "zlib")
    raw = bytes(range(256)) * 40
    packed = np.frombuffer(uproot.compression.compress(raw, uproot.ZLIB(4)), dtype=np.uint8)
    assert bytes(uproot.compression._decompress_ZLIB.decompress(packed[9:], len(raw))) == raw
