"""Folders as tar.gz: unpacked and packed with suspicion, because strangers wrote them."""

from __future__ import annotations

import os
import stat
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from mlaas4hep.errors import UsageError

_PIECE = 2**20
_HEADERS = 2**20  # bytes of headers and padding that one member may take
_BLOCK = 512
_PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE)
_DEPTH = 32
_NAME_BYTES = 255
_PATH_BYTES = 1024


@dataclass(frozen=True)
class Bounds:
    """What an archive may become.

    Attributes:
        unpacked: bytes of all its files.
        files: number of its files and folders.
    """

    unpacked: int
    files: int


def checked_path(text: str) -> PurePosixPath:
    """A relative path inside a folder, as a stranger wrote it.

    Raises UsageError for one that is absolute, leads out of the folder, or that a file system may not take.
    """
    path = PurePosixPath(text)
    parts = path.parts
    wrong = (
        path.is_absolute()
        or not parts
        or len(parts) > _DEPTH
        or ".." in parts
        or not text.isprintable()
        or "\\" in text
        or len(text.encode(errors="replace")) > _PATH_BYTES
        or any(len(part.encode(errors="replace")) > _NAME_BYTES for part in parts)
    )
    if wrong:
        raise UsageError(
            f"{text[:80]!r} is no path inside the folder.", "Use relative paths of printable characters without `..`."
        )
    return path


def unpack(archive: BinaryIO, folder: Path, bounds: Bounds) -> None:
    """Unpack a tar.gz into an empty folder; a single folder that holds everything is left out of the paths.

    Args:
        archive: the compressed bytes.
        folder: exists, and nobody else writes to it.
        bounds: what is accepted.

    Raises UsageError for a damaged archive, for anything in it that is neither file nor folder, for a path that leads
    out of it, and for more than the bounds allow. Something may then have been unpacked.
    """
    reader = _Bounded(archive)
    left = bounds.unpacked
    try:
        with tarfile.open(fileobj=reader, mode="r|") as tar:
            for number, member in enumerate(_members(tar, reader)):
                if number >= bounds.files:
                    raise UsageError(
                        f"The archive has more than {bounds.files} files.", "Leave out what is not needed."
                    )
                left -= member.size
                if left < 0:
                    raise UsageError(
                        f"The archive unpacks to more than {bounds.unpacked} bytes.", "Leave out what is not needed."
                    )
                _unpack_member(tar, member, folder, reader)
        # the sum over everything is at the end
        while reader.read(_PIECE):
            pass
    except (tarfile.TarError, zlib.error, EOFError, ValueError, OverflowError) as error:
        raise UsageError(f"The archive is damaged or no tar.gz ({error}).", "Make it with `tar czf`.") from error
    _leave_out_single_folder(folder)


def _members(tar: tarfile.TarFile, reader: _Bounded) -> Iterator[tarfile.TarInfo]:
    while True:
        reader.allow(_HEADERS)
        member = tar.next()
        if member is None:
            return
        yield member
        # a stream of members is read once; what is kept of them would grow with the archive
        tar.members = []  # type: ignore[attr-defined]


def _unpack_member(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path, reader: _Bounded) -> None:
    if member.isdir() and PurePosixPath(member.name) == PurePosixPath("."):
        return
    target = folder / checked_path(member.name)
    if member.type not in _PLAIN or member.sparse is not None:
        raise UsageError(f"{member.name!r} in the archive is neither file nor folder.", "Archive plain files only.")
    try:
        if member.isdir():
            target.mkdir(mode=0o750, parents=True, exist_ok=True)
            return
        target.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        reader.allow(member.size + _HEADERS)
        source = tar.extractfile(member)
        with target.open("wb") as stream:
            while source is not None and (piece := source.read(_PIECE)):
                stream.write(piece)
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise UsageError(f"{member.name!r} is in the archive as a file and as a folder.") from error


def _leave_out_single_folder(folder: Path) -> None:
    inside = list(folder.iterdir())
    if len(inside) != 1 or not inside[0].is_dir():
        return
    # under a name of its own, because the folder may hold something that is called like itself
    only = inside[0].rename(folder / ".single")
    for path in only.iterdir():
        if path.name == ".single":
            raise UsageError("The archive holds a folder `.single`.", "Call it something else.")
        path.rename(folder / path.name)
    only.rmdir()


class _Bounded(RawIOBase):
    """Decompresses, and gives no more than was allowed: headers of a tar can claim any size."""

    def __init__(self, compressed: BinaryIO) -> None:
        self._compressed = compressed
        self._inflate = zlib.decompressobj(wbits=31)
        self._allowed = _HEADERS

    def allow(self, count: int) -> None:
        """From here on, `count` bytes may be read."""
        self._allowed = count

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes."""
        while not self._inflate.eof:
            fed = self._inflate.unconsumed_tail or self._compressed.read(65536)
            if not fed:
                raise EOFError("it ends in the middle")
            if piece := self._inflate.decompress(fed, size if size > 0 else _PIECE):
                self._allowed -= len(piece)
                if self._allowed < 0:
                    raise UsageError("A file in the archive has headers of more than a mebibyte.")
                return piece
        return b""


def pack(folder: Path, name: str = "") -> Iterator[bytes]:
    """A folder as a tar.gz, piece by piece; links and anything else that is no plain file are left out.

    Args:
        folder: may be written to by others, so no link in it is followed.
        name: the folder's name in the archive; "" puts its contents at the top.
    """
    deflate = zlib.compressobj(level=1, wbits=31)
    for path, status in _plain_files(folder):
        inner = PurePosixPath(name, path.relative_to(folder).as_posix())
        info = tarfile.TarInfo(str(inner))
        info.size, info.mtime, info.mode = status.st_size, int(status.st_mtime), 0o644
        yield deflate.compress(info.tobuf(tarfile.PAX_FORMAT))
        for piece in _exactly(path, info.size):
            yield deflate.compress(piece)
        yield deflate.compress(bytes(-info.size % _BLOCK))
    yield deflate.compress(bytes(2 * _BLOCK)) + deflate.flush()


def _plain_files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for parent, folders, names in os.walk(folder, followlinks=False):
        folders.sort()
        for name in sorted(names):
            path = Path(parent, name)
            status = path.lstat()
            if stat.S_ISREG(status.st_mode):
                yield path, status


def _exactly(path: Path, size: int) -> Iterator[bytes]:
    """As many bytes as the header says, whatever becomes of the file meanwhile."""
    with open_plain(path) as stream:
        while size:
            piece = stream.read(min(_PIECE, size)) or bytes(min(_PIECE, size))
            size -= len(piece)
            yield piece


def open_plain(path: Path) -> BinaryIO:
    """Open a plain file for reading. Raises OSError when there is none, or a link or device in its place."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileNotFoundError(path)
    return os.fdopen(descriptor, "rb")
