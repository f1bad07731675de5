"""Statistics, scaling, caps and missing values, and the schema that follows, with both engines of the kernels."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import awkward as ak
import numpy as np
import pytest

from mlaas4hep.data.batches import Batches
from mlaas4hep.data.split import Part
from mlaas4hep.errors import MlaasError


def matrix(store, schema) -> tuple[np.ndarray, np.ndarray]:
    batch = next(Batches(store, schema, [np.arange(store.facts.events)], batch_size=store.facts.events).epoch(0))
    return batch.values.copy(), batch.mask.copy()


@pytest.fixture
def store(stored, tmp_path: Path, write_tree):
    generator = np.random.default_rng(3)
    counts = np.minimum(generator.poisson(2.0, 1000), 9)
    counts[0] = 30
    columns = {
        "x": generator.normal(50.0, 4.0, 1000),
        "constant": np.full(1000, 7.0),
        "tau": np.where(np.arange(1000) % 10, generator.exponential(1.0, 1000), -999.0),
        "pt": ak.unflatten(generator.exponential(20.0, int(counts.sum())).astype(np.float32), counts),
        "weight": generator.uniform(0.5, 1.5, 1000),
    }
    return stored([write_tree(tmp_path / "f.root", columns)], weight="weight", excluded=["n*"])


def test_standard_scaling_gives_mean_0_and_deviation_1(store) -> None:
    values, mask = matrix(store, store.schema(scaling="standard"))
    x = values[:, 2]
    assert store.schema().features == ("constant", "tau", "x", "pt")
    assert (x.mean(), x.std()) == pytest.approx((0.0, 1.0), abs=1e-5)
    pt = values[:, 3:][~mask[:, 3:]]
    assert (pt.mean(), pt.std()) == pytest.approx((0.0, 1.0), abs=1e-5)


def test_robust_scaling_gives_median_0_and_interquartile_range_1(store) -> None:
    values, _ = matrix(store, store.schema(scaling="robust"))
    lower, middle, upper = np.quantile(values[:, 2], (0.25, 0.5, 0.75))
    assert (middle, upper - lower) == pytest.approx((0.0, 1.0), abs=1e-4)


@pytest.mark.parametrize("scaling", ["minmax", "standard", "robust"])
def test_a_constant_column_is_zero_and_not_missing(store, scaling: str) -> None:
    values, mask = matrix(store, store.schema(scaling=scaling))
    assert not values[:, 0].any()
    assert not mask[:, 0].any()


def test_the_cap_is_a_number_or_the_share_of_events_that_fit(store) -> None:
    counts = store.counts[:, 0]
    assert store.schema().multiplicities == {"pt": 30}
    assert store.schema(max_multiplicity=4).multiplicities == {"pt": 4}
    cap = store.schema(max_multiplicity=0.99).multiplicities["pt"]
    assert (counts <= cap).mean() >= 0.99 > (counts <= cap - 1).mean()
    values, mask = matrix(store, store.schema(max_multiplicity=4))
    assert values.shape == (1000, 7)
    assert ((~mask[:, 3:]).sum(axis=1) == np.minimum(counts, 4)).all()


def test_sentinels_are_reported_and_become_missing_on_request(store, stored, tmp_path: Path) -> None:
    tau = store.facts.statistics[1]
    assert tau.sentinels == ((-999.0, pytest.approx(0.1)),)
    assert store.facts.statistics[2].sentinels == ()
    again = stored([tmp_path / "f.root"], excluded=["n*", "weight"], missing=[-999.0])
    tau = again.facts.statistics[1]
    assert (tau.nan, tau.minimum >= 0.0, tau.sentinels) == (100, True, ())
    _, mask = matrix(again, again.schema())
    assert np.array_equal(mask[:, 1], np.arange(1000) % 10 == 0)


def test_multiplicity_quantiles_are_those_of_the_events(store) -> None:
    pt = store.facts.statistics[3]
    expected = np.quantile(store.counts[:, 0], (0.5, 0.9, 0.99, 0.999), method="inverted_cdf")
    assert pt.multiplicity_quantiles == tuple(expected)


def test_weights_are_kept_for_each_event_and_are_no_input(store) -> None:
    assert store.weights is not None
    assert store.weights.size == 1000
    assert "weight" not in store.schema().features


def test_folds_use_each_event_once_to_test(store) -> None:
    tested = np.zeros(1000, dtype=int)
    for fold in range(4):
        with store.using_fold(4, fold):
            tested += store.parts == Part.TEST
    assert (tested == 1).all()


def test_files_that_differ_are_refused_on_request(stored, tmp_path: Path, write_tree) -> None:
    from mlaas4hep.data.ingest import scan
    from mlaas4hep.data.sources import resolve_files

    one = write_tree(tmp_path / "one.root", {"x": np.arange(5.0), "y": np.arange(5.0)})
    two = write_tree(tmp_path / "two.root", {"x": np.arange(5.0)})
    sources = resolve_files(f"{one},{two}", "Events")
    assert "y" not in scan(sources)[1]
    with pytest.raises(MlaasError, match=r"differ in their branches: y is not in .*two\.root"):
        scan(sources, "error")


def test_padding_and_missing_values_are_masked_and_filled(stored, tmp_path: Path, write_tree) -> None:
    columns = {"x": np.array([1.0, np.nan, np.inf, 3.0, 1e300] * 40), "y": np.tile(np.arange(5.0), 40)}
    store = stored([write_tree(tmp_path / "f.root", columns)])
    x = store.facts.statistics[0]
    assert (x.nan, x.infinite, x.minimum, x.maximum) == (40, 80, 1.0, 3.0)
    batch = next(Batches(store, store.schema(fill=-1.0), [np.arange(5)], batch_size=5).epoch(0))
    assert batch.values[:, 0].tolist() == [0.0, -1.0, -1.0, 1.0, -1.0]
    assert batch.mask[:, 0].tolist() == [False, True, True, False, True]


def test_statistics_cover_all_events_over_all_blocks(stored, tmp_path: Path, write_tree) -> None:
    values = np.random.default_rng(1).normal(5.0, 2.0, 120_000)
    store = stored([write_tree(tmp_path / "f.root", {"x": values})])
    exact = values.astype(np.float32).astype(np.float64)
    x = store.facts.statistics[0]
    assert (x.count, x.minimum, x.maximum) == (exact.size, exact.min(), exact.max())
    assert (x.mean, x.deviation) == pytest.approx((exact.mean(), exact.std()), rel=1e-9)
    assert x.quantiles == pytest.approx(np.quantile(exact, (0.05, 0.25, 0.5, 0.75, 0.95)), abs=0.2)


def test_statistics_far_from_zero_keep_their_precision(stored, tmp_path: Path, write_tree) -> None:
    values = 16_000_000.0 + np.tile([0.0, 1.0, 2.0, 3.0], 1000)
    x = stored([write_tree(tmp_path / "f.root", {"x": values})]).facts.statistics[0]
    assert (x.mean, x.deviation) == pytest.approx((values.mean(), values.std()), rel=1e-12)


OTHER_ENGINE = """
import sys
import numpy as np
from pathlib import Path
from mlaas4hep.data import kernels
from mlaas4hep.data.batches import Batches
from mlaas4hep.data.ingest import ingest, scan
from mlaas4hep.data.schema import select
from mlaas4hep.data.sources import resolve_files
files, branches, _ = scan(resolve_files(sys.argv[1], "Events"))
selection = select(branches, excluded=["n*", "weight"])
store = ingest(files, selection, split=0.3, cache=Path(sys.argv[2]))
batch = next(Batches(store, store.schema(fill=-1.0), [np.arange(1000)], batch_size=1000).epoch(0))
np.savez(sys.argv[3], values=batch.values, mask=batch.mask, packed=store.values)
print(kernels.ENGINE)
"""


def test_both_engines_give_the_same_store_and_the_same_matrix(
    store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {}
    for engine in ("numba", "numpy"):
        monkeypatch.setenv("MLAAS4HEP_KERNELS", engine)
        words = [str(tmp_path / "f.root"), str(tmp_path / f"cache-{engine}"), str(tmp_path / f"{engine}.npz")]
        done = subprocess.run([sys.executable, "-c", OTHER_ENGINE, *words], check=True, capture_output=True, text=True)
        assert done.stdout.strip() == engine
        found[engine] = np.load(words[2])
    for name in ("values", "mask", "packed"):
        assert np.array_equal(found["numba"][name], found["numpy"][name])
