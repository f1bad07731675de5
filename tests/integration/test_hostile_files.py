"""Damaged ROOT files: whatever is in them, they are read right or refused in one sentence."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import awkward as ak
import numpy as np
import pytest
import uproot

from tests.unit.mlaas4hep.conftest import data_folder

COPIES = 640
WORKERS = 2
REAL = (
    "cms_qcd.root",
    "leaflist.root",
    "fixed_arrays_strings.root",
    "stl_containers.root",
    "double32_float16.root",
    "rntuple_stl.root",
    "rntuple_cms_muons_1000.root",
    "tmva_class_example.root",
)
COMPRESSIONS = {
    "zlib": uproot.ZLIB(4),
    "lz4": uproot.LZ4(4),
    "lzma": uproot.LZMA(4),
    "zstd": uproot.ZSTD(4),
    "plain": None,
}


def columns() -> dict[str, object]:
    generator = np.random.default_rng(7)
    counts = generator.poisson(2.0, 400)
    return {
        "x": np.round(generator.normal(0.0, 1.0, 400), 2).astype(np.float32),
        "flags": generator.integers(0, 100, 400).astype(np.int16),
        "vertex": np.round(generator.normal(0.0, 1.0, (400, 3)), 1),
        "pt": ak.unflatten(np.round(generator.exponential(10.0, int(counts.sum())), 1).astype(np.float32), counts),
    }


def pages(path: Path) -> Iterator[list[int]]:
    """The bytes of an RNTuple's pages."""
    with uproot.open(path) as file:
        for name, kind in file.classnames(cycle=False).items():
            if kind == "ROOT::RNTuple":
                for cluster in file[name].page_link_list:
                    found = [page for column in cluster for page in column.pages if page.has_checksum]
                    yield from ([page.locator.offset, page.locator.offset + page.locator.num_bytes] for page in found)


def baskets(path: Path) -> Iterator[list[int]]:
    """The bytes of the compressed data of a TTree's baskets, without the headers of key and block."""
    with uproot.open(path) as file:
        for branch in file["Events"].itervalues(recursive=True):
            for number in range(branch.num_baskets):
                basket, start = branch.basket(number), int(branch.member("fBasketSeek")[number])
                if basket.block_compression_info:
                    yield [start + basket.member("fKeylen") + 9, start + basket.compressed_bytes]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sound files of several kinds, and where checksums protect their contents."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "seeds").mkdir()
    places = {}
    for name, compression in COMPRESSIONS.items():
        path = folder / "seeds" / f"{name}.root"
        with uproot.recreate(path, compression=compression) as file:
            file.mktree(
                "Events",
                {n: v.type if isinstance(v, ak.Array) else (v.dtype, v.shape[1:]) for n, v in columns().items()},
            )
            for _ in range(2):
                file["Events"].extend(columns())
        places[path.name] = list(baskets(path)) if name in ("zlib", "lz4", "lzma") else []
    with uproot.recreate(folder / "seeds" / "rntuple.root") as file:
        file.mkrntuple("Events", {"x": columns()["x"], "pt": columns()["pt"]})
    real = data_folder()
    for name in REAL if real else ():
        shutil.copy(real / name, folder / "seeds" / name)
    places |= {path.name: list(pages(path)) for path in (folder / "seeds").glob("rntuple*.root")}
    (folder / "places.json").write_text(json.dumps(places))
    return folder


@pytest.fixture(scope="module")
def outcomes(folder: Path) -> list[dict]:
    """What came of reading the damaged copies."""
    worker = [sys.executable, str(Path(__file__).with_name("hostile.py")), str(folder)]
    running = [
        subprocess.Popen([*worker, str(first), str(WORKERS), str(COPIES)], stdout=subprocess.PIPE, text=True)
        for first in range(WORKERS)
    ]
    lines = [line for process in running for line in process.communicate()[0].splitlines()]
    assert [process.returncode for process in running] == [0] * WORKERS, lines[-WORKERS:]
    return [json.loads(line) for line in lines]


def test_damaged_files_raise_nothing_but_our_own_errors(outcomes: list[dict]) -> None:
    assert len(outcomes) == COPIES
    assert [found for found in outcomes if found["outcome"] not in ("same", "changed", "refused")] == []


def test_every_kind_of_damage_is_found_in_some_file(outcomes: list[dict]) -> None:
    refused = Counter(found["kind"] for found in outcomes if found["outcome"] == "refused")
    assert set(refused) == {"cut", "overwrite", "zeros", "copy", "extreme", "protected"}
    assert {found["outcome"] for found in outcomes if found["kind"] == "cut"} == {"refused"}


def test_damage_to_what_a_checksum_protects_never_changes_a_number(folder: Path, outcomes: list[dict]) -> None:
    places = json.loads((folder / "places.json").read_text())
    protected = [found for found in outcomes if found["kind"] == "protected" and places.get(found["seed"])]
    assert protected
    assert [found for found in protected if found["outcome"] == "changed"] == []
