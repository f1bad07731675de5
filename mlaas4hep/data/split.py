"""Which events train, validate and test: decided once an event, by a hash of its file and its entry.

The file counts with its own identity (`FileFacts.identity`), not with its path or its place in the list, so the same
data split in the same way wherever they lie. With `split` = s, a fraction 1 - s of the events trains the model, s/2
validates it after each epoch and s/2 tests it at the end. With k folds, each event
belongs to one of them, which tests once.
"""

from __future__ import annotations

import hashlib
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

_RANGE = 2**32
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


def positions(identity: str, start: int, stop: int) -> NDArray[np.uint32]:
    """A random but reproducible number for each entry in [start, stop), uniform over the 32-bit integers.

    Args:
        identity: the file and tree.
        start: first entry.
        stop: one past the last entry.
    """
    hashes = entry_hash(identity, np.arange(start, stop, dtype=np.uint64))
    return (hashes >> np.uint64(32)).astype(np.uint32)


def parts_of(numbers: NDArray[np.uint32], split: float) -> NDArray[np.uint8]:
    """The `Part` of each event, shape (n,), dtype uint8.

    Args:
        numbers: shape (n,), from `positions`.
        split: fraction kept away from training, in (0, 1); half of it validates, half of it tests.
    """
    parts = np.full(numbers.size, Part.TRAIN, dtype=np.uint8)
    parts[numbers >= round((1.0 - split) * _RANGE)] = Part.VALIDATION
    parts[numbers >= round((1.0 - split / 2) * _RANGE)] = Part.TEST
    return parts


def fold_parts(numbers: NDArray[np.uint32], folds: int, fold: int) -> NDArray[np.uint8]:
    """The `Part` of each event where fold number `fold` of `folds` tests, the next one validates and the rest trains.

    Args:
        numbers: shape (n,), from `positions`.
        folds: number of folds, 3 or more.
        fold: which one tests, from 0.
    """
    of = (numbers.astype(np.uint64) * np.uint64(folds) >> np.uint64(32)).astype(np.int64)
    parts = np.full(numbers.size, Part.TRAIN, dtype=np.uint8)
    parts[of == (fold + 1) % folds] = Part.VALIDATION
    parts[of == fold] = Part.TEST
    return parts
