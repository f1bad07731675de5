"""The model repository: folders that are published by renaming, so that readers need no lock.

=========================================  ==============================================================
NAMESPACE/NAME/VERSION/                    a model folder (see `checks`); versions are 1, 2, ...
NAMESPACE/NAME/model.json                  owner, groups that it is shared with, default version or null
NAMESPACE/NAME/.lock                       held while something is changed
=========================================  ==============================================================

The namespace is the owner's `User.key`. A model of one's own is called `name`, one that is shared `namespace.name`.
What a user may not see does not exist for that user.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from mlaas4hep.errors import MlaasError, UsageError
from mlaas4hep.service.identity import Role, User

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,60}")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")
_FACTS = "model.json"
# the kernel's clock of files is coarse: a folder that changed less than this ago may change again unseen
_SETTLED = 100_000_000  # nanoseconds
_MOST_CACHED = 10_000


class UnknownModelError(UsageError):
    """There is no such model, or none that this user may see (HTTP 404)."""

    def __init__(self, name: str, version: str = "") -> None:
        shown = name if len(name) <= 100 else f"{name[:100]}..."
        super().__init__(f"There is no model {shown}{f' with the version {version}' if version else ''}.")


@dataclass(frozen=True)
class ModelFacts:
    """What the repository knows of a model.

    Attributes:
        namespace, name: where it is.
        owner: key of the user whose it is.
        groups: groups that may use it.
        default: the version that is used when none is named; None for the newest.
        versions: in ascending order.
        broken: why its folder cannot be used, "" when it can.
    """

    namespace: str
    name: str
    owner: str
    groups: tuple[str, ...] = ()
    default: int | None = None
    versions: tuple[int, ...] = ()
    broken: str = ""

    def visible(self, user: User) -> bool:
        """Whether the user may know of the model."""
        return user.key == self.owner or bool(set(user.groups) & set(self.groups)) or Role.ADMINISTER in user.roles

    def called(self, user: User) -> str:
        """The model's name in addresses of this user."""
        return self.name if user.key == self.namespace else f"{self.namespace}.{self.name}"

    @property
    def preference(self) -> tuple[int, ...]:
        """The versions in the order in which they are tried when none is named."""
        newest_first = self.versions[::-1]
        if self.default not in self.versions:
            return newest_first
        return (self.default, *(version for version in newest_first if version != self.default))


class Repository:
    """The models below a folder; any number of processes may read and change it at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._cache: dict[str, tuple[tuple[int, int], ModelFacts]] = {}
        self._places: dict[tuple[str, str], tuple[str, str]] = {}

    def publish(self, namespace: str, name: str, folder: Path) -> int:
        """Copy a model folder as the next version; it appears completely or not at all.

        Raises UsageError for a name that is none, MlaasError when it cannot be written.
        """
        _check_name(namespace)
        _check_name(name)
        base = self.folder / namespace / name
        try:
            base.mkdir(parents=True, exist_ok=True)
            incoming = Path(tempfile.mkdtemp(prefix=".incoming-", dir=base))
        except OSError as error:
            raise _unwritable(base, error) from error
        try:
            # links are not followed: they would bring in files of others
            shutil.copytree(folder, incoming / "model", symlinks=True)
            _durable(incoming / "model")
            with self._changing(base):
                if not (base / _FACTS).exists():
                    _write_facts(base, ModelFacts(namespace, name, namespace))
                version = max(_versions(base), default=0) + 1
                (incoming / "model").rename(base / str(version))
                _sync(base)
                return version
        except (OSError, shutil.Error) as error:
            raise _unwritable(base, error) from error
        finally:
            shutil.rmtree(incoming, ignore_errors=True)

    def facts(self, namespace: str, name: str) -> ModelFacts | None:
        """What is known of a model; None when there is none. Costs one look at its folder."""
        path = f"{self.folder}/{namespace}/{name}"
        try:
            state = os.stat(path)  # noqa: PTH116 (on the way of every request)
        except OSError:
            self._cache.pop(path, None)
            return None
        stamp = (state.st_ino, state.st_mtime_ns)
        known = self._cache.get(path)
        if known is not None and known[0] == stamp:
            return known[1]
        facts = _read_facts(Path(path), namespace, name)
        if facts is not None and time.time_ns() - state.st_mtime_ns > _SETTLED:
            if len(self._cache) >= _MOST_CACHED:
                self._cache.clear()
            self._cache[path] = (stamp, facts)
        return facts

    def find(self, user: User, name: str) -> ModelFacts:
        """The model that a user means by `name` or `namespace.name`.

        Raises UnknownModelError when there is none that the user may see.
        """
        namespace, inner = self._places.get((user.key, name)) or self._place(user, name)
        facts = self.facts(namespace, inner)
        if facts is None or not facts.versions or not facts.visible(user):
            raise UnknownModelError(name)
        return facts

    def _place(self, user: User, name: str) -> tuple[str, str]:
        namespace, dot, inner = name.partition(".")
        if not dot:
            namespace, inner = user.key, name
        if not NAME.fullmatch(inner) or not NAME.fullmatch(namespace):
            raise UnknownModelError(name)
        if len(self._places) >= _MOST_CACHED:
            self._places.clear()
        self._places[user.key, name] = (namespace, inner)
        return namespace, inner

    def models(self, user: User) -> list[ModelFacts]:
        """The models that a user may see, own ones first, by name."""
        found = []
        for namespace in _folders(self.folder):
            for name in _folders(self.folder / namespace):
                facts = self.facts(namespace, name)
                if facts is not None and facts.versions and facts.visible(user):
                    found.append(facts)
        return sorted(found, key=lambda facts: (facts.namespace != user.key, facts.namespace, facts.name))

    def versions(self, namespace: str, name: str) -> tuple[int, ...]:
        """The versions of a model in ascending order; none where there is no such model."""
        facts = self.facts(namespace, name)
        return facts.versions if facts else ()

    def path(self, facts: ModelFacts, version: int) -> Path:
        """The folder of a version."""
        return self.folder / facts.namespace / facts.name / str(version)

    def share(self, namespace: str, name: str, groups: Sequence[str]) -> None:
        """Let the members of exactly these groups use a model. Raises UnknownModelError."""
        self._change(namespace, name, lambda facts: replace(facts, groups=tuple(dict.fromkeys(groups))))

    def promote(self, namespace: str, name: str, version: int | None) -> None:
        """Set the version that is used when none is named; None for always the newest. Raises UnknownModelError."""

        def promoted(facts: ModelFacts) -> ModelFacts:
            if version is not None and version not in facts.versions:
                raise UnknownModelError(name, str(version))
            return replace(facts, default=version)

        self._change(namespace, name, promoted)

    def delete(self, namespace: str, name: str, version: int | None = None) -> None:
        """Remove a version, or the model with all of them. Raises UnknownModelError."""
        base = self._existing(namespace, name)
        removed = Path(tempfile.mkdtemp(prefix=".removed-", dir=self.folder))
        try:
            with self._changing(base):
                # out of sight at once, then emptied
                if version is not None:
                    (base / str(version)).rename(removed / "version")
                if version is None or not _versions(base):
                    base.rename(removed / "model")
        except OSError as error:
            raise UnknownModelError(name, "" if version is None else str(version)) from error
        finally:
            shutil.rmtree(removed, ignore_errors=True)

    def _existing(self, namespace: str, name: str) -> Path:
        base = self.folder / namespace / name
        if not (NAME.fullmatch(namespace) and NAME.fullmatch(name) and (base / _FACTS).is_file()):
            raise UnknownModelError(name)
        return base

    def _change(self, namespace: str, name: str, change: Callable[[ModelFacts], ModelFacts]) -> None:
        base = self._existing(namespace, name)
        with self._changing(base):
            facts = _read_facts(base, namespace, name)
            if facts is None:
                raise UnknownModelError(name)
            if facts.broken:
                raise MlaasError(facts.broken, "Publish the model again.")
            _write_facts(base, change(facts))

    @contextmanager
    def _changing(self, base: Path) -> Iterator[None]:
        try:
            stream = (base / ".lock").open("a")
        except FileNotFoundError as error:
            raise UnknownModelError(base.name) from error
        with stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        shown = name if len(name) <= 100 else f"{name[:100]}..."
        raise UsageError(
            f"{shown!r} is no name for a model.", "Use letters, digits, - and _, beginning with a letter or digit."
        )


def _read_facts(base: Path, namespace: str, name: str) -> ModelFacts | None:
    try:
        versions = tuple(sorted(_versions(base)))
        text = (base / _FACTS).read_bytes()
    except OSError:
        return None
    try:
        data = json.loads(text)
        default = data["default"]
        groups = data["groups"]
        right = (default is None or isinstance(default, int)) and all(isinstance(group, str) for group in groups)
        if not right or not isinstance(data["owner"], str):
            raise ValueError("wrong types")
    except (ValueError, KeyError, TypeError):
        return ModelFacts(namespace, name, namespace, versions=versions, broken=f"The file {_FACTS} is damaged.")
    return ModelFacts(namespace, name, data["owner"], tuple(groups), default, versions)


def _write_facts(base: Path, facts: ModelFacts) -> None:
    data = {"owner": facts.owner, "groups": list(facts.groups), "default": facts.default}
    descriptor, name = tempfile.mkstemp(prefix=".facts-", dir=base)
    partial = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            json.dump(data, stream)
            stream.flush()
            os.fsync(stream.fileno())
        partial.chmod(0o640)
        partial.replace(base / _FACTS)
    except OSError as error:
        raise _unwritable(base, error) from error
    finally:
        partial.unlink(missing_ok=True)
    _sync(base)


def _versions(base: Path) -> list[int]:
    return [int(name) for name in _folders(base, _VERSION)]


def _folders(base: Path, pattern: re.Pattern[str] = NAME) -> list[str]:
    try:
        with os.scandir(base) as entries:
            return [
                entry.name for entry in entries if pattern.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
            ]
    except OSError:
        return []


def _durable(folder: Path) -> None:
    """Have the files on the disk before the name that makes them visible is."""
    for path in folder.rglob("*"):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise UsageError(f"The model folder has {path.name}, which is no file.", "Take it out.")
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unwritable(base: Path, error: OSError) -> MlaasError:
    return MlaasError(f"The model cannot be written to {base}: {error.strerror or error}.")
