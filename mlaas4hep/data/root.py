"""ROOT files: trees, branches by kind, and blocks of their values, by uproot.

TTree, TNtuple and RNTuple are read through one class. Whatever goes wrong inside a file becomes one sentence that names
the file and, where it is known, the tree and the branch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uproot

from mlaas4hep.data.blocks import Block, FileFacts
from mlaas4hep.data.compression import prepare_uproot
from mlaas4hep.data.damage import explained, reason
from mlaas4hep.data.remote_root import RemoteSource
from mlaas4hep.data.rntuple import NTupleContents
from mlaas4hep.data.schema import Branch
from mlaas4hep.data.sources import Source, is_remote
from mlaas4hep.data.ttree import TreeContents
from mlaas4hep.errors import MlaasError
from mlaas4hep.names import did_you_mean

_TREE_CLASSES = ("TTree", "TNtuple", "TNtupleD")
_RNTUPLE = "ROOT::RNTuple"
_BLOCK_BYTES = 32 * 2**20
_BLOCK_ENTRIES = (1_000, 50_000)
_HEADER_BYTES = 64 * 2**10


@dataclass(frozen=True)
class TreeReport:
    """A tree of a file, or the reason why it cannot be read (`problem`)."""

    name: str
    type: str
    entries: int = 0
    compressed: int = 0
    uncompressed: int = 0
    branches: tuple[Branch, ...] = ()
    problem: str = ""


@dataclass(frozen=True)
class FileReport:
    """What a file holds."""

    path: str
    size: int
    uuid: str
    trees: tuple[TreeReport, ...]
    problem: str = ""


class RootTree:
    """An open tree; made by `open_tree`."""

    def __init__(self, source: Source, file: Any) -> None:
        self.source = source
        self.facts = _facts(source.path, file, source.tree)
        self._file = file
        self._contents = _contents_of(file, source.tree, str(source))
        self.entries = self._contents.entries
        self.branches = self._contents.branches

    def blocks(self, names: Sequence[str], stop: int) -> Iterator[Block]:
        """The entries [0, stop) in blocks of about 32 MiB; each basket is read once.

        Raises MlaasError that names the branch when its data are damaged.
        """
        with explained(str(self.source), "Get the file again."):
            for start, end, columns in self._contents.blocks(names, stop, self._step(names)):
                yield Block(start, end, columns)
        if self.source.remote:
            self._file.file.source.verify()

    def _step(self, names: Sequence[str]) -> int:
        """Number of entries that fill a block."""
        chosen = set(names)
        size = sum(branch.uncompressed for branch in self.branches if branch.name in chosen)
        smallest, largest = _BLOCK_ENTRIES
        return max(smallest, min(largest, int(_BLOCK_BYTES * self.entries / max(size, 1))))


@contextmanager
def open_tree(source: Source) -> Iterator[RootTree]:
    """Open one tree of a ROOT file for training.

    Raises MlaasError for a file that is missing, empty, truncated, damaged or no ROOT file, and for a tree that the
    file does not have (with near misses).
    """
    with _open(source.path) as file:
        if problem := _truncation(file):
            raise MlaasError(f"{source.path} is truncated: {problem}.", "Copy the file again.")
        names = _tree_names(file)
        if source.tree not in names:
            raise MlaasError(
                f"{source.path} has no tree {source.tree}.",
                f"{did_you_mean(source.tree, list(names), 'trees')} Set it with branch in the parameters.",
            )
        with explained(f"The tree {source}"):
            tree = RootTree(source, file)
        yield tree


def inspect_file(path: str, tree: str = "") -> FileReport:
    """Describe the trees of a ROOT file; only `tree` when it is given.

    Raises MlaasError for a file that cannot be opened or has no such tree. What is wrong with single trees, or with the
    file's end, is part of the report.
    """
    with _open(path) as file:
        names = _tree_names(file)
        if not names:
            raise MlaasError(f"{path} has no tree, only {_classes(file)}.", "Training needs a TTree or an RNTuple.")
        if tree and tree not in names:
            raise MlaasError(f"{path} has no tree {tree}.", did_you_mean(tree, list(names), "trees"))
        chosen = {tree: names[tree]} if tree else names
        reports = tuple(_tree_report(path, file, name, type_name) for name, type_name in chosen.items())
        if all(report.problem for report in reports):
            raise MlaasError(
                f"The tree {reports[0].name} of {path} cannot be read ({reports[0].problem}).",
                "Get the file again, or have ROOT write it anew.",
            )
        truncated = _truncation(file)
        facts = _facts(path, file, "")
        return FileReport(path, facts.size, facts.uuid, reports, f"truncated: {truncated}" if truncated else "")


@contextmanager
def _open(path: str) -> Iterator[Any]:
    """The open file as uproot's directory; failures while opening become one sentence."""
    handler = {"handler": RemoteSource} if is_remote(path) else {}
    if not handler:
        _check_local(Path(path))
    with explained(path):
        prepare_uproot()
        # uproot reads "file:object" as one name; a dictionary keeps colons in paths
        directory = uproot.open({path: None}, array_cache=None, **handler)
    with directory:
        yield directory


def _check_local(path: Path) -> None:
    try:
        with path.open("rb") as stream:
            start = stream.read(4)
    except IsADirectoryError as error:
        raise MlaasError(f"{path} is a folder, not a ROOT file.") from error
    except OSError as error:
        raise MlaasError(f"{path} cannot be opened: {error.strerror}.") from error
    if not start:
        raise MlaasError(f"{path} is empty (0 bytes).", "Get the file again, or take it out of the list.")
    if start != b"root":
        raise MlaasError(f"{path} is not a ROOT file: it begins with {start!r}.", "Name ROOT files only.")


def _truncation(file: Any) -> str:
    """How the file is shorter than its header says; "" when it is not."""
    expected, found = int(file.file.fEND), _size(file)
    return f"{found} bytes of {expected}" if found < expected else ""


def _tree_names(file: Any) -> dict[str, str]:
    """Name and class of the latest version of each tree, in the order of the file."""
    with explained(file.file.file_path):
        classes = file.classnames(recursive=True, cycle=False)
    return {name: kind for name, kind in classes.items() if kind in _TREE_CLASSES or kind == _RNTUPLE}


def _classes(file: Any) -> str:
    kinds = sorted(set(file.classnames(recursive=True, cycle=False).values()))
    return ", ".join(kinds) if kinds else "nothing at all"


def _facts(path: str, file: Any, tree: str) -> FileFacts:
    uuid = file.file.uuid
    known = "" if uuid is None or uuid.int == 0 else str(uuid)
    size = _size(file)
    origin = known or _fingerprint(path, size, file)
    state = file.file.source.version if is_remote(path) else ""
    if not is_remote(path):
        stat = Path(path).stat()
        size = stat.st_size
        state = f"{stat.st_mtime_ns} {stat.st_ctime_ns}"
    return FileFacts(known, size, f"{origin}:{tree}", state)


def _fingerprint(path: str, size: int, file: Any) -> str:
    """Stands for the UUID that old files lack: name, size and digest of the first 64 KiB."""
    head = file.file.source.chunk(0, min(size, _HEADER_BYTES)).raw_data
    return f"{Path(path).name} {size} {hashlib.sha256(bytes(head)).hexdigest()}"


def _contents_of(file: Any, name: str, where: str) -> TreeContents | NTupleContents:
    """What a tree holds, whichever class it has."""
    tree, size = file[name], _size(file)
    return (NTupleContents if tree.classname == _RNTUPLE else TreeContents)(tree, where, size)


def _size(file: Any) -> int:
    return int(file.file.source.num_bytes or file.file.fEND)


def _tree_report(path: str, file: Any, name: str, type_name: str) -> TreeReport:
    try:
        contents = _contents_of(file, name, f"{path}:{name}")
    except Exception as error:
        return TreeReport(name, type_name, problem=reason(error))
    branches = contents.branches
    sizes = sum(branch.compressed for branch in branches), sum(branch.uncompressed for branch in branches)
    return TreeReport(name, type_name, contents.entries, *sizes, branches)
