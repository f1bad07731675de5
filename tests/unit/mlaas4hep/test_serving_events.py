"""Raw events that become inputs at once are the same as those that go through a block of branches."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from mlaas4hep.data.blocks import Block
from mlaas4hep.data.packing import Inputs, inputs_of
from mlaas4hep.data.schema import FlatColumn, InputBranch, JaggedColumn, Kind, Schema
from mlaas4hep.errors import UsageError
from mlaas4hep.serving.events import EventReader
from mlaas4hep.serving.tensors import decode

FLAT = ("mass", "pt", "eta", "phi")


def schema(*jagged: str) -> Schema:
    size = len(FLAT) + len(jagged)
    return Schema(
        flat=tuple(FlatColumn(name, name) for name in FLAT),
        jagged=tuple(JaggedColumn(name, 3) for name in jagged),
        shift=(0.0,) * size,
        width=(1.0,) * size,
        missing=(-999.0,),
        inputs=(
            *(InputBranch(name, Kind.FLAT) for name in reversed(FLAT)),
            *(InputBranch(name, Kind.JAGGED) for name in jagged),
        ),
    )


def inputs(found: Block | Inputs, form: Schema) -> Inputs:
    if isinstance(found, Inputs):
        return found
    names = [column.name for column in form.jagged]
    return inputs_of(found.columns, found.stop - found.start, form.flat, names, form.missing)


def agree(form: Schema, ways: list[Block | Inputs]) -> None:
    direct, through = ways
    assert isinstance(direct, Inputs)
    assert isinstance(through, Block)
    expected = inputs(through, form)
    np.testing.assert_array_equal(direct.flat, expected.flat)
    assert direct.flat.dtype == np.float32
    assert direct.flat.flags.c_contiguous
    for one, other in zip(direct.jagged, expected.jagged, strict=True):
        np.testing.assert_array_equal(one.offsets, other.offsets)
        np.testing.assert_array_equal(one.values, other.values)


EVENTS: list[dict[str, Any]] = [
    {"mass": 1.5, "pt": 1e300, "eta": None, "phi": True, "jets": [1, 2.5, None]},
    {"phi": -999, "eta": -1, "pt": 16777217, "mass": 2.0**-200, "jets": []},
]


@pytest.mark.parametrize("jagged", [(), ("jets",)])
@pytest.mark.parametrize("count", [1, 2])
def test_events_in_json(jagged: tuple[str, ...], count: int) -> None:
    form = schema(*jagged)
    events = [{name: event[name] for name in (*FLAT, *jagged)} for event in EVENTS[:count]]
    agree(form, [EventReader(form, direct).from_json(events) for direct in (True, False)])


def request(shape: list[int], **data: Any) -> bytes:
    return json.dumps(
        {"inputs": [{"name": name, "shape": shape, "datatype": "FP64", "data": data[name]} for name in FLAT]}
    ).encode()


COLUMNS = {"mass": [1.5, 2.0], "pt": [1e300, -999.0], "eta": [0.1, 3.0], "phi": [1e-300, 2.0]}


@pytest.mark.parametrize("shape", [[2], [2, 1]])
def test_events_as_tensors(shape: list[int]) -> None:
    form = schema()
    tensors = decode(request(shape, **COLUMNS), None).tensors
    assert {array.shape for array in tensors.values()} == {tuple(shape)}
    agree(form, [EventReader(form, direct).from_tensors(tensors) for direct in (True, False)])


def test_columns_that_are_read_together_are_those_that_are_read_one_by_one() -> None:
    together = decode(request([2], **COLUMNS), None).tensors
    # an integer keeps them apart
    apart = decode(request([2], **COLUMNS | {"phi": [1e-300, 2]}), None).tensors
    assert list(together) == list(apart)
    for name, array in together.items():
        np.testing.assert_array_equal(array, apart[name])
        assert array.dtype == apart[name].dtype


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"phi": [1.0]}, "phi has 1 values for the shape"),
        ({"phi": [[1.0], [2.0]]}, None),
        ({"phi": [1.0, "x"]}, "phi has values that are no numbers"),
        ({"phi": [1.0, [2.0]]}, "phi has lists of different lengths"),
    ],
)
def test_columns_that_do_not_fit_are_explained(change: dict[str, Any], told: str | None) -> None:
    body = request([2], **COLUMNS | change)
    if told is None:
        assert decode(body, None).tensors["phi"].tolist() == [1.0, 2.0]
    else:
        with pytest.raises(UsageError, match=told):
            decode(body, None)


def test_an_input_that_is_there_twice_is_refused() -> None:
    body = request([2], **COLUMNS).replace(b'"phi"', b'"eta"')
    with pytest.raises(UsageError, match="eta is there twice"):
        decode(body, None)


def test_tensors_of_different_shapes_are_explained() -> None:
    tensors = {name: np.zeros(2 if name == "pt" else 3) for name in FLAT}
    with pytest.raises(UsageError, match="events, but"):
        EventReader(schema(), True).from_tensors(tensors)
    scalars = {name: np.zeros(()) for name in FLAT}
    with pytest.raises(UsageError, match="it has one value an event"):
        EventReader(schema(), True).from_tensors(scalars)
