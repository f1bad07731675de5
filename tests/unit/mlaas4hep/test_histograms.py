"""Histograms of inputs and multiplicities, against the events that they were made from."""

from __future__ import annotations

import awkward as ak
import numpy as np
import pytest

from mlaas4hep.data.split import Part
from mlaas4hep.training.histograms import as_json, from_json, histograms, multiplicities

EVENTS = 3000


@pytest.fixture
def columns() -> dict[str, object]:
    generator = np.random.default_rng(9)
    counts = generator.poisson(1.5, EVENTS)
    return {
        "flat": generator.normal(10.0, 2.0, EVENTS).astype(np.float32),
        "number": generator.integers(0, 5, EVENTS).astype(np.int32),
        "tail": np.where(np.arange(EVENTS) == 7, 1e6, generator.random(EVENTS)).astype(np.float32),
        "constant": np.full(EVENTS, 3.25, dtype=np.float32),
        "Jet": ak.zip({"pt": ak.unflatten(generator.exponential(30.0, int(counts.sum())).astype(np.float32), counts)}),
    }


@pytest.fixture
def store(tmp_path, write_tree, stored, columns):
    return stored([write_tree(tmp_path / "events.root", columns)], excluded=["nJet"])


def by_name(found):
    return {histogram.name: histogram for histogram in found}


def targets(store):
    return (np.arange(store.facts.events) % 2).astype(np.int8)


def training(store):
    return store.parts == Part.TRAIN


@pytest.mark.parametrize("scaling", ["minmax", "standard", "robust"])
def test_counts_are_those_of_the_training_events_by_class_whatever_the_scaling(store, columns, scaling) -> None:
    found = by_name(histograms(store, store.schema(scaling=scaling), ("b", "s"), targets(store)))["flat"]
    for number in (0, 1):
        chosen = columns["flat"][training(store) & (targets(store) == number)].astype(np.float64)
        inside = np.clip(chosen, found.edges[0], np.nextafter(found.edges[-1], 0))
        expected, _ = np.histogram(inside, found.edges)
        assert found.counts[number] == pytest.approx(expected, abs=1)
        assert found.counts[number].sum() == chosen.size


def test_values_of_a_jagged_branch_count_one_by_one(store, columns) -> None:
    found = by_name(histograms(store, store.schema(), ("b", "s"), targets(store)))["Jet_pt"]
    assert found.counts.sum() == ak.count(columns["Jet"]["pt"][training(store)])


def test_whole_numbers_get_a_bin_each(store, columns) -> None:
    found = by_name(histograms(store, store.schema(), ("b", "s"), targets(store)))["number"]
    assert found.edges.tolist() == [-0.5, 0.5, 1.5, 2.5, 3.5, 4.5]
    assert found.counts.sum(axis=0).tolist() == np.bincount(columns["number"][training(store)]).tolist()


def test_one_far_value_does_not_squeeze_the_others(store) -> None:
    found = by_name(histograms(store, store.schema(), ("b", "s"), targets(store)))["tail"]
    assert found.edges[-1] < 2.0
    assert found.counts.sum() == training(store).sum()


def test_a_constant_lies_within_its_range(store) -> None:
    found = by_name(histograms(store, store.schema(), ("b", "s"), targets(store)))["constant"]
    assert found.edges[0] < 3.25 < found.edges[-1]
    assert found.counts.sum() == training(store).sum()


def test_weights_are_summed(store) -> None:
    weights = np.linspace(0.5, 1.5, store.facts.events).astype(np.float32)
    found = histograms(store, store.schema(), ("b", "s"), targets(store), weights)
    assert by_name(found)["flat"].counts.sum() == pytest.approx(weights[training(store)].sum())


def test_a_regression_counts_all_events_together(store) -> None:
    values = np.linspace(0.0, 1.0, store.facts.events)
    found = histograms(store, store.schema(), (), values)
    assert by_name(found)["flat"].counts.shape[0] == 1
    assert as_json(found, ())["flat"]["counts"].keys() == {"events"}


def test_multiplicities_are_the_lengths_of_the_lists(store, columns) -> None:
    (found,) = multiplicities(store, store.schema(), ("b", "s"), targets(store))
    lengths = ak.to_numpy(ak.num(columns["Jet"]["pt"]))[training(store)]
    expected = np.bincount(lengths)
    assert found.name == "Jet_pt"
    assert found.edges[0] == -0.5 and (np.diff(found.edges) == 1).all()
    shown = found.counts.sum(axis=0)
    assert shown[:-1].tolist() == expected[: shown.size - 1].tolist()
    assert shown.sum() == lengths.size


def test_sentinels_are_left_out(tmp_path, write_tree, stored) -> None:
    generator = np.random.default_rng(3)
    values = np.where(generator.random(EVENTS) < 0.2, -999.0, generator.normal(0, 1, EVENTS)).astype(np.float32)
    store = stored([write_tree(tmp_path / "sentinels.root", {"mass": values})])
    assert [value for value, _ in store.facts.statistics[0].sentinels] == [-999.0]
    (found,) = histograms(store, store.schema(), ("b", "s"), targets(store))
    assert found.edges[0] > -10
    assert found.counts.sum() == (values[training(store)] != -999).sum()


def test_json_gives_the_same_histograms_back(store) -> None:
    found = histograms(store, store.schema(), ("b", "s"), targets(store))
    again = from_json(as_json(found, ("b", "s")))
    for before, after in zip(found, again, strict=True):
        assert before.name == after.name
        assert (before.edges == after.edges).all() and (before.counts == after.counts).all()
