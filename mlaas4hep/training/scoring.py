"""Scores of whole files: each entry with its identifier branches and what the model says, in a ROOT or Parquet file.

==================  ================================================================================
identifier          the branches that the training named so, as they are in the files
`file`              number of the file in the order given, from 0
`entry`             number of the entry in its file, from 0
`score_CLASS`       probability of each class, float32; or `prediction` for a regression
`decision`          number of the class that is decided for, in the order of the scores
==================  ================================================================================

Entries that the bundle's cuts remove are left out; `entry` tells which ones are there. The files are read block by
block; the output is written beside its place and renamed, so that it is there completely or not at all.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mlaas4hep.data.blocks import Block, FlatValues, Reader
from mlaas4hep.data.formats import load_clients, open_source
from mlaas4hep.data.schema import Branch, InputBranch, Kind
from mlaas4hep.data.sources import Source
from mlaas4hep.errors import MlaasError, UsageError
from mlaas4hep.names import did_you_mean, listing, matching
from mlaas4hep.training.bundle import Bundle
from mlaas4hep.training.metrics import decide
from mlaas4hep.training.prediction import Predictions, Predictor
from mlaas4hep.training.progress import Finished, Note, Reading, Stage, Tell

DEFAULT_TREE = "scores"
_ROWS_AT_A_TIME = 100_000

Columns = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class _Opened:
    """A file before its values are read."""

    source: Source
    entries: int
    identifiers: tuple[Branch, ...]


class _Writer(Protocol):
    """An output file."""

    def write(self, columns: Columns) -> None:
        """Append rows."""

    def close(self) -> None:
        """Finish the file."""


class _RootWriter:
    """A TTree by uproot."""

    def __init__(self, path: Path, types: dict[str, np.dtype[Any]], tree: str) -> None:
        import uproot

        self._file = uproot.recreate(path)
        self._tree = self._file.mktree(tree, types)

    def write(self, columns: Columns) -> None:
        """Append rows, as one basket a branch."""
        self._tree.extend(columns)

    def close(self) -> None:
        """Finish the file."""
        self._file.close()


class _ParquetWriter:
    """A Parquet file by pyarrow."""

    def __init__(self, path: Path, types: dict[str, np.dtype[Any]], tree: str) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        del tree
        self._schema = pa.schema([(name, pa.from_numpy_dtype(dtype)) for name, dtype in types.items()])
        self._file = pq.ParquetWriter(path, self._schema)

    def write(self, columns: Columns) -> None:
        """Append rows, as one row group."""
        import pyarrow as pa

        self._file.write_table(pa.table(columns, schema=self._schema))

    def close(self) -> None:
        """Finish the file."""
        self._file.close()


_WRITERS: dict[str, Callable[[Path, dict[str, np.dtype[Any]], str], _Writer]] = {
    ".root": _RootWriter,
    ".parquet": _ParquetWriter,
}


def check_output(out: Path, sources: Sequence[Source], overwrite: bool) -> None:
    """Raise UsageError unless the scores may be written to `out`."""
    if out.suffix not in _WRITERS:
        raise UsageError(f"{out} is neither a ROOT nor a Parquet file.", "Name it .root or .parquet.")
    if not out.absolute().parent.is_dir():
        raise UsageError(f"The folder {out.absolute().parent} does not exist.", "Make it first.")
    if any(not source.remote and Path(source.path).resolve() == out.resolve() for source in sources):
        raise UsageError(f"{out} is one of the files to read.", "Write to another file.")
    if out.exists() and not overwrite:
        raise UsageError(f"{out} exists.", "Name another file, or replace it with --overwrite.")
    if out.is_dir():
        raise UsageError(f"{out} is a folder.", "Name a file.")


def score_files(bundle: Bundle, sources: Sequence[Source], out: Path, tell: Tell, *, overwrite: bool = False) -> int:
    """Write the scores of all entries of the files.

    Args:
        bundle: the trained model.
        sources: what to read.
        out: the file to write; its suffix says the format.
        tell: listener of the progress.
        overwrite: replace an older file.

    Returns the number of entries with a score. Raises UsageError for files without the model's branches, MlaasError for
    data that cannot be read; nothing is written then.
    """
    clock = time.monotonic()
    check_output(out, sources, overwrite)
    load_clients(sources)
    predictor = Predictor(bundle)
    tell(Stage(f"reading {len(sources)} file{'s' * (len(sources) > 1)}"))
    files = [_examined(source, predictor, bundle) for source in sources]
    identifiers = _common_identifiers(files, tell)
    flow = _CutFlow(predictor.cuts)
    with _Output(out, _tree_name(sources)) as output:
        total, before = sum(file.entries for file in files), 0
        for number, file in enumerate(files):
            with open_source(file.source) as reader:
                _refuse_other_length(file, reader)
                names = list(dict.fromkeys([branch.name for branch in predictor.branches] + identifiers))
                for block in reader.blocks(names, file.entries):
                    found = predictor.predict(block, str(file.source))
                    flow.add(found)
                    output.add(_rows(bundle, block, found, identifiers, number))
                    tell(Reading(before + block.stop, total))
            before += file.entries
        if not output.rows and not flow.all:
            raise MlaasError(f"{listing([str(source) for source in sources])}: no entries.", "Name files with events.")
        output.finish(_rows(bundle, _no_entries(files[0], identifiers), flow.nothing(bundle), identifiers, 0))
    for line in flow.lines():
        tell(Note(line))
    tell(Finished(str(out), {"events": output.rows}, time.monotonic() - clock))
    return output.rows


def _examined(source: Source, predictor: Predictor, bundle: Bundle) -> _Opened:
    """Open a file once; refuse it when it lacks a branch of the model, or has another kind of values there."""
    with open_source(source) as reader:
        branches = {branch.name: branch for branch in reader.branches}
        missing = [branch.name for branch in predictor.branches if branch.name not in branches]
        if missing:
            raise UsageError(
                f"{source} lacks {listing(missing)}, which the model needs.",
                did_you_mean(missing[0], sorted(branches), "branches"),
            )
        for needed in predictor.branches:
            _refuse_other_kind(source, needed, branches[needed.name], bundle)
        names = dict.fromkeys(name for pattern in bundle.identifiers for name in matching(pattern, branches))
        flat = [branches[name] for name in names if branches[name].kind in (Kind.FLAT, Kind.BOOL)]
        return _Opened(source, reader.entries, tuple(flat))


def _refuse_other_kind(source: Source, needed: InputBranch, found: Branch, bundle: Bundle) -> None:
    numbers = (Kind.FLAT, Kind.BOOL)
    if found.kind is not needed.kind and not (found.kind in numbers and needed.kind in numbers):
        raise UsageError(
            f"The branch {needed.name} of {source} is {found.kind.value}, but the model was trained with"
            f" {needed.kind.value}.",
            "Give files of the kind that it was trained on.",
        )
    columns = [column for column in bundle.schema.flat if column.branch == needed.name]
    members = {name for name, _ in found.members}
    lost = [column.name for column in columns if column.member and column.member not in members]
    if found.shape:
        lost += [column.name for column in columns if column.index >= int(np.prod(found.shape))]
    if lost:
        raise UsageError(
            f"The branch {needed.name} of {source} lacks {listing(lost)}, which the model needs.",
            "Give files of the kind that it was trained on.",
        )


def _common_identifiers(files: Sequence[_Opened], tell: Tell) -> list[str]:
    """The identifier branches that every file has as one number an entry."""
    sets = [{branch.name for branch in file.identifiers} for file in files]
    common = [branch.name for branch in files[0].identifiers if all(branch.name in names for names in sets)]
    if lost := sorted(set.union(*sets) - set(common)):
        tell(Note(f"Not in all files, so not written: {listing(lost)}."))
    return common


def _refuse_other_length(file: _Opened, reader: Reader) -> None:
    if reader.entries != file.entries:
        raise MlaasError(f"{file.source} changed while it was read.", "Start again when it is complete.")


def _tree_name(sources: Sequence[Source]) -> str:
    names = {source.tree.rpartition("/")[2] for source in sources}
    return next(iter(names)) if len(names) == 1 and "" not in names else DEFAULT_TREE


def _rows(bundle: Bundle, block: Block, found: Predictions, identifiers: Sequence[str], number: int) -> Columns:
    """The rows of the output that a block gives."""
    entries = block.start + np.flatnonzero(found.kept)
    columns: Columns = {}
    for name in identifiers:
        values = block.columns[name].values[found.kept]
        columns[name] = values.astype(values.dtype.newbyteorder("="), copy=False)
    columns["file"] = np.full(entries.size, number, dtype=np.int32)
    columns["entry"] = entries.astype(np.int64)
    for place, name in enumerate(score_names(bundle.classes)):
        columns[name] = found.values[:, place].astype(np.float32)
    if bundle.classes:
        columns["decision"] = decide(found.values, bundle.threshold).astype(np.int32)
    return columns


def score_names(classes: Sequence[str]) -> list[str]:
    """The names of the score columns; what cannot be in the name of a branch becomes `_`."""
    if not classes:
        return ["prediction"]
    names = [f"score_{re.sub(r'[^A-Za-z0-9_]', '_', name)}" for name in classes]
    return names if len(set(names)) == len(names) else [f"score_{number}" for number in range(len(classes))]


def _no_entries(file: _Opened, identifiers: Sequence[str]) -> Block:
    types = {branch.name: branch.dtype or "f8" for branch in file.identifiers}
    return Block(0, 0, {name: FlatValues(np.empty(0, dtype=types[name])) for name in identifiers})


class _CutFlow:
    """How many entries pass each cut."""

    def __init__(self, cuts: Sequence[str]) -> None:
        self._cuts = cuts
        self._passed = np.zeros(len(cuts), dtype=np.int64)
        self.all = 0

    def add(self, found: Predictions) -> None:
        """Count a block."""
        self.all += found.kept.size
        if found.passed.size:
            self._passed += found.passed

    def lines(self) -> list[str]:
        """The cut flow, a line a cut."""
        return [f"{self.all} entries read"] * bool(self._cuts) + [
            f"{passed} passed {cut}" for cut, passed in zip(self._cuts, self._passed, strict=True)
        ]

    def nothing(self, bundle: Bundle) -> Predictions:
        """The predictions of no entry."""
        return Predictions(np.empty((0, bundle.task.width)), np.empty(0, dtype=np.bool_), self._passed)


class _Output(AbstractContextManager["_Output"]):
    """Rows gathered into larger pieces and written beside the file's place; renamed when all went well."""

    def __init__(self, path: Path, tree: str) -> None:
        self._path, self._tree = path, tree
        self._partial = path.with_name(f".{path.name}.partial")
        self._writer: _Writer | None = None
        self._types: dict[str, np.dtype[Any]] = {}
        self._waiting: list[Columns] = []
        self._held = 0
        self.rows = 0

    def add(self, columns: Columns) -> None:
        """Append rows."""
        size = columns["entry"].size
        if not size:
            return
        self._waiting.append(columns)
        self._held += size
        self.rows += size
        if self._held >= _ROWS_AT_A_TIME:
            self._flush()

    def finish(self, empty: Columns) -> None:
        """Write what is left; `empty` says the columns where there is no row at all."""
        if not self.rows:
            self._waiting.append(empty)
        self._flush()

    def _flush(self) -> None:
        if not self._waiting:
            return
        columns = {name: np.concatenate([piece[name] for piece in self._waiting]) for name in self._waiting[0]}
        self._waiting, self._held = [], 0
        try:
            if self._writer is None:
                self._types = {name: values.dtype for name, values in columns.items()}
                self._writer = _WRITERS[self._path.suffix](self._partial, self._types, self._tree)
            self._writer.write(_as_typed(columns, self._types))
        except OSError as error:
            raise MlaasError(f"{self._path} cannot be written: {error.strerror or error}.") from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._writer is not None:
                self._writer.close()
            if kind is None:
                self._partial.replace(self._path)
        except OSError as failure:
            raise MlaasError(f"{self._path} cannot be written: {failure.strerror or failure}.") from failure
        finally:
            self._partial.unlink(missing_ok=True)


def _as_typed(columns: Columns, types: dict[str, np.dtype[Any]]) -> Columns:
    """The columns in the types of the first rows; refuses identifiers that would lose digits."""
    for name, values in columns.items():
        if values.dtype != types[name]:
            changed = values.astype(types[name])
            if not (changed == values).all():
                raise MlaasError(
                    f"The identifier {name} is {values.dtype} in one file and {types[name]} in another.",
                    "Score the files one by one.",
                )
            columns[name] = changed
    return columns
