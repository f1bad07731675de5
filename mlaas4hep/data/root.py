"""ROOT files: trees, branches by kind, and blocks of their values, by uproot.

TTree, TNtuple and RNTuple are read through one class. Whatever goes wrong inside a file becomes one sentence that names
the file and, where it is known, the tree and the branch.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import uproot

from mlaas4hep.data.blocks import Block, FileFacts, FlatValues, JaggedValues
from mlaas4hep.data.schema import Branch, Kind
from mlaas4hep.data.sources import Source, is_remote
from mlaas4hep.errors import MlaasError
from mlaas4hep.names import did_you_mean

# what the XRootD client waits for a server (seconds, tries): its own defaults hang for minutes on an unreachable one
_XROOTD_PATIENCE = {"XRD_CONNECTIONWINDOW": "10", "XRD_CONNECTIONRETRY": "2", "XRD_REQUESTTIMEOUT": "60"}
_TREE_CLASSES = ("TTree", "TNtuple", "TNtupleD")
_RNTUPLE = "ROOT::RNTuple"
_BLOCK_BYTES = 32 * 2**20
_BLOCK_ENTRIES = (1_000, 50_000)
_HEADER_BYTES = 64 * 2**10
_NUMBER = r"(?:std::)?(?:u?int(?:8|16|32|64)_t|float|double|bool|char|byte)"
_C_NUMBER = rf"(?:unsigned |signed )?(?:long |short )?(?:{_NUMBER}|int|short|long)"
_RNTUPLE_FLAT = re.compile(rf"^{_NUMBER}$|^ROOT::RNTupleCardinality<.*>$")
_RNTUPLE_JAGGED = re.compile(rf"^(?:std::vector|ROOT::VecOps::RVec)<{_NUMBER}>$")
_RNTUPLE_ARRAY = re.compile(rf"^std::array<({_NUMBER}),\s*(\d+)>$")


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

    def __init__(self, source: Source, tree: Any, facts: FileFacts) -> None:
        self.source = source
        self.facts = facts
        self.entries = int(tree.num_entries)
        self._tree = tree
        self.branches = tuple(_branches(tree))

    def blocks(self, names: Sequence[str], stop: int) -> Iterator[Block]:
        """The entries [0, stop) in blocks of about 32 MiB; each basket is read once.

        Raises MlaasError that names the branch when its data are damaged.
        """
        start = 0
        step = self._step(names)
        pieces = self._iterate(names, stop, step)
        while start < stop:
            end = min(start + step, stop)
            try:
                columns = _columns(next(pieces), names)
            except Exception as error:
                raise self._blame(names, start, end, error) from error
            yield Block(start, end, columns)
            start = end

    def _step(self, names: Sequence[str]) -> int:
        """Number of entries that fill a block."""
        chosen = set(names)
        size = sum(branch.uncompressed for branch in self.branches if branch.name in chosen)
        smallest, largest = _BLOCK_ENTRIES
        return max(smallest, min(largest, int(_BLOCK_BYTES * self.entries / max(size, 1))))

    def _iterate(self, names: Sequence[str], stop: int, step: int) -> Iterator[dict[str, Any]]:
        if _is_rntuple(self._tree):
            for start in range(0, stop, step):
                end = min(start + step, stop)
                array = self._tree.arrays(filter_name=list(names), entry_start=start, entry_stop=end, library="ak")
                yield {name: array[name] for name in names}
            return
        chosen = set(names)
        yield from self._tree.iterate(
            filter_branch=lambda branch: branch.name in chosen and not branch.branches,
            entry_stop=stop,
            step_size=step,
            library="ak",
            how=dict,
        )

    def _blame(self, names: Sequence[str], start: int, end: int, error: Exception) -> MlaasError:
        """Find the branch that cannot be read between two entries."""
        for name in names:
            try:
                self._tree[name].array(entry_start=start, entry_stop=end, library="ak")
            except Exception as culprit:
                return MlaasError(
                    f"The branch {name} of {self.source} cannot be read between the entries {start} and {end}"
                    f" ({_first_line(culprit)}).",
                    "The file is damaged there: get it again, or add the branch to exclude_branches.",
                )
        return MlaasError(f"{self.source} cannot be read between the entries {start} and {end} ({_first_line(error)}).")


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
        with _explained(f"The tree {source}"):
            tree = RootTree(source, file[source.tree], _facts(source.path, file, source.tree))
        yield tree


def load_xrootd() -> None:
    """Load the XRootD client, with patience for a slow server but not for one that cannot be reached.

    TensorFlow has to be loaded after it: the other way round the client crashes while it opens a file.
    Raises MlaasError when the client is not installed.
    """
    for name, value in _XROOTD_PATIENCE.items():
        os.environ.setdefault(name, value)
    try:
        importlib.import_module("XRootD.client")
    except ImportError as error:
        raise MlaasError("root:// needs the XRootD client, which is not there.", "Install mlaas4hep[data].") from error


def inspect_file(path: str, tree: str = "") -> FileReport:
    """Describe the trees of a ROOT file; only `tree` when it is given.

    Raises MlaasError for a file that cannot be opened or has no such tree. What is wrong with single trees, or with the
    file's end, is part of the report.
    """
    with _open(path) as file:
        names = _tree_names(file)
        if not names:
            raise MlaasError(f"{path} has no tree, only {_contents(file)}.", "Training needs a TTree.")
        if tree and tree not in names:
            raise MlaasError(f"{path} has no tree {tree}.", did_you_mean(tree, list(names), "trees"))
        chosen = {tree: names[tree]} if tree else names
        reports = tuple(_tree_report(file, name, type_name) for name, type_name in chosen.items())
        if all(report.problem for report in reports):
            raise MlaasError(f"The tree {reports[0].name} of {path} cannot be read ({reports[0].problem}).")
        truncated = _truncation(file)
        facts = _facts(path, file, "")
        return FileReport(path, facts.size, facts.uuid, reports, f"truncated: {truncated}" if truncated else "")


@contextmanager
def _open(path: str) -> Iterator[Any]:
    """The open file as uproot's directory; failures while opening become one sentence."""
    if is_remote(path):
        load_xrootd()
    else:
        _check_local(Path(path))
    with _explained(path):
        # uproot reads "file:object" as one name; a dictionary keeps colons in paths
        directory = uproot.open({path: None}, array_cache=None)
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


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn any failure of the ROOT reader into one sentence about `what`."""
    try:
        yield
    except MlaasError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and "expected Chunk of length" in str(error):
            raise MlaasError(f"{what} is truncated.", "Get the file again: its end is missing.") from error
        raise MlaasError(
            f"{what} cannot be read ({_first_line(error)}).", "Check the file and where it came from."
        ) from error


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].rstrip('.,:')}" if lines else type(error).__name__


def _truncation(file: Any) -> str:
    """How the file is shorter than its header says; "" when it is not."""
    expected, found = int(file.file.fEND), int(file.file.source.num_bytes or file.file.fEND)
    return f"{found} bytes of {expected}" if found < expected else ""


def _tree_names(file: Any) -> dict[str, str]:
    """Name and class of the latest version of each tree, in the order of the file."""
    with _explained(file.file.file_path):
        classes = file.classnames(recursive=True, cycle=False)
    return {name: kind for name, kind in classes.items() if kind in _TREE_CLASSES or kind == _RNTUPLE}


def _contents(file: Any) -> str:
    kinds = sorted(set(file.classnames(recursive=True, cycle=False).values()))
    return ", ".join(kinds) if kinds else "nothing at all"


def _facts(path: str, file: Any, tree: str) -> FileFacts:
    uuid = file.file.uuid
    known = "" if uuid is None or uuid.int == 0 else str(uuid)
    size = int(file.file.source.num_bytes or file.file.fEND)
    origin = known or _fingerprint(path, size, file)
    state = ""
    if not is_remote(path):
        stat = Path(path).stat()
        size = stat.st_size
        state = f"{stat.st_mtime_ns} {stat.st_ctime_ns}"
    return FileFacts(known, size, f"{origin}:{tree}", state)


def _fingerprint(path: str, size: int, file: Any) -> str:
    """Stands for the UUID that old files lack: name, size and digest of the first 64 KiB."""
    head = file.file.source.chunk(0, min(size, _HEADER_BYTES)).raw_data
    return f"{Path(path).name} {size} {hashlib.sha256(bytes(head)).hexdigest()}"


def _tree_report(file: Any, name: str, type_name: str) -> TreeReport:
    try:
        tree = file[name]
        branches = tuple(_branches(tree))
        compressed = int(getattr(tree, "compressed_bytes", 0) or sum(branch.compressed for branch in branches))
        uncompressed = int(getattr(tree, "uncompressed_bytes", 0) or sum(branch.uncompressed for branch in branches))
        return TreeReport(name, type_name, int(tree.num_entries), compressed, uncompressed, branches)
    except Exception as error:
        return TreeReport(name, type_name, problem=_first_line(error))


def _is_rntuple(tree: Any) -> bool:
    return bool(tree.classname == _RNTUPLE)


def _branches(tree: Any) -> Iterator[Branch]:
    """Every branch without sub-branches, by its own name; one whose name occurs twice cannot be read by it."""
    if _is_rntuple(tree):
        yield from (_field(tree[name]) for name in tree.keys(recursive=False))
        return
    leaves = [(path, branch) for path, branch in tree.iteritems(recursive=True) if not branch.branches]
    occurrences = Counter(branch.name for _, branch in leaves)
    for path, branch in leaves:
        described = _branch(branch)
        if occurrences[branch.name] > 1:
            described = replace(described, name=path, kind=Kind.UNREADABLE, type=f"{described.type}, name not unique")
        yield described


def _branch(branch: Any) -> Branch:
    def described(kind: Kind, dtype: Any = None, shape: tuple[int, ...] = (), members: Any = ()) -> Branch:
        return Branch(
            name=branch.name,
            kind=kind,
            type=branch.typename or "unknown",
            dtype="" if dtype is None else np.dtype(dtype).name,
            shape=shape,
            members=tuple(members),
            compressed=int(branch.compressed_bytes),
            uncompressed=int(branch.uncompressed_bytes),
        )

    return _classify(branch.interpretation, str(branch.typename), described)


def _classify(interpretation: Any, typename: str, described: Callable[..., Branch]) -> Branch:
    """The kind of a TTree's branch by uproot's interpretation of it."""
    name = type(interpretation).__name__
    if name == "AsDtype":
        dtype = interpretation.to_dtype
        shape, base = dtype.shape, dtype.base
        if base.names is not None:
            members = [(member, base[member].name) for member in base.names if _numeric(base[member])]
            return described(Kind.STRUCT if members and not shape else Kind.OBJECT, members=members)
        if not _numeric(base):
            return described(Kind.OBJECT)
        if shape:
            return described(Kind.FIXED, base, shape)
        return described(Kind.BOOL if base.kind == "b" else Kind.FLAT, base)
    if name in ("AsDouble32", "AsFloat16"):
        dtype = np.dtype(np.float64 if name == "AsDouble32" else np.float32)
        shape = tuple(interpretation.to_dims or ())
        return described(Kind.FIXED if shape else Kind.FLAT, dtype, shape)
    if name == "AsJagged":
        content = interpretation.content
        if type(content).__name__ == "AsDtype" and _numeric(content.to_dtype.base):
            return described(Kind.NESTED if content.to_dtype.shape else Kind.JAGGED, content.to_dtype.base)
        return described(Kind.OBJECT)
    if name == "AsStrings":
        return described(Kind.STRING)
    if name == "UnknownInterpretation":
        return described(Kind.UNREADABLE)
    return described(_object_kind(typename))


def _numeric(dtype: np.dtype[Any]) -> bool:
    return dtype.kind in "biuf" and dtype.shape == ()


def _object_kind(typename: str) -> Kind:
    """What uproot can only read as Python objects, by the name of the type."""
    if "string" in typename.lower() and "map" not in typename:
        return Kind.STRING
    if re.match(rf"^std::vector<\s*(?:std::)?(?:vector|set|array)<\s*{_C_NUMBER}\b", typename):
        return Kind.NESTED
    return Kind.OBJECT


def _field(field: Any) -> Branch:
    """A top-level field of an RNTuple as a branch; sizes of fields are not kept apart in the file."""
    typename = str(field.typename)
    scalar = re.sub(r"^(?:std|ROOT)::", "", typename)
    if _RNTUPLE_FLAT.match(typename):
        return Branch(field.name, Kind.BOOL if scalar == "bool" else Kind.FLAT, typename, _rntuple_dtype(scalar))
    if matched := _RNTUPLE_ARRAY.match(typename):
        return Branch(field.name, Kind.FIXED, typename, _rntuple_dtype(matched[1]), (int(matched[2]),))
    if _RNTUPLE_JAGGED.match(typename):
        return Branch(field.name, Kind.JAGGED, typename, _rntuple_dtype(typename[typename.index("<") + 1 : -1]))
    if "string" in typename:
        return Branch(field.name, Kind.STRING, typename)
    if re.match(
        rf"^(?:std::vector|ROOT::VecOps::RVec)<(?:std::vector|ROOT::VecOps::RVec|std::array)<{_NUMBER}[,>]", typename
    ):
        return Branch(field.name, Kind.NESTED, typename)
    return Branch(field.name, Kind.OBJECT, typename or "untyped collection")


def _rntuple_dtype(typename: str) -> str:
    plain = typename.removeprefix("std::").removesuffix("_t")
    return {"float": "float32", "double": "float64", "char": "int8", "byte": "uint8"}.get(
        plain, "int64" if "Cardinality" in plain else plain
    )


def _columns(arrays: dict[str, Any], names: Sequence[str]) -> dict[str, FlatValues | JaggedValues]:
    return {name: _values(arrays[name]) for name in names}


def _values(array: Any) -> FlatValues | JaggedValues:
    """NumPy views of one branch's awkward array."""
    layout = array.layout
    if isinstance(layout, ak.contents.ListOffsetArray) and isinstance(layout.content, ak.contents.NumpyArray):
        offsets = np.asarray(layout.offsets.data, dtype=np.int64)
        return JaggedValues(offsets - offsets[0], np.asarray(layout.content.data)[offsets[0] : offsets[-1]])
    if isinstance(layout, ak.contents.ListArray):
        return _values(ak.to_packed(array))
    return FlatValues(ak.to_numpy(array, allow_missing=False))
