"""Every readable tree of the real data: the gathered matrix equals a per-event reference that knows only uproot."""

from __future__ import annotations

import math
import re
from pathlib import Path

import awkward as ak
import numpy as np
import pytest
import uproot

from mlaas4hep.data.batches import Batches
from mlaas4hep.errors import UsageError
from tests.unit.mlaas4hep.conftest import data_folder

EVENTS = 20
REFUSED = {
    "corrupt_basket_MET_px_cms_zz.root": "The branch MET_px of",
    "no_tree_histograms.root": "has no tree",
    "not_root_text.root": "is not a ROOT file",
    "old_cs_compression.root": "unsupported compression",
    "truncated_half_cms_zz.root": "is truncated",
    "truncated_header_cms_ww.root": "is truncated",
    "truncated_tail_nanoaod_dy.root": "is truncated",
    "zero_bytes.root": "is empty",
}
# vectors that uproot takes for plain structs though they are streamed member by member
MEMBERWISE = ("METAssoc_AnalysisMETAux.jetLink", "CutBookkeepers", "IncompleteCutBookkeepers")
# uproot alone takes minutes for these; what is special in them is in test_kinds.py
LEFT_OUT = {("rntuple_physlite.root", "MetaData"), ("rntuple_physlite.root", "EventData")}
NO_NUMBERS = ("AsObjects", "AsStrings", "UnknownInterpretation")
TREES = ("TTree", "TNtuple", "TNtupleD", "ROOT::RNTuple")


def cases() -> list[tuple[str, str]]:
    """Each tree with entries of each file that can be opened."""
    found = []
    folder = data_folder()
    for path in sorted(folder.glob("*.root")) if folder else ():
        if path.name not in REFUSED:
            with uproot.open({path: None}) as file:
                kinds = file.classnames(recursive=True, cycle=False)
                found += [(path.name, name) for name, kind in kinds.items() if kind in TREES and file[name].num_entries]
    return [case for case in found if case not in LEFT_OUT]


def in_tree(tree) -> dict[str, ak.Array]:
    """The first events of every branch, one after another, under the names that a user sees; what fails is left out."""
    leaves = [(path, branch) for path, branch in tree.iteritems(recursive=True) if not branch.branches]
    names = [branch.name for _, branch in leaves]
    arrays = {}
    for path, branch in leaves:
        name = branch.name if names.count(branch.name) == 1 else path
        if not name.startswith(MEMBERWISE) and type(branch.interpretation).__name__ not in NO_NUMBERS:
            try:
                arrays[name] = branch.array(entry_stop=EVENTS, library="ak")
            except Exception:
                continue
    return arrays


def in_ntuple(ntuple) -> dict[str, ak.Array]:
    """The first events of every top-level field."""
    projected = {field.record.source_field_id for field in ntuple.all_fields}
    records = ntuple.arrays(entry_stop=EVENTS)
    top = [field for field in ntuple.all_fields if field.top_level]
    hidden = {field.name for field in top if not field.typename and field.field_id in projected}
    return {name: records[name] for name in records.fields if name not in hidden}


def features(name: str, array: ak.Array) -> dict[tuple[str, int], list]:
    """What a branch gives: flat columns as lists of numbers, jagged ones as lists of lists; nothing for other types."""
    kind = array.type.content
    if isinstance(kind, ak.types.RecordType):
        parts = [features(f"{name}.{field}", array[field]) for field in array.fields]
        return {key: values for part in parts for key, values in part.items()}
    if isinstance(kind, ak.types.NumpyType):
        return {(name, -1): array.to_list()}
    if isinstance(kind, ak.types.RegularType):
        return fixed(name, array)
    if isinstance(kind, ak.types.ListType) and kind.parameter("__array__") is None:
        if isinstance(kind.content, ak.types.NumpyType):
            return {(name, -2): array.to_list()} if kind.content.parameter("__array__") is None else {}
        if isinstance(kind.content, ak.types.RecordType):
            parts = [features(f"{name}.{field}", array[field]) for field in array.fields]
            return {key: values for part in parts for key, values in part.items()}
    return {}


def fixed(name: str, array: ak.Array) -> dict[tuple[str, int], list]:
    """One column an element of a fixed array, or of such an array in each record."""
    if array.fields:
        parts = [features(f"{name}.{field}", array[field]) for field in array.fields]
        return {key: values for part in parts for key, values in part.items()}
    try:
        rows = ak.to_numpy(array)
    except ValueError:
        return {}
    if rows.dtype.kind not in "biuf":
        return {}
    return {(name, place): column.tolist() for place, column in enumerate(rows.reshape(len(rows), -1).T)}


def without_index(name: str) -> str:
    return re.sub(r"(\[\d+\])+$", "", name)


def matrix(found: dict[tuple[str, int], list], events: int) -> np.ndarray:
    """Flat columns sorted by name, then jagged branches sorted by name and padded with NaN; scaled to [0, 1]."""

    def number(value) -> float:
        with np.errstate(over="ignore"):
            single = float(np.float32(value))
        return single if math.isfinite(single) else math.nan

    def scaled(value: float, extremes: tuple[float, float]) -> float:
        low, high = extremes
        if math.isnan(value):
            return math.nan
        return (value - low) / (high - low) if high > low else 0.0

    rows: list[list[float]] = [[] for _ in range(events)]
    for key in sorted(key for key in found if key[1] >= -1):
        column = [number(value) for value in found[key]]
        known = [value for value in column if not math.isnan(value)]
        extremes = (min(known), max(known)) if known else (0.0, 0.0)
        for row, value in zip(rows, column, strict=True):
            row.append(scaled(value, extremes))
    for key in sorted(key for key in found if key[1] == -2):
        lists = [[number(value) for value in event] for event in found[key]]
        known = [value for event in lists for value in event if not math.isnan(value)]
        width = max(1, *(len(event) for event in lists), 1)
        extremes = (min(known), max(known)) if known else (0.0, 0.0)
        for row, event in zip(rows, lists, strict=True):
            row.extend(scaled(value, extremes) for value in event)
            row.extend([math.nan] * (width - len(event)))
    return np.array(rows)


def ingested(stored, source: str, excluded: list[str]):
    """The store; branches that the error names as too exact for an input become identifiers, as it says."""
    identifiers: list[str] = []
    while True:
        try:
            return stored([source], nevts=EVENTS, excluded=excluded, identifiers=identifiers), identifiers
        except UsageError as error:
            named = re.search(r"would round in (.+?)(?: and \d+ more)?\. Add them to identifier", str(error))
            if not named:
                raise
            identifiers += named[1].split(", ")


@pytest.mark.parametrize(("name", "tree"), cases(), ids=lambda part: part)
def test_the_matrix_equals_the_reference(stored, real_data: Path, name: str, tree: str) -> None:
    with uproot.open({real_data / name: None}) as file:
        opened = file[tree]
        entries = min(int(opened.num_entries), EVENTS)
        arrays = (in_ntuple if file.classname_of(tree) == "ROOT::RNTuple" else in_tree)(opened)
    found = {key: values for branch, array in arrays.items() for key, values in features(branch, array).items()}
    if not found:
        with pytest.raises(UsageError, match="No branch is left as an input"):
            stored([f"{real_data / name}:{tree}"])
        return
    try:
        store, identifiers = ingested(stored, f"{real_data / name}:{tree}", [f"{part}*" for part in MEMBERWISE])
    except UsageError as error:
        assert "No branch is left as an input" in str(error)
        return
    found = {key: values for key, values in found.items() if key[0] not in identifiers}
    schema = store.schema(fill=np.nan)
    flat = sorted(key[0] for key in found if key[1] >= -1)
    assert [without_index(column) for column in schema.features[: len(flat)]] == [without_index(name) for name in flat]
    assert list(schema.features[len(flat) :]) == sorted(key[0] for key in found if key[1] == -2)
    expected = matrix(found, entries)
    batch = next(Batches(store, schema, [np.arange(entries)], batch_size=EVENTS, chunk_size=EVENTS).epoch(0))
    assert np.array_equal(np.isnan(batch.values), np.isnan(expected))
    assert np.array_equal(batch.mask, np.isnan(expected))
    np.testing.assert_allclose(batch.values, expected, rtol=1e-6, atol=1e-6)
