"""The gather of `data.batches` on a device of PyTorch: events travel packed, and become input vectors there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlaas4hep.data.batches import PackedEvents
from mlaas4hep.data.schema import Schema


def joined(chunks: Iterable[NDArray[np.int64]], most: int) -> Iterator[NDArray[np.int64]]:
    """Rows of several chunks together, `most` of them at most unless a chunk alone has more."""
    waiting: list[NDArray[np.int64]] = []
    for rows in chunks:
        if waiting and sum(each.size for each in waiting) + rows.size > most:
            yield np.concatenate(waiting)
            waiting = []
        waiting.append(rows)
    if waiting:
        yield np.concatenate(waiting)


def pack(events: PackedEvents, rows: NDArray[np.int64]) -> PackedEvents:
    """Some events one after another, so that nothing else has to be copied to the device."""
    begin = events.offsets[rows]
    sizes = events.offsets[rows + 1] - begin
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    places = np.repeat(begin - offsets[:-1], sizes) + np.arange(int(offsets[-1]))
    return PackedEvents(events.values[places], offsets, events.counts[rows])


def densify(torch: Any, events: PackedEvents, schema: Schema, device: Any) -> tuple[Any, Any]:
    """The input vectors of packed events, and their mask, as `Gatherer.gather` makes them.

    Args:
        torch: the library.
        events: as `pack` makes them.
        schema: the layout of the input vector with its scaling.
        device: where to gather.

    Returns:
        values: shape (n, idim), float32, on the device.
        mask: shape (n, idim), bool, True where there is no value.
    """

    def moved(array: NDArray[Any]) -> Any:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    raw, begin = moved(events.values).double(), moved(events.offsets[:-1])
    counts = moved(events.counts.astype(np.int32)).long()
    flat, events_number = len(schema.flat), counts.shape[0]
    room = torch.tensor([column.multiplicity for column in schema.jagged], dtype=torch.int64, device=device)
    place = flat + room.cumsum(0) - room
    rows = torch.arange(events_number, device=device)[:, None] * schema.idim
    source = [(begin[:, None] + torch.arange(flat, device=device)).reshape(-1)]
    target = [(rows + torch.arange(flat, device=device)).reshape(-1)]
    feature = [torch.arange(flat, device=device).repeat(events_number)]
    lengths = torch.minimum(counts, room).reshape(-1)
    lists = torch.repeat_interleave(torch.arange(lengths.numel(), device=device), lengths)
    within = torch.arange(lists.numel(), device=device) - (lengths.cumsum(0) - lengths)[lists]
    source.append((begin[:, None] + flat + counts.cumsum(1) - counts).reshape(-1)[lists] + within)
    target.append((rows + place).reshape(-1)[lists] + within)
    feature.append(flat + lists % max(room.numel(), 1))
    chosen, where, which = raw[torch.cat(source)], torch.cat(target), torch.cat(feature)
    present = torch.isfinite(chosen)
    chosen, where, which = chosen[present], where[present], which[present]
    width = torch.tensor(schema.width, dtype=torch.float64, device=device)
    factor = torch.where(width > 0, 1.0 / width, torch.zeros_like(width))
    shift = torch.tensor(schema.shift, dtype=torch.float64, device=device)
    shape = (events_number, schema.idim)
    values = torch.full(shape, schema.fill, dtype=torch.float32, device=device)
    mask = torch.ones(shape, dtype=torch.bool, device=device)
    values.view(-1)[where] = ((chosen - shift[which]) * factor[which]).float()
    mask.view(-1)[where] = False
    return values, mask
