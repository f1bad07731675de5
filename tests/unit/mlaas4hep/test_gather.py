"""Missing values in the gathered matrix, and the statistics that it is scaled by."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mlaas4hep.data.batches import Batches


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
