"""Python objects in files that only their writer reads back.

Loading a pickle runs whatever code is in it, so a pickle is opened only when it is proven to be one's own: beside the
file lies its seal, the HMAC-SHA256 (RFC 2104) of its bytes with a random key that never leaves the user's account on
this computer. A file of someone else, or one that was changed, has no valid seal and is refused unread.
"""

from __future__ import annotations

import hashlib
import hmac
import importlib
import io
import os
import secrets
from pathlib import Path
from typing import Any

from mlaas4hep.errors import MlaasError

_KEY_BYTES = 32


def write_sealed(content: Any, file: Path) -> None:
    """Write an object by joblib, with its seal in `FILE.seal`. Raises MlaasError where the key cannot be kept."""
    buffer = io.BytesIO()
    importlib.import_module("joblib").dump(content, buffer)
    data = buffer.getvalue()
    file.write_bytes(data)
    _seal_of(file).write_text(_sealed(data), encoding="ascii")


def seal(file: Path) -> None:
    """Vouch for a file that was written elsewhere: only where its code may run, as in a sandbox.

    Raises MlaasError where the key cannot be kept.
    """
    _seal_of(file).write_text(_sealed(file.read_bytes()), encoding="ascii")


def read_sealed(file: Path) -> Any:
    """Read what `write_sealed` wrote on this account.

    Raises MlaasError for a file that has no valid seal, and for one that needs a module that is not there.
    """
    try:
        data = file.read_bytes()
        seal = _seal_of(file).read_text(encoding="ascii").strip() if _seal_of(file).is_file() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise MlaasError(f"{file} cannot be read ({error}).") from error
    if not hmac.compare_digest(seal, _sealed(data)):
        raise MlaasError(
            f"{file} was not written by this user on this computer, or was changed since; as a pickle it could run "
            "any code, so it is not loaded.",
            "Use the model's ONNX file, or train it here.",
        )
    try:
        return importlib.import_module("joblib").load(io.BytesIO(data))
    except Exception as error:
        raise MlaasError(
            f"{file} cannot be loaded ({type(error).__name__}: {error}).",
            "Install the versions it was trained with, or train it again.",
        ) from error


def own_key() -> bytes:
    """The key of this user on this computer: `seal.key` in MLAAS4HEP_HOME or ~/.local/share/mlaas4hep; made once.

    Raises MlaasError when it can neither be read nor made.
    """
    home = Path(os.environ.get("MLAAS4HEP_HOME") or Path.home() / ".local" / "share" / "mlaas4hep")
    path = home / "seal.key"
    try:
        if not path.is_file():
            _make_key(path)
        key = path.read_bytes()
    except OSError as error:
        raise MlaasError(
            f"The key {path} that seals models cannot be made or read: {error.strerror}.",
            "Set MLAAS4HEP_HOME to a folder of your own.",
        ) from error
    if len(key) != _KEY_BYTES:
        raise MlaasError(
            f"The key {path} is damaged.", "Remove it; models that were sealed with it must be trained again."
        )
    return key


def _make_key(path: Path) -> None:
    """Make the key under a name of its own and link it to its place, which the first of several processes wins."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    own = path.with_name(f".{path.name}.{os.getpid()}")
    handle = os.open(own, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(handle, secrets.token_bytes(_KEY_BYTES))
        os.fsync(handle)
    finally:
        os.close(handle)
    try:
        if not path.exists():
            os.link(own, path)
    except FileExistsError:
        pass
    finally:
        own.unlink()


def _sealed(data: bytes) -> str:
    return hmac.new(own_key(), data, hashlib.sha256).hexdigest()


def _seal_of(file: Path) -> Path:
    return file.with_name(f"{file.name}.seal")
