"""Each event's part is its own, and every batch holds all files in proportion."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path

import numpy as np
import pytest

from mlaas4hep.data.batches import Batches, mixed, rows_of_part
from mlaas4hep.data.ingest import share_events
from mlaas4hep.data.split import Part, entry_hash, fold_parts, parts_of, positions


def splitmix64(start: int, entry: int) -> int:
    """The generator in plain integers."""
    mask = 2**64 - 1
    state = (start + (entry + 1) * 0x9E3779B97F4A7C15) & mask
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
    return state ^ (state >> 31)


def test_the_hash_is_splitmix64() -> None:
    start = int.from_bytes(hashlib.sha256(b"file").digest()[:8], "little")
    expected = [splitmix64(start, entry) for entry in range(50)]
    assert entry_hash("file", np.arange(50, dtype=np.uint64)).tolist() == expected
    assert splitmix64(0, 0) == 0xE220A8397B1DCDAF  # the published first output of seed 0


def test_the_parts_have_their_fractions_and_do_not_depend_on_where_one_starts() -> None:
    numbers = positions("file", 0, 100_000)
    parts = parts_of(numbers, 0.3)
    fractions = np.bincount(parts, minlength=3) / parts.size
    assert fractions == pytest.approx([0.7, 0.15, 0.15], abs=0.005)
    assert np.array_equal(positions("file", 40_000, 50_000), numbers[40_000:50_000])
    assert not np.array_equal(positions("other", 0, 100_000), numbers)


def test_every_event_tests_in_one_fold_and_validates_in_another() -> None:
    numbers = positions("file", 0, 10_000)
    parts = np.stack([fold_parts(numbers, 5, fold) for fold in range(5)])
    assert ((parts == Part.TEST).sum(axis=0) == 1).all()
    assert ((parts == Part.VALIDATION).sum(axis=0) == 1).all()
    assert np.bincount(parts[0], minlength=3) / 10_000 == pytest.approx([0.6, 0.2, 0.2], abs=0.02)


def test_mixing_keeps_every_stretch_in_proportion_and_takes_each_row_once() -> None:
    groups = [np.arange(0, 600), np.arange(600, 900), np.arange(900, 1000)]
    order = mixed(groups)
    assert sorted(order) == list(range(1000))
    for start in range(0, 1000, 50):
        counts = np.histogram(order[start : start + 50], bins=[0, 600, 900, 1001])[0]
        assert np.abs(counts - [30, 15, 5]).max() <= 1


def test_stretches_of_a_mix_make_up_the_whole() -> None:
    groups = [np.arange(0, 617, dtype=np.uint32), np.arange(617, 900, dtype=np.uint32), np.arange(900, 901)]
    edges = np.linspace(0, 1, 8)
    stretches = [mixed(groups, start, stop) for start, stop in itertools.pairwise(edges)]
    assert np.array_equal(np.concatenate(stretches), mixed(groups))


def test_limited_events_are_shared_in_proportion() -> None:
    assert share_events([600, 300, 100], 10) == [6, 3, 1]
    assert sum(share_events([7, 11, 13], 10)) == 10
    assert share_events([7, 11], -1) == share_events([7, 11], 100) == [7, 11]


def test_an_epoch_takes_each_training_event_once_and_shuffles_on_demand(stored, workflow_folder: Path) -> None:
    store = stored([workflow_folder / "signal.root", workflow_folder / "background.root"], identifiers=["event"])
    groups = rows_of_part(store, Part.TRAIN)
    batches = Batches(store, store.schema(), groups, batch_size=64, chunk_size=128, shuffle=True, seed=1)
    taken = [batch.rows.copy() for batch in batches.epoch(0)]
    assert {rows.size for rows in taken[:-1]} == {64}
    assert sorted(np.concatenate(taken)) == sorted(np.concatenate(groups))
    first, again, second = (np.concatenate(list(batches.order(epoch))) for epoch in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("chunk_size", [1, 100, 1000, -1])
def test_the_size_of_chunks_does_not_change_the_batches(stored, workflow_folder: Path, chunk_size: int) -> None:
    store = stored([workflow_folder / "signal.root", workflow_folder / "background.root"], identifiers=["event"])
    groups = rows_of_part(store, Part.TRAIN)

    def matrix(chunk: int):
        batches = Batches(store, store.schema(), groups, batch_size=50, chunk_size=chunk)
        return np.concatenate([batch.values.copy() for batch in batches.epoch(0)])

    assert np.array_equal(matrix(chunk_size), matrix(50))
