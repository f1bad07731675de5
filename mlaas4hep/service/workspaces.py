"""Workspaces: users' folders, from which jobs are submitted.

`<root>/<user.key>/<name>/` holds the files; nothing else is known of a workspace. New contents are made in
`<root>/<user.key>/.incoming-*` and renamed, under the user's lock, after the old ones were renamed to `.old-<name>`.
Who copies a workspace shares the lock. `.upload-*` are uploads that may go on (see `resumable`).
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from mlaas4hep.errors import MlaasError, UsageError
from mlaas4hep.service.archive import Bounds, checked_path, open_plain, unpack

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,60}")
UPLOAD = ".upload-"
_LOCK = ".lock"
_OLD = ".old-"


class AbsentError(UsageError):
    """There is none; said in the same words of what belongs to somebody else."""

    def __init__(self) -> None:
        super().__init__("There is nothing of this name.")


class QuotaError(MlaasError):
    """It would be more than the user may have."""


@dataclass(frozen=True)
class WorkspaceInfo:
    """A workspace: its name, the size of its files in bytes, how many there are, and when it last changed."""

    name: str
    bytes: int
    files: int
    changed: str


@dataclass(frozen=True)
class FileInfo:
    """A file of a workspace: its path in it, and its size in bytes."""

    path: str
    bytes: int


class Workspaces:
    """All workspaces of all users.

    Args:
        root: their folder.
        bounds: of one workspace.
        promised: gives the bytes that a user's unfinished uploads have or will have.
    """

    def __init__(self, root: Path, bounds: Bounds, promised: Callable[[str], int] = lambda _: 0) -> None:
        self._root = root
        self._bounds = bounds
        self._promised = promised

    def all(self, user_key: str) -> list[WorkspaceInfo]:
        """The user's workspaces by name."""
        home = self._root / user_key
        if not home.is_dir():
            return []
        found = sorted(path for path in home.iterdir() if NAME.fullmatch(path.name))
        infos = []
        for path in found:
            with suppress(FileNotFoundError):
                infos.append(_info(path))
        return infos

    def info(self, user_key: str, name: str) -> WorkspaceInfo:
        """One workspace. Raises AbsentError."""
        return _info(self.folder(user_key, name))

    def used(self, user_key: str) -> int:
        """Bytes of all the user's workspaces, with those that unfinished uploads have or will have."""
        return sum(workspace.bytes for workspace in self.all(user_key)) + self._promised(user_key)

    def create(self, user_key: str, name: str) -> bool:
        """Make an empty workspace. Returns False when it is there already. Raises UsageError for a wrong name."""
        with locked(self._root / user_key, fcntl.LOCK_EX):
            target = self._root / user_key / checked_name(name)
            if target.exists():
                return False
            target.mkdir(mode=0o750)
            return True

    def replace(self, user_key: str, name: str, archive: BinaryIO, left: Callable[[int], int]) -> WorkspaceInfo:
        """Put the contents of a tar.gz in the place of a workspace, at once; it is made when it is not there.

        Args:
            user_key: whose.
            name: of the workspace.
            archive: the tar.gz.
            left: gives the bytes that the user may still write, from those that the user's workspaces have.

        Raises UsageError for a wrong name or archive, QuotaError.
        """
        checked_name(name)
        with self._incoming(user_key) as incoming:
            unpack(archive, incoming, self._bounds)
            with locked(self._root / user_key, fcntl.LOCK_EX):
                target = self._root / user_key / name
                before = _info(target).bytes if target.exists() else 0
                refuse_beyond(_info(incoming).bytes, left(self.used(user_key) - before))
                _swap(incoming, target)
                return _info(target)

    def put_file(self, user_key: str, name: str, path: str, source: Path, left: Callable[[int], int]) -> FileInfo:
        """Move a file into a workspace, replacing one of that path. Raises AbsentError, UsageError, QuotaError."""
        folder = self.folder(user_key, name)
        target = folder / checked_path(path)
        with locked(self._root / user_key, fcntl.LOCK_EX):
            if not folder.is_dir():
                raise AbsentError
            size = source.stat().st_size
            refuse_beyond(size, left(self.used(user_key)))
            if _info(folder).files >= self._bounds.files:
                raise QuotaError(f"The workspace {name} has {self._bounds.files} files already.", "Delete some.")
            try:
                target.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
                source.replace(target)
            except (NotADirectoryError, FileExistsError, IsADirectoryError) as error:
                raise UsageError(f"A file cannot be written to {path}.", "A file or folder is in its place.") from error
            os.utime(folder)
        return FileInfo(path, size)

    def files(self, user_key: str, name: str) -> list[FileInfo]:
        """The files of a workspace by path. Raises AbsentError."""
        folder = self.folder(user_key, name)
        return [
            FileInfo(path.relative_to(folder).as_posix(), path.stat().st_size)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        ]

    def open_file(self, user_key: str, name: str, path: str) -> BinaryIO:
        """A file of a workspace. Raises AbsentError, UsageError for a wrong path."""
        try:
            return open_plain(self.folder(user_key, name) / checked_path(path))
        except OSError as error:
            raise AbsentError from error

    def delete_file(self, user_key: str, name: str, path: str) -> None:
        """Remove a file. Raises AbsentError, UsageError for a wrong path."""
        folder = self.folder(user_key, name)
        with locked(self._root / user_key, fcntl.LOCK_EX):
            try:
                (folder / checked_path(path)).unlink()
            except OSError as error:
                raise AbsentError from error
            os.utime(folder)

    def delete(self, user_key: str, name: str) -> None:
        """Remove a workspace. Raises AbsentError."""
        folder = self.folder(user_key, name)
        with self._incoming(user_key) as away, locked(self._root / user_key, fcntl.LOCK_EX):
            try:
                folder.rename(away / name)
            except FileNotFoundError as error:
                raise AbsentError from error

    def copy(self, user_key: str, name: str, target: Path) -> None:
        """Copy a workspace to a folder that does not exist yet. Raises AbsentError."""
        folder = self.folder(user_key, name)
        with locked(self._root / user_key, fcntl.LOCK_SH):
            try:
                shutil.copytree(folder, target, symlinks=True)
            except FileNotFoundError as error:
                raise AbsentError from error

    @contextmanager
    def incoming_file(self, user_key: str) -> Iterator[BinaryIO]:
        """A new file on the file system of the workspaces, which is removed at the end unless it was moved."""
        with self._incoming(user_key) as folder, (folder / "file").open("w+b") as stream:
            yield stream

    def sweep(self, before: float) -> None:
        """Mend what killed and abandoned uploads have left, older than a time in seconds since the epoch."""
        for kind in (".incoming-", UPLOAD):
            for folder in self._root.glob(f"*/{kind}*"):
                with suppress(FileNotFoundError):
                    if folder.stat().st_mtime < before:
                        shutil.rmtree(folder, ignore_errors=True)
        for home in self._root.glob("u*"):
            with locked(home, fcntl.LOCK_EX):
                for old in home.glob(f"{_OLD}*"):
                    _restore(old)

    def folder(self, user_key: str, name: str) -> Path:
        """Where a workspace is. Raises AbsentError."""
        if not NAME.fullmatch(name):
            raise AbsentError
        folder = self._root / user_key / name
        if not folder.is_dir():
            raise AbsentError
        return folder

    @contextmanager
    def _incoming(self, user_key: str) -> Iterator[Path]:
        home = self._root / user_key
        home.mkdir(mode=0o750, parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".incoming-", dir=home))
        folder.chmod(0o750)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def locked(home: Path, how: int) -> Iterator[None]:
    """A user's lock, on the folder of their workspaces, which is made."""
    home.mkdir(mode=0o750, parents=True, exist_ok=True)
    with (home / _LOCK).open("a") as stream:
        fcntl.flock(stream, how)
        yield


def refuse_beyond(size: int, left: int) -> None:
    """Raise QuotaError for more bytes than are left."""
    if size > left:
        raise QuotaError(f"These {size} bytes are more than the {max(left, 0)} that you may still store.")


def checked_name(name: str) -> str:
    """The name of a workspace or job. Raises UsageError for one that is none."""
    if not NAME.fullmatch(name):
        raise UsageError(
            f"{name[:80]!r} is no name.",
            "Use up to 61 letters, digits, - and _, beginning with a letter or digit.",
        )
    return name


def size_of(folder: Path) -> int:
    """Bytes of the plain files in a folder; links are not followed."""
    return _measure(folder)[0]


def _measure(folder: Path) -> tuple[int, int]:
    size = count = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                size += Path(parent, name).lstat().st_size
                count += 1
    return size, count


def _info(folder: Path) -> WorkspaceInfo:
    size, count = _measure(folder)
    changed = datetime.fromtimestamp(folder.stat().st_mtime, UTC).isoformat(timespec="seconds")
    return WorkspaceInfo(folder.name, size, count, changed)


def _swap(incoming: Path, target: Path) -> None:
    """Put a folder into the place of another; what a kill leaves in the middle is mended by `_restore`."""
    old = target.with_name(f"{_OLD}{target.name}")
    _restore(old)
    if target.exists():
        target.rename(old)
    incoming.rename(target)
    target.chmod(0o750)
    os.utime(target)
    shutil.rmtree(old, ignore_errors=True)


def _restore(old: Path) -> None:
    """Bring back what was moved aside, unless its successor is in its place."""
    target = old.with_name(old.name.removeprefix(_OLD))
    if old.exists() and not target.exists():
        old.rename(target)
    shutil.rmtree(old, ignore_errors=True)
