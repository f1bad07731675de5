"""Files of formats that are read as a stream of bytes: opened locally or on a server, with what tells their state."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast
from urllib.parse import urlsplit

from mlaas4hep.data.blocks import FileFacts
from mlaas4hep.data.remote import open_remote, open_stream
from mlaas4hep.data.sources import is_remote
from mlaas4hep.errors import MlaasError

# how much text, or how many records, are held at once
BLOCK_BYTES = 8 * 2**20
_PIECE = 2**20
_REMEMBERED = 256
Found = TypeVar("Found")


@dataclass(frozen=True)
class OpenFile:
    """An open file.

    Attributes:
        path: where it lies.
        stream: its bytes as they are in the file, from the start, seekable.
        size: bytes.
        state: changes whenever the file does; "" where a server does not tell.
        verify: raises MlaasError when a server has another file by now; a local file's state is compared by its reader.
    """

    path: str
    stream: BinaryIO
    size: int
    state: str
    verify: Callable[[], None]

    def facts(self, identity: str) -> FileFacts:
        """The file's facts with this content identity."""
        return FileFacts("", self.size, identity, self.state)


@contextmanager
def opened(path: str) -> Iterator[OpenFile]:
    """Open a file that is no ROOT file.

    Raises MlaasError for a file that is missing, empty or a folder, or that a server does not give.
    """
    if is_remote(path):
        remote = open_remote(path)
        with open_stream(remote) as stream:
            _refuse_empty(path, remote.size)
            yield OpenFile(path, cast("BinaryIO", stream), remote.size, remote.version, remote.verify)
        return
    try:
        local = Path(path).open("rb")  # noqa: SIM115 (closed below; its failure is not that of the block)
    except IsADirectoryError as error:
        raise MlaasError(f"{path} is a folder, not a file.") from error
    except OSError as error:
        raise MlaasError(f"{path} cannot be opened: {error.strerror}.") from error
    with local:
        stat = Path(path).stat()
        _refuse_empty(path, stat.st_size)
        state = f"{stat.st_mtime_ns} {stat.st_ctime_ns}"
        yield OpenFile(path, cast("BinaryIO", local), stat.st_size, state, lambda: None)


def _refuse_empty(path: str, size: int) -> None:
    if not size:
        raise MlaasError(f"{path} is empty (0 bytes).", "Get the file again, or take it out of the list.")


_scans: dict[tuple[object, ...], Any] = {}


def scan_once(file: OpenFile, scan: Callable[[str, BinaryIO], Found]) -> Found:
    """What a pass over the file finds; remembered as long as the file is known to be the same."""
    key = (scan, file.path, file.size, file.state)
    if key not in _scans or not file.state:
        file.stream.seek(0)
        found = scan(file.path, file.stream)
        while len(_scans) >= _REMEMBERED:
            _scans.pop(next(iter(_scans)))
        _scans[key] = found
    result: Found = _scans[key]
    return result


class _Borrowed(io.RawIOBase):
    """A stream that leaves the one behind it open when it is closed."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read on; returns the number of bytes, 0 at the end."""
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class Digested(_Borrowed):
    """A borrowed stream that keeps a digest of all that is read from it; read to its end by `hexdigest`."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._digest = hashlib.sha256()

    def readinto(self, buffer: Any) -> int:
        """Read on, and add it to the digest."""
        length = super().readinto(buffer)
        self._digest.update(buffer[:length])
        return length

    def hexdigest(self) -> str:
        """SHA-256 of the whole file."""
        while data := self._stream.read(_PIECE):
            self._digest.update(data)
        return self._digest.hexdigest()


def decompressed(path: str, stream: Any) -> io.BufferedReader:
    """The text in a stream, decompressed when the file's name ends in `.gz` or `.bz2`."""
    name = (urlsplit(path).path if is_remote(path) else path).lower()
    if name.endswith(".gz"):
        return io.BufferedReader(cast("io.RawIOBase", gzip.GzipFile(fileobj=stream)))
    if name.endswith(".bz2"):
        return io.BufferedReader(cast("io.RawIOBase", bz2.BZ2File(stream)))
    return io.BufferedReader(_Borrowed(stream))


def refuse_repeated(names: Sequence[str], path: str) -> None:
    """Raise MlaasError when two columns have the same name."""
    counts = Counter(names)
    if repeated := [name for name in counts if counts[name] > 1]:
        raise MlaasError(f"{path} has more than one column {repeated[0]}.", "Give each column a name of its own.")


def refuse_compressed(path: str, what: str) -> None:
    """Raise MlaasError for a compressed file of a format that compresses its own parts."""
    if path.lower().endswith((".gz", ".bz2")):
        raise MlaasError(
            f"{path}: a compressed {what} file cannot be read.", f"Decompress it: {what} compresses inside."
        )
