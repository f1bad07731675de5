"""Compressed data in ROOT files: the fastest library for zlib, and the check of block headers.

ROOT compresses in blocks of at most 16 MiB, each after a header of nine bytes: two letters for the algorithm, one byte
for the method, then the compressed and the uncompressed size in three bytes each, least significant first
(`core/zip/src/RZip.cxx` of ROOT). zlib's and LZMA's checksums are verified by their libraries and LZ4's by uproot;
ZSTD blocks have none, nor have uncompressed data: there only a contradiction in the structure shows damage.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import uproot
from numpy.typing import NDArray

from mlaas4hep.data.damage import DamageError

_ALGORITHMS = (b"ZL", b"XZ", b"L4", b"ZS", b"CS")
_HEADER = 9


def prepare_uproot() -> None:
    """Have uproot decompress zlib by the fastest library that is installed, and check every block's header."""
    # uproot's own switch (ZLIB.library) is not heeded in reading, and calls the deflate package by another signature
    uproot.compression._decompress_ZLIB.decompress = _ZLIB
    uproot.compression.decompress.hook_before_block = _check_first_block


def _libdeflate() -> Callable[[Any, int], Any]:
    import deflate

    def decompress(data: Any, uncompressed_bytes: int) -> Any:
        return deflate.zlib_decompress(data, uncompressed_bytes)

    return decompress


def _isal() -> Callable[[Any, int], Any]:
    from isal import isal_zlib

    def decompress(data: Any, uncompressed_bytes: int) -> Any:
        return isal_zlib.decompress(data, bufsize=uncompressed_bytes)

    return decompress


def _standard() -> Callable[[Any, int], Any]:
    def decompress(data: Any, uncompressed_bytes: int) -> Any:
        return zlib.decompress(data, bufsize=uncompressed_bytes)

    return decompress


def zlib_decompressor() -> tuple[str, Callable[[Any, int], Any]]:
    """The fastest library for zlib that is installed: `libdeflate`, `isal` or Python's own `zlib`, and its function.

    The function takes the compressed data and the uncompressed size in bytes.
    """
    for name, load in (("libdeflate", _libdeflate), ("isal", _isal)):
        try:
            return name, load()
        except ImportError:
            continue
    return "zlib", _standard()


_, _ZLIB = zlib_decompressor()


def decompressed(packed: memoryview, uncompressed: int) -> NDArray[np.uint8]:
    """What follows a key in a file, decompressed; shape (uncompressed,).

    Args:
        packed: bytes of the file.
        uncompressed: the size that the key promises.

    Raises DamageError for blocks that do not add up; errors of the libraries pass.
    """
    if len(packed) == uncompressed:
        # a copy: a mapped file may go away
        return np.frombuffer(bytes(packed), dtype=np.uint8)
    blocks = checked_blocks(packed, uncompressed)
    if all(algorithm == b"ZL" for algorithm, _, _ in blocks):
        pieces = [_ZLIB(data, size) for _, data, size in blocks]
        if sum(map(len, pieces)) != uncompressed:
            raise DamageError("a compressed block is shorter than it promises")
        return np.frombuffer(pieces[0] if len(pieces) == 1 else b"".join(pieces), dtype=np.uint8)
    chunk = uproot.source.chunk.Chunk.wrap(None, np.frombuffer(packed, dtype=np.uint8))
    cursor = uproot.source.cursor.Cursor(0)
    result = uproot.compression.decompress(chunk, cursor, {}, len(packed), uncompressed)
    return np.asarray(result.raw_data, dtype=np.uint8)


def _check_first_block(**known: Any) -> None:
    """Before the first block: the sizes in all headers must add up to what the object's key says.

    uproot would otherwise hand out memory that nothing was written to.
    """
    if known["num_blocks"]:
        return
    start = known["start"].index
    packed = known["chunk"].get(start, start + known["compressed_bytes"], known["cursor"], {})
    checked_blocks(memoryview(packed), known["uncompressed_bytes"])


def checked_blocks(packed: memoryview, uncompressed: int) -> list[tuple[bytes, memoryview, int]]:
    """Algorithm, compressed data and uncompressed size in bytes of each block.

    Raises DamageError unless the blocks fill `packed` exactly and promise `uncompressed` bytes in all.
    """
    blocks, place, promised = [], 0, 0
    while place < len(packed):
        header = bytes(packed[place : place + _HEADER])
        if len(header) < _HEADER or header[:2] not in _ALGORITHMS:
            raise DamageError("a compressed block has no valid header")
        size, end = int.from_bytes(header[6:9], "little"), place + _HEADER + int.from_bytes(header[3:6], "little")
        blocks.append((header[:2], packed[place + _HEADER : end], size))
        place, promised = end, promised + size
    if place != len(packed) or promised != uncompressed:
        raise DamageError("the sizes of the compressed blocks do not add up")
    return blocks
