"""Uploads that go on where they broke off.

`<root>/<user.key>/.upload-<id>/` has `about.json`, what is uploaded, and `data`, what has come of it: the size of
`data` is the offset where it goes on. Each piece is written under a lock, and only at that offset, so that of two
writers one is refused, and a connection that hangs keeps nobody waiting. What has been put into its place keeps
`about.json` for a while, for a client that did not get the answer.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from mlaas4hep.errors import MlaasError
from mlaas4hep.service.workspaces import UPLOAD, AbsentError, QuotaError, locked, refuse_beyond

_MOST = 50  # of one user
_IDENTIFIER = re.compile(r"[0-9a-f]{32}")


class OffsetError(MlaasError):
    """A piece does not belong where the upload has come to (HTTP 409)."""


@dataclass(frozen=True)
class OpenUpload:
    """An upload that may go on.

    Attributes:
        id: names it.
        workspace: where it goes to.
        path: of the file in the workspace; "" for a tar.gz with the workspace's new contents.
        bytes: of the whole.
        offset: bytes that have come.
        fingerprint: by which its client knows what it has uploaded.
        done: whether it is in its place.
    """

    id: str
    workspace: str
    path: str
    bytes: int
    fingerprint: str = ""
    offset: int = 0
    done: bool = False


class OpenUploads:
    """All of them, of all users.

    Args:
        root: the folder of the workspaces.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def all(self, user_key: str) -> list[OpenUpload]:
        """The user's, those that have ended as well, the oldest first."""
        folders = []
        for folder in (self._root / user_key).glob(f"{UPLOAD}*"):
            with suppress(FileNotFoundError):
                folders.append((folder.stat().st_mtime, folder))
        return [found for _, folder in sorted(folders) if (found := _read(folder))]

    def promised(self, user_key: str) -> int:
        """Bytes that the user's uploads have or will have."""
        return sum(upload.bytes for upload in self.all(user_key) if not upload.done)

    def find(self, user_key: str, workspace: str, identifier: str) -> OpenUpload:
        """One of a workspace; while it is put into its place, the answer waits. Raises AbsentError."""
        with self._locked(self._folder(user_key, identifier)) as found:
            if found.workspace != workspace:
                raise AbsentError
            return found

    def begin(self, user_key: str, wanted: OpenUpload, left: Callable[[], int]) -> OpenUpload:
        """Begin an upload, whose id is given here.

        Args:
            user_key: whose.
            wanted: what is uploaded.
            left: gives the bytes that the user may still store.

        Raises QuotaError for more bytes than are left, and for too many uploads.
        """
        with locked(self._root / user_key, fcntl.LOCK_EX):
            refuse_beyond(wanted.bytes, left())
            known = self.all(user_key)
            ended = [upload for upload in known if upload.done]
            if len(known) - len(ended) >= _MOST:
                raise QuotaError(f"You have {_MOST} uploads that have not ended.", "End or cancel some.")
            for upload in ended[: max(len(known) + 1 - _MOST, 0)]:
                self.remove(user_key, upload.id)
            made = replace(wanted, id=secrets.token_hex(16), offset=0, done=False)
            folder = self._folder(user_key, made.id)
            folder.mkdir(mode=0o750)
            (folder / "data").touch()
            _write(folder, made)
            return made

    def append(self, user_key: str, identifier: str, offset: int, piece: bytes) -> None:
        """Write what comes next. Raises AbsentError, OffsetError for another place than the end or beyond the whole."""
        folder = self._folder(user_key, identifier)
        with self._locked(folder) as upload:
            if upload.offset != offset:
                raise OffsetError(f"The upload has {upload.offset} bytes, not {offset}.", "Ask for its offset.")
            if offset + len(piece) > upload.bytes:
                raise OffsetError(f"It would be more than the {upload.bytes} bytes that were told.", "Begin anew.")
            with (folder / "data").open("ab") as stream:
                stream.write(piece)
            os.utime(folder)

    @contextmanager
    def whole(self, user_key: str, identifier: str) -> Iterator[Path | None]:
        """The file of an upload that is whole, to be put into its place; None when that was done.

        An exception removes the upload. Raises AbsentError for none, and for one that is not whole.
        """
        folder = self._folder(user_key, identifier)
        with self._locked(folder) as upload:
            if upload.done:
                yield None
                return
            if upload.offset != upload.bytes:
                raise AbsentError
            try:
                yield folder / "data"
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            _write(folder, replace(upload, offset=upload.bytes, done=True))
            (folder / "data").unlink(missing_ok=True)

    def remove(self, user_key: str, identifier: str) -> None:
        """End an upload. Raises AbsentError."""
        folder = self._folder(user_key, identifier)
        if not folder.is_dir():
            raise AbsentError
        # one that is ended twice at once is gone either way; what cannot be removed is no ended upload
        with suppress(FileNotFoundError):
            shutil.rmtree(folder)

    def _folder(self, user_key: str, identifier: str) -> Path:
        if not _IDENTIFIER.fullmatch(identifier):
            raise AbsentError
        return self._root / user_key / f"{UPLOAD}{identifier}"

    @contextmanager
    def _locked(self, folder: Path) -> Iterator[OpenUpload]:
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise AbsentError from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            found = _read(folder)
            if found is None:
                raise AbsentError
            yield found
        finally:
            os.close(descriptor)


def _read(folder: Path) -> OpenUpload | None:
    try:
        facts = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        size = facts["bytes"] if facts["done"] else (folder / "data").stat().st_size
        return OpenUpload(**{**facts, "offset": size})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(folder: Path, upload: OpenUpload) -> None:
    incoming = folder / "about.new"
    incoming.write_text(json.dumps(asdict(upload)), encoding="utf-8")
    incoming.replace(folder / "about.json")
