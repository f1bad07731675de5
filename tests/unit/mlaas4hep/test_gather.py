"""The gathered matrix against a straightforward reference: one event after another, with uproot's NumPy arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import uproot

from mlaas4hep.data.batches import Batches
from mlaas4hep.data.split import Part

FILES = {
    "cms_ww.root": "events",
    "cms_zz_lz4.root": "events",
    "cms_zz_lzma.root": "events",
    "cms_zz_zstd.root": "events",
    "cms_zz_uncompressed.root": "events",
    "cms_zz_objects.root": "events",
    "cms_boosted_small10kevts.root": "events",
    "nanoaod_dy.root": "Events",
    "vbf_h150.root": "shrinked",
    "leaflist.root": "tree",
    "tntuple_75k.root": "ntuple",
    "tmva_class_example.root": "TreeS",
    "ntuple_4mu_gg.root": "HZZ4LeptonsAnalysisReduced",
    "fixed_arrays_strings.root": "tree",
    "double32_float16.root": "tree",
    "glast_merit_wide.root": "user",
    "geant4_float_entries.root": "HitStrips",
    "nested_dirs.root": "one/two/tree",
    "pdune_nested_dir.root": "pduneana/beamana",
    "nested_vectors_500.root": "CommonContainersTree",
}
EVENTS = 60


def inexact(values) -> bool:
    """Whether float32 rounds some integer of these."""
    numbers = [int(v) for event in values for v in np.ravel(event)] if values.dtype.kind in "iuO" else []
    return any(int(np.float32(number)) != number for number in numbers)


def by_kind(tree) -> tuple[dict, dict, list[str]]:
    """Flat columns, jagged branches, and branches to leave out, each with the first events' values."""
    flat, jagged, left_out = {}, {}, []
    for _, branch in tree.iteritems(recursive=True):
        if branch.branches:
            continue
        name = branch.name
        try:
            values = branch.array(library="np", entry_stop=EVENTS)
        except Exception:
            left_out.append(name)
            continue
        if values.dtype.names:
            flat |= {(f"{name}.{member}", -1): values[member] for member in values.dtype.names}
        elif values.dtype.kind in "biuf" and not inexact(values):
            rows = values.reshape(len(values), -1)
            flat |= {(name, i if values.ndim > 1 else -1): rows[:, i] for i in range(rows.shape[1])}
        elif values.dtype.kind == "O" and of_numbers(branch.interpretation):
            lists = [np.asarray(list(event)) for event in values]
            plain = all(event.dtype.kind in "biuf" and event.ndim == 1 for event in lists)
            if plain and not (integers(lists) and inexact(values)):
                jagged[name] = lists
            else:
                left_out.append(name)
        else:
            left_out.append(name)
    return flat, jagged, left_out


def of_numbers(interpretation) -> bool:
    return type(getattr(interpretation, "content", None)).__name__ == "AsDtype"


def integers(lists) -> bool:
    return any(event.dtype.kind in "iu" and event.size for event in lists)


def reference(flat: dict, jagged: dict, training) -> np.ndarray:
    """Flat columns sorted by name, then jagged branches sorted by name and padded with NaN; scaled to [0, 1]."""

    def scaled(value: float, low: float, high: float) -> float:
        return (float(np.float32(value)) - low) / (high - low) if high > low else 0.0

    def extremes(values) -> tuple[float, float]:
        finite = [float(v) for v in np.asarray(values, dtype=np.float32) if np.isfinite(v)]
        return (min(finite), max(finite)) if finite else (0.0, 0.0)

    rows: list[list[float]] = [[] for _ in training]
    for key in sorted(flat):
        low, high = extremes([v for v, t in zip(flat[key], training, strict=True) if t])
        for row, value in zip(rows, flat[key], strict=True):
            row.append(scaled(value, low, high) if np.isfinite(np.float32(value)) else np.nan)
    for name in sorted(jagged):
        low, high = extremes([v for event, t in zip(jagged[name], training, strict=True) if t for v in event])
        width = max(1, *(len(event) for event in jagged[name]))
        for row, event in zip(rows, jagged[name], strict=True):
            row.extend(scaled(v, low, high) if np.isfinite(np.float32(v)) else np.nan for v in event)
            row.extend([np.nan] * (width - len(event)))
    return np.array(rows)


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.parametrize("name", FILES)
def test_the_matrix_equals_the_reference(stored, real_data: Path, name: str) -> None:
    tree = FILES[name]
    with uproot.open(real_data / name) as file:
        entries = min(int(file[tree].num_entries), EVENTS)
        flat, jagged, left_out = by_kind(file[tree])
    store = stored([f"{real_data / name}:{tree}"], nevts=EVENTS, excluded=left_out)
    schema = store.schema(fill=np.nan)
    assert schema.features == tuple(f"{n}[{i}]" if i >= 0 else n for n, i in sorted(flat)) + tuple(sorted(jagged))
    batches = Batches(store, schema, [np.arange(entries)], batch_size=64)
    gathered = np.concatenate([batch.values.copy() for batch in batches.epoch(0)])
    mask = np.concatenate([batch.mask.copy() for batch in batches.epoch(0)])
    expected = reference(flat, jagged, store.parts == Part.TRAIN)
    assert np.array_equal(np.isnan(gathered), np.isnan(expected))
    assert np.array_equal(mask, np.isnan(expected))
    np.testing.assert_allclose(gathered, expected, rtol=1e-6, atol=1e-6)


def test_padding_and_missing_values_are_masked_and_filled(stored, tmp_path: Path, write_tree) -> None:
    columns = {"x": np.array([1.0, np.nan, np.inf, 3.0, 1e300] * 40), "y": np.tile(np.arange(5.0), 40)}
    store = stored([write_tree(tmp_path / "f.root", columns)])
    x = store.facts.statistics[0]
    assert (x.nan, x.infinite, x.minimum, x.maximum) == (40, 80, 1.0, 3.0)
    batch = next(Batches(store, store.schema(fill=-1.0), [np.arange(5)], batch_size=5).epoch(0))
    assert batch.values[:, 0].tolist() == [0.0, -1.0, -1.0, 1.0, -1.0]
    assert batch.mask[:, 0].tolist() == [False, True, True, False, True]


def test_statistics_cover_the_training_events_over_all_blocks(stored, tmp_path: Path, write_tree) -> None:
    values = np.random.default_rng(1).normal(5.0, 2.0, 120_000)
    store = stored([write_tree(tmp_path / "f.root", {"x": values})])
    training = values.astype(np.float32)[store.parts == Part.TRAIN].astype(np.float64)
    x = store.facts.statistics[0]
    assert (x.count, x.minimum, x.maximum) == (training.size, training.min(), training.max())
    assert (x.mean, x.deviation) == pytest.approx((training.mean(), training.std()), rel=1e-6)
