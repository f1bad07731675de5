"""Packing and summing with both engines of the kernels, against plain Python."""

from __future__ import annotations

import math
from types import ModuleType

import numpy as np
import pytest

from mlaas4hep.data import kernels
from mlaas4hep.data.batches import Gatherer, PackedEvents
from mlaas4hep.data.blocks import JaggedValues
from mlaas4hep.data.packing import Inputs, pack
from mlaas4hep.data.schema import FlatColumn, JaggedColumn, Schema

# more events than are packed at a time, and lists longer than what is copied at once
EVENTS, LONGEST = 5000, 40


@pytest.fixture(params=["as installed", "numpy"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    if request.param == "numpy":
        for name in ("measure", "tally", "elements", "interleave", "gather"):
            monkeypatch.setattr(kernels, name, getattr(kernels, f"_{name}_numpy"))
    return kernels


def lists(generator: np.random.Generator, counts: np.ndarray) -> JaggedValues:
    offsets = np.concatenate([[0], np.cumsum(counts)])
    return JaggedValues(offsets, generator.normal(size=offsets[-1]).astype(np.float32))


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize(("flat", "jagged"), [(3, 4), (3, 0), (0, 2), (1, 1)])
def test_each_event_is_packed_in_one_piece(flat: int, jagged: int) -> None:
    generator = np.random.default_rng(1)
    columns = [lists(generator, generator.integers(0, LONGEST, EVENTS) // (1 + 4 * n)) for n in range(jagged)]
    inputs = Inputs(generator.normal(size=(EVENTS, flat)).astype(np.float32), tuple(columns))
    packed = pack(inputs)
    events = [
        [*inputs.flat[event], *(v for column in columns for v in column.values[slice(*column.offsets[event:][:2])])]
        for event in range(EVENTS)
    ]
    assert packed.values.tolist() == [value for event in events for value in event]
    assert packed.sizes.tolist() == [len(event) for event in events]
    assert packed.counts.shape == (EVENTS, jagged)
    assert all(packed.counts[:, n].tolist() == np.diff(column.offsets).tolist() for n, column in enumerate(columns))


@pytest.mark.usefixtures("engine")
def test_no_events_are_packed() -> None:
    packed = pack(Inputs(np.empty((0, 2), np.float32), (JaggedValues(np.zeros(1, np.int64), np.empty(0, np.float32)),)))
    assert (packed.values.size, packed.sizes.size, packed.counts.shape) == (0, 0, (0, 1))


@pytest.mark.parametrize("odd", [[], [math.nan], [math.inf], [-math.inf, math.nan, math.inf]])
@pytest.mark.parametrize("size", [0, 1, 1001])
def test_sums_are_those_of_the_finite_values(engine: ModuleType, size: int, odd: list[float]) -> None:
    finite = np.random.default_rng(1).normal(5.0, 2.0, size).astype(np.float32)
    values = np.random.default_rng(2).permutation(np.concatenate([finite, np.array(odd, np.float32)]))
    shifted = [float(value) - 4.0 for value in finite]
    expected = [size, min(finite, default=math.inf), max(finite, default=-math.inf)]
    expected += [math.fsum(shifted), math.fsum(value**2 for value in shifted)]
    expected += [sum(map(math.isnan, odd)), sum(map(math.isinf, odd))]
    assert engine.measure(values, 4.0) == pytest.approx(tuple(expected), rel=1e-11)


def test_events_are_tallied_by_their_number_of_values(engine: ModuleType) -> None:
    found = np.zeros((4, 2), dtype=np.int64)
    engine.tally(np.array([[0, 3], [2, 9], [2, 2**32 - 1]], np.uint32), found)
    engine.tally(np.array([[1, 1]], np.uint32), found)
    assert found.T.tolist() == [[1, 1, 2, 0], [0, 1, 0, 3]]


@pytest.mark.parametrize("size", [1, 4, 12, 49])
def test_offsets_of_bytes_become_offsets_of_elements(engine: ModuleType, size: int) -> None:
    expected = np.array([0, 0, 3, 4, 4, 5 * 10**6, (2**31 - 1) // size], np.int64)
    found = np.empty_like(expected)
    assert engine.elements(expected * size, size, found)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("begin", [[0, 8, 4, 12], [0, -4, 12], [0, 6, 12], [0, 2**40, 12], [-4, 0, 12]])
def test_offsets_that_fall_or_do_not_divide_are_told(engine: ModuleType, begin: list[int]) -> None:
    assert not engine.elements(np.array(begin, np.int64), 4, np.empty(len(begin), np.int64))


FILL = -2.0


def vector(schema: Schema, flat: list[float], branches: list[list[float]]) -> list[float]:
    """The input vector of an event, with NaN where there is no value."""
    rooms = [column.multiplicity for column in schema.jagged]
    features = [[value] for value in flat] + [
        (values + [math.nan] * room)[:room] for values, room in zip(branches, rooms, strict=True)
    ]
    return [
        float(np.float32((np.float64(value) - shift) * (1 / width))) if math.isfinite(value) else math.nan
        for values, shift, width in zip(features, schema.shift, schema.width, strict=True)
        for value in values
    ]


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("width", [np.uint8, np.uint16, np.uint32])
@pytest.mark.parametrize("odd", [(), (math.nan, math.inf, -math.inf)])
@pytest.mark.parametrize(("flat", "rooms"), [(3, (9, 2, 40, 8, 1)), (0, (30,)), (2, ()), (1, (8, 8, 12))])
def test_input_vectors_are_those_of_plain_python(
    flat: int, rooms: tuple[int, ...], odd: tuple[float, ...], width: type
) -> None:
    generator, events = np.random.default_rng(3), 300
    # rooms are too small for some lists
    counts = np.array([generator.integers(0, room + 4, events) for room in rooms], width).reshape(len(rooms), events).T
    offsets = np.concatenate([[0], np.cumsum(flat + counts.sum(axis=1, dtype=np.int64))])
    values = generator.normal(size=offsets[-1]).astype(np.float32)
    values[generator.integers(0, values.size, 20 * len(odd))] = np.array(odd * 20, np.float32)
    features = flat + len(rooms)
    schema = Schema(
        flat=tuple(FlatColumn(f"f{n}", f"f{n}") for n in range(flat)),
        jagged=tuple(JaggedColumn(f"j{n}", room) for n, room in enumerate(rooms)),
        shift=tuple(generator.normal(size=features)),
        width=tuple(generator.uniform(1, 2, features)),
        fill=FILL,
    )
    rows = generator.permutation(np.append(np.arange(events), events - 1))
    found = np.full((rows.size, schema.idim), 7.0, np.float32)
    mask = generator.integers(0, 2, found.shape).astype(np.bool_)
    Gatherer(schema).gather(PackedEvents(values, offsets, counts), rows, found, mask)
    expected = []
    for row in rows:
        own = values[offsets[row] : offsets[row + 1]].tolist()
        ends = flat + np.cumsum(counts[row], dtype=np.int64)
        pieces = [own[end - count : end] for end, count in zip(ends, counts[row].tolist(), strict=True)]
        expected.append(vector(schema, own[:flat], pieces))
    assert np.array_equal(mask, np.isnan(expected))
    assert np.array_equal(found, np.where(np.isnan(expected), np.float32(FILL), np.array(expected, np.float32)))
