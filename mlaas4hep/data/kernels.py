"""The inner loops of the data path: one implementation compiled by numba, one in NumPy for where numba is missing.

Both give the same values bit by bit; only sums over many values may differ in their last bits, by their order.
`MLAAS4HEP_KERNELS=numpy` chooses NumPy although numba is there.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]

# what `measure` sums up, in this order
COUNT, MINIMUM, MAXIMUM, FIRST, SECOND, NAN, INFINITE = range(7)

# unsigned indices spare the compiled loops the test for negative ones
_U64 = np.uint64
# numbers of 32 bits in a cache line
_LINE = np.uint64(16)
# the bits of infinity in float32
_INFINITY = np.uint32(0x7F800000)
# lists are copied so many values at a time; `interleave` needs that much room behind its arrays
PADDING = 8


def _measure_loop(values: Floats, middle: float) -> tuple[int, float, float, float, float, int, int]:
    """Finite values: number, least, greatest, sum of (v - middle), sum of its square; number of NaN, of infinite."""
    # no loop has branches, so that all are vectorised; the bits of the absolute value tell whether all are finite
    bits, largest = values.view(np.uint32), np.uint32(0)
    for index in range(bits.size):
        largest = max(largest, bits[index] & np.uint32(0x7FFFFFFF))
    count, nan = 0, 0
    first, second = 0.0, 0.0
    low, high = np.float32(np.inf), np.float32(-np.inf)
    if largest < _INFINITY:
        # two loops, as LLVM vectorises them better than one
        for index in range(values.size):
            shifted = float(values[index]) - middle
            first += shifted
            second += shifted * shifted
        for index in range(values.size):
            low, high = min(low, values[index]), max(high, values[index])
        return values.size, float(low), float(high), first, second, 0, 0
    for index in range(values.size):
        value = values[index]
        finite = (value - value) == np.float32(0)
        shifted = np.float64(value) - middle if finite else 0.0
        count += 1 if finite else 0
        nan += 1 if value != value else 0  # noqa: PLR0124
        first += shifted
        second += shifted * shifted
        least = value if finite else np.float32(np.inf)
        greatest = value if finite else np.float32(-np.inf)
        low = min(low, least)
        high = max(high, greatest)
    return count, float(low), float(high), first, second, nan, values.size - count - nan


def _interleave_loop(
    lists: Floats,
    offsets: Integers,
    flat: Floats,
    begin: int,
    packed: Floats,
    counts: NDArray[np.uint32],
    sizes: Integers,
) -> None:
    """Write some events one after another from packed[begin] on; see `packing.pack`."""
    width, branches, most = _U64(flat.shape[1]), _U64(offsets.shape[0]), _U64(PADDING)
    starts, end = np.zeros(offsets.shape[0], dtype=np.uint64), _U64(begin)
    for branch in range(1, starts.size):
        starts[branch] = starts[branch - 1] + _U64(offsets[branch - 1, -1] - offsets[branch - 1, 0])
    for event in range(_U64(flat.shape[0])):
        first = end
        for column in range(width):
            packed[end + column] = flat[event, column]
        end += width
        for branch in range(branches):
            start, count = starts[branch], _U64(offsets[branch, event + _U64(1)] - offsets[branch, event])
            # always so many, which needs no loop: whatever is too much is overwritten by what follows
            for place in range(most):
                packed[end + place] = lists[start + place]
            for place in range(most, count):
                packed[end + place] = lists[start + place]
            starts[branch] = start + count
            counts[event, branch] = count
            end += count
        sizes[event] = end - first


def _tally_loop(counts: NDArray[np.uint32], found: Integers) -> None:
    """Add the number of events with each number of values to `found`, one column a branch; its last row is open."""
    last = np.uint32(found.shape[0] - 1)
    for event in range(_U64(counts.shape[0])):
        for branch in range(_U64(counts.shape[1])):
            found[min(counts[event, branch], last), branch] += 1


def _elements_loop(begin: Integers, size: int, found: Integers) -> bool:
    """Divide rising offsets by `size` into `found`; False where they fall or do not divide."""
    inverse, wrong, before = 1.0 / size, False, np.int64(0)
    for index in range(begin.size):
        # division by multiplying, which is exact for what divides
        place = begin[index]
        element = np.int64(np.float64(place) * inverse + 0.5)
        wrong |= (place < before) | (element * size != place)
        before = place
        found[index] = element
    return not wrong


def _gather_loop(
    values: Floats,
    offsets: Integers,
    counts: NDArray[np.unsignedinteger[Any]],
    rows: Integers,
    shift: Doubles,
    factor: Doubles,
    room: Integers,
    place: Integers,
    fill: float,
    out: Floats,
    mask: NDArray[np.bool_],
) -> np.float32:
    """Write the input vectors of some rows; see `batches.Gatherer`."""
    events, branches, flat = _U64(rows.size), _U64(room.size), _U64(shift.size - room.size)
    most, size, idim = _U64(PADDING), _U64(values.size), _U64(out.shape[1])
    touched, empty = np.float32(0), np.float32(fill)
    for row in range(events):
        source, following = _U64(rows[row]), row + _U64(1)
        if following < events:
            # random rows lie far apart: all cache lines of the next one are asked for while this one is written
            ahead = _U64(rows[following])
            line, end = _U64(offsets[ahead]), _U64(offsets[ahead + _U64(1)])
            while line < end:
                touched += values[line]
                line += _LINE
            line = _U64(0)
            while line < branches:
                touched += np.float32(counts[ahead, line])
                line += _LINE
        vector, absent = out[row], mask[row]
        vector[:] = empty
        absent[:] = True
        begin = _U64(offsets[source])
        for column in range(flat):
            value = values[begin + column]
            finite = (value - value) == np.float32(0)
            vector[column] = np.float32((value - shift[column]) * factor[column]) if finite else empty
            absent[column] = not finite
        begin += flat
        for branch in range(branches):
            stored, cell = _U64(counts[source, branch]), _U64(place[branch])
            middle, scale = shift[flat + branch], factor[flat + branch]
            kept, done = min(stored, _U64(room[branch])), _U64(0)
            # always so many, which needs no loop: the cells behind the list are emptied again
            wide = _U64(room[branch]) >= most and begin + most <= size and cell + kept + most <= idim
            if wide:
                odd = np.float32(0)
                for index in range(most):
                    value = values[begin + index]
                    odd += value - value
                    vector[cell + index] = np.float32((value - middle) * scale)
                for index in range(most):
                    absent[cell + index] = False
                if odd == np.float32(0):
                    done = most
            if done < kept:
                for index in range(done, kept):
                    value = values[begin + index]
                    finite = (value - value) == np.float32(0)
                    if finite:
                        vector[cell + index] = np.float32((value - middle) * scale)
                    else:
                        vector[cell + index] = empty
                    absent[cell + index] = not finite
            if wide:
                behind = cell + kept
                for index in range(most):
                    vector[behind + index] = empty
                for index in range(most):
                    absent[behind + index] = True
            begin += stored
    # returned, or else the compiler would leave the touching out
    return touched


def _measure_numpy(values: Floats, middle: float) -> tuple[int, float, float, float, float, int, int]:
    nan, infinite = 0, 0
    finite = np.isfinite(values)
    if not finite.all():
        nan = int(np.isnan(values).sum())
        infinite = int(values.size - finite.sum()) - nan
        values = values[finite]
    if not values.size:
        return 0, np.inf, -np.inf, 0.0, 0.0, nan, infinite
    shifted = values - np.float64(middle)
    first, second = float(shifted.sum()), float(np.square(shifted, out=shifted).sum())
    return values.size, float(values.min()), float(values.max()), first, second, nan, infinite


def _interleave_numpy(
    lists: Floats,
    offsets: Integers,
    flat: Floats,
    begin: int,
    packed: Floats,
    counts: NDArray[np.uint32],
    sizes: Integers,
) -> None:
    width = flat.shape[1]
    sizes[:] = width + (offsets[:, 1:] - offsets[:, :-1]).sum(axis=0)
    ends = begin + np.cumsum(sizes) - sizes
    packed[(ends[:, None] + np.arange(width)).ravel()] = flat.ravel()
    ends += width
    start = 0
    for branch, places in enumerate(offsets):
        lengths, size = np.diff(places), int(places[-1] - places[0])
        shift = ends - (places[:-1] - places[0])
        packed[np.arange(size) + np.repeat(shift, lengths)] = lists[start : start + size]
        counts[:, branch] = lengths
        ends += lengths
        start += size


def _tally_numpy(counts: NDArray[np.uint32], found: Integers) -> None:
    size = found.shape[0]
    for branch in range(counts.shape[1]):
        found[:, branch] += np.bincount(np.minimum(counts[:, branch], size - 1), minlength=size)


def _elements_numpy(begin: Integers, size: int, found: Integers) -> bool:
    np.floor_divide(begin, size, out=found)
    return bool((begin[1:] >= begin[:-1]).all() and (found * size == begin).all() and begin[0] >= 0)


def _gather_numpy(
    values: Floats,
    offsets: Integers,
    counts: NDArray[np.unsignedinteger[Any]],
    rows: Integers,
    shift: Doubles,
    factor: Doubles,
    room: Integers,
    place: Integers,
    fill: float,
    out: Floats,
    mask: NDArray[np.bool_],
) -> None:
    flat, size = shift.size - room.size, rows.size
    out[:size] = fill
    mask[:size] = True
    begin = offsets[rows]
    if flat:
        raw = values[begin[:, None] + np.arange(flat)].astype(np.float64)
        present = np.isfinite(raw)
        scaled = (raw - shift[:flat]) * factor[:flat]
        np.copyto(out[:size, :flat], scaled, where=present, casting="same_kind")
        np.logical_not(present, out=mask[:size, :flat])
    if not room.size:
        return
    stored = counts[rows].astype(np.int64)
    first = (begin[:, None] + flat + np.cumsum(stored, axis=1) - stored).ravel()
    lengths = np.minimum(stored, room).ravel()
    within = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    feature = np.repeat(np.tile(np.arange(flat, flat + room.size), size), lengths)
    raw = values[np.repeat(first, lengths) + within].astype(np.float64)
    cell = np.repeat((np.arange(size)[:, None] * out.shape[1] + place).ravel(), lengths) + within
    present = np.isfinite(raw)
    if not present.all():
        raw, cell, feature = raw[present], cell[present], feature[present]
    out.reshape(-1)[cell] = (raw - shift[feature]) * factor[feature]
    mask.reshape(-1)[cell] = False


Kernels = tuple[Any, ...]


def _compiled(njit: Callable[..., Any], cache: bool) -> Kernels:
    # sums may be reordered; NaN and infinities keep their meaning
    vectorised = njit(cache=cache, nogil=True, fastmath={"reassoc", "contract", "nsz"})
    exact = njit(cache=cache, nogil=True)
    loops = _tally_loop, _elements_loop, _interleave_loop, _gather_loop
    return "numba", vectorised(_measure_loop), *map(exact, loops)


def _choose() -> Kernels:
    if os.environ.get("MLAAS4HEP_KERNELS", "numba") != "numpy":
        try:
            from numba import njit
        except ImportError:
            pass
        else:
            try:
                return _compiled(njit, cache=True)
            except RuntimeError:
                # no folder can be written to, so every process compiles anew
                return _compiled(njit, cache=False)
    return "numpy", _measure_numpy, _tally_numpy, _elements_numpy, _interleave_numpy, _gather_numpy


ENGINE, measure, tally, elements, interleave, gather = _choose()
