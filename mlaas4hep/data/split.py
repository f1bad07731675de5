"""Which events train, validate and test: decided once an event, by a hash of its file and its entry.

The file counts with its own identity (`FileFacts.identity`), not with its path or its place in the list, so the same
data split in the same way wherever they lie. With `split` = s, a fraction 1 - s of the events trains the model, s/2
validates it after each epoch and s/2 tests it at the end.
"""

from __future__ import annotations

import hashlib
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


class Part(IntEnum):
    """The use that an event is put to."""

    TRAIN = 0
    VALIDATION = 1
    TEST = 2


def entry_hash(identity: str, entries: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) of the entries, started from the file's identity.

    Args:
        identity: the file and tree.
        entries: shape (n,), entry numbers in the tree.

    Returns shape (n,), uniformly distributed over the 64-bit integers.
    """
    start = np.frombuffer(hashlib.sha256(identity.encode()).digest()[:8], dtype="<u8").astype(np.uint64)
    state = start + (entries + np.uint64(1)) * _GOLDEN
    state = (state ^ (state >> np.uint64(30))) * _MIX_1
    state = (state ^ (state >> np.uint64(27))) * _MIX_2
    return np.asarray(state ^ (state >> np.uint64(31)))


def split_parts(identity: str, start: int, stop: int, split: float) -> NDArray[np.uint8]:
    """The `Part` of each entry in [start, stop), shape (stop - start,), dtype uint8.

    Args:
        identity: the file and tree.
        start: first entry.
        stop: one past the last entry.
        split: fraction kept away from training, in (0, 1); half of it validates, half of it tests.
    """
    fraction = (entry_hash(identity, np.arange(start, stop, dtype=np.uint64)) >> np.uint64(11)) * 2.0**-53
    parts = np.full(stop - start, Part.TRAIN, dtype=np.uint8)
    parts[fraction >= 1.0 - split] = Part.VALIDATION
    parts[fraction >= 1.0 - split / 2] = Part.TEST
    return parts
