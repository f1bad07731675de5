"""The store: made once, never stale, never half-made; and files that cannot be trusted."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import awkward as ak
import numpy as np
import pytest

from mlaas4hep.data.ingest import ingest, scan
from mlaas4hep.data.schema import select
from mlaas4hep.data.sources import resolve_files
from mlaas4hep.errors import MlaasError, UsageError


def stores(cache: Path) -> list[str]:
    """What is in the cache beside locks."""
    return sorted(path.name for path in cache.iterdir() if path.suffix != ".lock") if cache.exists() else []


def test_a_store_is_made_once_and_used_again(stored, workflow_folder: Path, own_store: Path) -> None:
    first = stored([workflow_folder / "signal.root"], identifiers=["event"])
    made = (first.folder / "store.json").stat().st_mtime_ns
    again = stored([workflow_folder / "signal.root"], identifiers=["event"])
    assert again.folder == first.folder
    assert (again.folder / "store.json").stat().st_mtime_ns == made
    assert len(stores(own_store)) == 1


def test_changed_contents_and_parameters_get_a_store_of_their_own(stored, workflow_folder: Path) -> None:
    file = workflow_folder / "signal.root"
    keys = [stored([file], identifiers=["event"]).facts.key]
    keys.append(stored([file], identifiers=["event"], nevts=100).facts.key)
    keys.append(stored([file], identifiers=["event"], excluded=["MET_pt"]).facts.key)
    times = file.stat()
    file.write_bytes(file.read_bytes())
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    keys.append(stored([file], identifiers=["event"]).facts.key)
    assert len(set(keys)) == len(keys)


def test_the_parts_do_not_depend_on_place_name_or_order(stored, workflow_folder: Path, tmp_path: Path) -> None:
    here = [workflow_folder / "signal.root", workflow_folder / "background.root"]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    moved = [Path(shutil.copy(here[1], elsewhere / "b.root")), Path(shutil.copy(here[0], elsewhere / "a.root"))]
    one, other = (stored(files, identifiers=["event"]) for files in (here, moved))
    assert np.array_equal(one.parts[:600], other.parts[300:])
    assert np.array_equal(one.parts[600:], other.parts[:300])


def test_all_files_of_a_limited_reading_are_there_in_proportion(stored, workflow_folder: Path) -> None:
    store = stored(
        [workflow_folder / "signal.root", workflow_folder / "background.root"], nevts=90, identifiers=["event"]
    )
    assert [(file.start, file.stop, file.entries) for file in store.facts.files] == [(0, 60, 600), (60, 90, 300)]


@pytest.mark.parametrize(
    ("name", "tree", "said"),
    [
        ("truncated_half_cms_zz.root", "events", "is truncated"),
        ("truncated_header_cms_ww.root", "events", "is truncated"),
        ("truncated_tail_nanoaod_dy.root", "Events", "is truncated: 345547 bytes of 352599"),
        ("corrupt_basket_MET_px_cms_zz.root", "events", "The branch MET_px of"),
        ("not_root_text.root", "events", "is not a ROOT file"),
        ("zero_bytes.root", "events", "is empty (0 bytes)"),
        ("no_tree_histograms.root", "events", "has no tree events. There are no trees."),
        ("old_cs_compression.root", "ntuple", "unsupported compression"),
        ("empty_tree.root", "tree", "no entries"),
        ("cms_ww.root", "event", "has no tree event. Did you mean events?"),
        ("vector_vector_double.root", "t", "No branch is left as an input"),
    ],
)
def test_a_file_that_cannot_be_trusted_is_refused_and_leaves_nothing(
    stored, real_data: Path, own_store: Path, name: str, tree: str, said: str
) -> None:
    with pytest.raises(MlaasError) as refused:
        stored([real_data / name], tree=tree)
    assert said in str(refused.value)
    assert name in str(refused.value) or isinstance(refused.value, UsageError)
    assert stores(own_store) == []


def test_integers_that_would_be_rounded_are_refused_by_name(stored, workflow_folder: Path) -> None:
    with pytest.raises(UsageError, match=r"would round in event\. Add them to identifier"):
        stored([workflow_folder / "signal.root"])


def test_large_integers_that_float32_holds_are_inputs(stored, tmp_path: Path, write_tree) -> None:
    flags = write_tree(tmp_path / "f.root", {"flags": np.array([0, 2**31, 2**63] * 50, dtype=np.uint64)})
    assert stored([flags]).facts.statistics[0].maximum == 2.0**63


def test_a_file_without_entries_among_others_is_left_out(
    stored, tmp_path: Path, workflow_folder: Path, write_tree
) -> None:
    empty = write_tree(tmp_path / "empty.root", {"MET_pt": np.empty(0)})
    _, _, notes = scan(resolve_files(f"{workflow_folder}/signal.root,{empty}", "Events"))
    assert notes == [f"{empty}:Events has no entries and is left out."]


@pytest.mark.parametrize(("longest", "file"), [(255, "counts.u8"), (256, "counts.u16"), (70_000, "counts.u32")])
def test_counts_are_as_narrow_as_the_longest_list_allows(
    stored, tmp_path: Path, write_tree, longest: int, file: str
) -> None:
    # the longest list is in the second file, so that what was written of the first has to be widened
    counts = np.arange(300) % 5
    counts[-1] = longest
    values = np.arange(counts.sum(), dtype=np.float32)
    lists = ak.unflatten(values, counts)
    files = [
        write_tree(tmp_path / name, {"x": part}) for name, part in (("1.root", lists[:200]), ("2.root", lists[200:]))
    ]
    store = stored(files, excluded=["nx"])
    assert [path.name for path in store.folder.glob("counts.*")] == [file]
    assert store.counts[:, 0].tolist() == counts.tolist()
    assert np.array_equal(store.values, values)
    assert store.facts.statistics[0].multiplicity == longest


def test_a_file_that_changes_meanwhile_is_refused(workflow_folder: Path, own_store: Path) -> None:
    file = workflow_folder / "signal.root"
    files, branches, _ = scan(resolve_files(str(file), "Events"))
    file.write_bytes((workflow_folder / "background.root").read_bytes())
    with pytest.raises(MlaasError, match="changed while it was read"):
        ingest(files, select(branches, identifiers=["event"]), split=0.3)
    assert stores(own_store) == []


KILLED = """
import os, signal, sys
from mlaas4hep.data.ingest import ingest, scan
from mlaas4hep.data.schema import select
from mlaas4hep.data.sources import resolve_files
files, branches, _ = scan(resolve_files(sys.argv[1], "Events"))
def die(done, total):
    os.kill(os.getpid(), signal.SIGKILL)
ingest(files, select(branches, identifiers=["event"]), split=0.3, watch=die)
"""


def test_a_killed_ingest_leaves_no_store_and_the_next_run_is_as_if_nothing_happened(
    stored, workflow_folder: Path, own_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = workflow_folder / "signal.root"
    done = subprocess.run([sys.executable, "-c", KILLED, str(file)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert all(name.endswith(".partial") for name in stores(own_store))
    after = stored([file], identifiers=["event"])
    assert stores(own_store) == [after.facts.key]
    monkeypatch.setenv("MLAAS4HEP_CACHE", str(tmp_path / "other"))
    undisturbed = stored([file], identifiers=["event"])
    for name in ("values.f32", "offsets.i64", "counts.u8", "positions.u32", "store.json"):
        assert (after.folder / name).read_bytes() == (undisturbed.folder / name).read_bytes()
