"""CSV files: one column a branch, by one pass that counts the rows and finds each column's type over all of them.

The first line names the columns; when it has no comma, semicolons or tabs separate. A column is bool (`true`, `false`)
if all its cells are, else a signed or unsigned 64-bit integer, else a float64, else a string. An empty cell is NaN, as
are the usual spellings of a missing value (`NaN`, `NA`, `null`, ...). Whole numbers beyond 64 bits make their column a
string, so that none is rounded. A row is one line: a quoted cell may hold separators, but no line break.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from mlaas4hep.data.arrow import branch_of, column_values
from mlaas4hep.data.blocks import Block
from mlaas4hep.data.damage import explained, reason
from mlaas4hep.data.files import Digested, OpenFile, decompressed, opened, refuse_repeated, scan_once
from mlaas4hep.data.schema import Branch
from mlaas4hep.data.sources import Source
from mlaas4hep.errors import MlaasError

# a column takes the first that all its cells fit
_TYPES = (pa.bool_(), pa.int64(), pa.uint64(), pa.float64(), pa.string())
_TRUE, _FALSE = ["true", "True", "TRUE"], ["false", "False", "FALSE"]
_WHOLE_NUMBER = r"^\s*[+-]?\d+\s*$"
_BEYOND_INTEGERS = float(2**63)
_SEPARATORS = (",", ";", "\t")
_LINE_BYTES = 8 * 2**20
# Arrow reads up to 32 blocks ahead; one has to hold a row
BLOCK_BYTES = 2**20
_CELL_BYTES = 1_000


@dataclass(frozen=True)
class _Scan:
    """What one pass over a file finds."""

    rows: int
    types: dict[str, pa.DataType]
    digest: str


class SeparatedColumns:
    """An open CSV file; made by `open_csv`."""

    def __init__(self, source: Source, file: OpenFile, scan: _Scan) -> None:
        self.source = source
        self.facts = file.facts(f"sha256 {scan.digest}")
        self.entries = scan.rows
        self.branches: tuple[Branch, ...] = tuple(branch_of(name, kind) for name, kind in scan.types.items())
        self._file = file
        self._types = scan.types

    def blocks(self, names: Sequence[str], stop: int) -> Iterator[Block]:
        """The entries [0, stop) of the named columns, in blocks of about 1 MiB of text."""
        path = self.source.path
        branches = {branch.name: branch for branch in self.branches if branch.name in names}
        start = 0
        self._file.stream.seek(0)
        batches = _Table(path, self._file.stream).batches({name: self._types[name] for name in names})
        while start < stop and (batch := next(batches, None)) is not None:
            end = min(start + batch.num_rows, stop)
            part = batch.slice(0, end - start)
            yield Block(start, end, {name: column_values(part.column(name), branches[name], path) for name in names})
            start = end
        if start < stop:
            raise MlaasError(f"{path} ends after {start} of {self.entries} rows.", "Get the file again.")
        self._file.verify()


@contextmanager
def open_csv(source: Source) -> Iterator[SeparatedColumns]:
    """Open a CSV file for training.

    Raises MlaasError for a file that is missing, empty, truncated or no CSV file, and for a row with too few or too
    many cells, by its line.
    """
    with opened(source.path) as file:
        yield SeparatedColumns(source, file, scan_once(file, _scan))


def _scan(path: str, stream: BinaryIO) -> _Scan:
    digested = Digested(stream)
    table = _Table(path, io.BufferedReader(digested))
    fitting = {name: list(_TYPES) for name in table.names}
    filled: set[str] = set()
    rows = 0
    for batch in table.batches(dict.fromkeys(table.names, pa.string())):
        rows += batch.num_rows
        for name, cells in zip(table.names, batch.columns, strict=True):
            if cells.null_count < len(cells):
                filled.add(name)
                fitting[name] = [kind for kind in fitting[name] if _fits(cells, kind)]
    types = {name: kinds[0] if name in filled else pa.float64() for name, kinds in fitting.items()}
    return _Scan(rows, types, digested.hexdigest())


def _fits(cells: pa.Array, kind: pa.DataType) -> bool:
    """Whether all the cells are of the type; missing ones are of any."""
    if pa.types.is_string(kind):
        return True
    if pa.types.is_boolean(kind):
        return bool(pc.all(pc.is_in(cells.drop_null(), pa.array([*_TRUE, *_FALSE]))).as_py())
    numbers = _cast(cells, kind)
    if numbers is None:
        numbers = _cast(pc.utf8_trim_whitespace(cells), kind)
    if numbers is None or pa.types.is_integer(kind):
        return numbers is not None
    beyond = pc.greater_equal(pc.abs(numbers), _BEYOND_INTEGERS)
    return not (
        pc.any(beyond).as_py() and pc.any(pc.match_substring_regex(cells.filter(beyond), _WHOLE_NUMBER)).as_py()
    )


def _cast(cells: pa.Array, kind: pa.DataType) -> pa.Array | None:
    try:
        return pc.cast(cells, kind)
    except pa.ArrowInvalid:
        return None


class _Table:
    """The text of a CSV file behind its first line, which names the columns."""

    def __init__(self, path: str, stream: BinaryIO | io.BufferedReader) -> None:
        self._path = path
        with explained(path, "Get the file again."):
            self._text = decompressed(path, stream)
            line = self._text.readline(_LINE_BYTES)
        self.names, self._separator = _header(line, path)

    def batches(self, types: dict[str, pa.DataType]) -> Iterator[Any]:
        """The named columns as these types, in batches of about 1 MiB of text."""
        block = max(BLOCK_BYTES, _CELL_BYTES * len(self.names))
        with explained(self._path, "Get the file again."):
            if not self._text.peek(1):
                return
            try:
                yield from pyarrow.csv.open_csv(
                    self._text,
                    pyarrow.csv.ReadOptions(use_threads=False, block_size=block, column_names=self.names),
                    pyarrow.csv.ParseOptions(delimiter=self._separator),
                    pyarrow.csv.ConvertOptions(
                        column_types=types,
                        include_columns=list(types),
                        strings_can_be_null=True,
                        true_values=_TRUE,
                        false_values=_FALSE,
                    ),
                )
            except pa.ArrowInvalid as error:
                raise self._wrong_row(error) from error

    def _wrong_row(self, error: pa.ArrowInvalid) -> MlaasError:
        """Say in which row something is wrong, by what Arrow says."""
        if found := re.search(r"Row #(\d+): Expected (\d+) columns, got (\d+)", str(error)):
            row, expected, cells = found.groups()
            return MlaasError(
                f"The row {row} of {self._path} has {cells} cells instead of {expected} (the header is no row).",
                "Correct it.",
            )
        if found := re.search(r"column #(\d+): Row #(\d+): (.*)", str(error)):
            column, what = self.names[int(found[1])], found[3].rstrip(".")
            return MlaasError(f"The row {found[2]} of {self._path} is wrong in the column {column} ({what}).")
        return MlaasError(f"{self._path} cannot be read ({reason(error)}).", "Check that it is a CSV file.")


def _header(line: bytes, path: str) -> tuple[list[str], str]:
    """The names of the columns, and what separates them."""
    try:
        text = line.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise MlaasError(f"{path} is no text file.", "Check the file's format.") from error
    if not text.strip() or "\0" in text or len(line) >= _LINE_BYTES:
        raise MlaasError(f"{path} has no first line with the columns' names.", "Check the file's format.")
    separator = next((character for character in _SEPARATORS if character in text), ",")
    names = [name.strip() for name in next(csv.reader([text], delimiter=separator))]
    refuse_repeated(names, path)
    if "" in names:
        raise MlaasError(f"{path}: the column {names.index('') + 1} has no name in the first line.", "Give it one.")
    if "." in text and all(_is_number(name) for name in names):
        raise MlaasError(f"{path} has numbers in its first line.", "Give it a first line with the columns' names.")
    return names, separator


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
