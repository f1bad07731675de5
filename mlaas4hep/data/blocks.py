"""What every file format gives: facts about the file, its branches, and blocks of their values as NumPy arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mlaas4hep.data.schema import Branch
from mlaas4hep.data.sources import Source


@dataclass(frozen=True)
class FlatValues:
    """One value (or a fixed number of values, or a struct) an entry: `values` has shape (n, ...)."""

    values: NDArray[Any]


@dataclass(frozen=True)
class JaggedValues:
    """Any number of values an entry: entry i has `values[offsets[i]:offsets[i + 1]]`.

    Attributes:
        offsets: shape (n + 1,), int64, starting at 0.
        values: shape (offsets[n],).
    """

    offsets: NDArray[np.int64]
    values: NDArray[Any]


Column = FlatValues | JaggedValues


@dataclass(frozen=True)
class Block:
    """Consecutive entries [start, stop) of a source."""

    start: int
    stop: int
    columns: dict[str, Column]


def cut(values: Column, start: int, stop: int) -> Column:
    """The entries [start, stop) of a column."""
    if isinstance(values, FlatValues):
        return FlatValues(values.values[start:stop])
    offsets = values.offsets[start : stop + 1]
    if offsets.size == values.offsets.size:
        return values
    return JaggedValues(offsets - offsets[0], values.values[offsets[0] : offsets[-1]])


def joined(pieces: Sequence[Column]) -> Column:
    """The entries of the pieces, one piece after another, in this computer's byte order."""
    dtype = pieces[0].values.dtype.newbyteorder("=")
    content = np.concatenate([piece.values for piece in pieces], dtype=dtype)
    if isinstance(pieces[0], FlatValues):
        return FlatValues(content)
    lists = [piece.offsets for piece in pieces if isinstance(piece, JaggedValues)]
    offsets = np.empty(sum(len(begin) - 1 for begin in lists) + 1, dtype=np.int64)
    offsets[0] = place = 0
    for begin in lists:
        np.add(begin[1:], offsets[place], out=offsets[place + 1 : place + len(begin)])
        place += len(begin) - 1
    return JaggedValues(offsets, content)


@dataclass(frozen=True)
class FileFacts:
    """What tells a file and its state apart.

    Attributes:
        uuid: the identifier that ROOT gave the file when it was made, "" for files without one.
        size: bytes.
        identity: names the tree independently of where the file lies; the split depends on it.
        state: changes whenever a local file changes (modification and change time).
    """

    uuid: str
    size: int
    identity: str
    state: str


class Reader(Protocol):
    """An open source, whatever its format.

    Attributes:
        source: what is read.
        facts: what tells the file and its state apart.
        entries: number of entries.
        branches: every branch (or column, or field), with its kind.
    """

    source: Source
    facts: FileFacts
    entries: int
    branches: tuple[Branch, ...]

    def blocks(self, names: Sequence[str], stop: int) -> Iterator[Block]:
        """The entries [0, stop) of the named branches, in order, in blocks of bounded size.

        Raises MlaasError that names file and branch when the data are damaged.
        """
