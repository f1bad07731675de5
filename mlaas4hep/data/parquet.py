"""Parquet files: columns by kind, and blocks of the chosen ones, a group of rows after another.

The identity of a file is a digest of its footer (schema, statistics, places of all pages) and its size. What is held at
once is a block of values; of a file on a server, the chosen columns of one row group too, fetched by few requests.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow.parquet as pq

from mlaas4hep.data.arrow import branch_of, column_values
from mlaas4hep.data.blocks import Block
from mlaas4hep.data.damage import GET_AGAIN, explained, reason
from mlaas4hep.data.files import OpenFile, opened, refuse_compressed, refuse_repeated
from mlaas4hep.data.schema import Branch
from mlaas4hep.data.sources import Source
from mlaas4hep.errors import MlaasError

_MAGIC = b"PAR1"
_BLOCK_BYTES = 32 * 2**20
_BLOCK_ENTRIES = (1_000, 50_000)
_BUFFER = 64 * 2**10


class ParquetColumns:
    """An open Parquet file; made by `open_parquet`."""

    def __init__(self, source: Source, file: OpenFile, table: pq.ParquetFile, identity: str) -> None:
        self.source = source
        self.facts = file.facts(identity)
        self.entries = int(table.metadata.num_rows)
        self._file = file
        self._table = table
        schema = table.schema_arrow
        refuse_repeated(schema.names, source.path)
        self.branches: tuple[Branch, ...] = tuple(branch_of(column.name, column.type) for column in schema)

    def blocks(self, names: Sequence[str], stop: int) -> Iterator[Block]:
        """The entries [0, stop) of the named columns in blocks of about 32 MiB.

        Raises MlaasError that names the column when its data are damaged.
        """
        branches = {branch.name: branch for branch in self.branches if branch.name in names}
        step = self._step(len(branches))
        start = 0
        for groups in self._row_groups(step):
            if start >= stop:
                break
            for batch in self._batches(names, groups, step):
                end = min(start + batch.num_rows, stop)
                if end > start:
                    part = batch.slice(0, end - start)
                    columns = {
                        name: column_values(part.column(name), branches[name], self.source.path) for name in names
                    }
                    yield Block(start, end, columns)
                start = end
        if start < stop:
            raise MlaasError(f"{self.source} ends after {start} of {self.entries} rows.", "Get the file again.")
        self._file.verify()

    def _step(self, columns: int) -> int:
        """Number of entries that fill a block, as if all columns were of the same size.

        Sizes of single columns are in the file, too, but asked for those of a damaged one pyarrow ends the process.
        """
        groups = (self._table.metadata.row_group(number) for number in range(self._table.num_row_groups))
        size = sum(group.total_byte_size for group in groups) * columns / max(len(self.branches), 1)
        smallest, largest = _BLOCK_ENTRIES
        return max(smallest, min(largest, int(_BLOCK_BYTES * self.entries / max(size, 1))))

    def _row_groups(self, step: int) -> Iterator[list[int]]:
        """Consecutive row groups that together fill a block, or a single one that is larger."""
        groups: list[int] = []
        rows = 0
        for number in range(self._table.num_row_groups):
            more = self._table.metadata.row_group(number).num_rows
            if groups and rows + more > step:
                yield groups
                groups, rows = [], 0
            groups.append(number)
            rows += more
        if groups:
            yield groups

    def _batches(self, names: Sequence[str], groups: list[int], step: int) -> Iterator[Any]:
        try:
            yield from self._table.iter_batches(step, row_groups=groups, columns=list(names))
        except MlaasError:
            raise
        except Exception as error:
            raise self._blame(names, groups, error) from error

    def _blame(self, names: Sequence[str], groups: list[int], error: Exception) -> MlaasError:
        """Find the column that cannot be read in some row groups."""
        culprit, cause = "", error
        for name in names:
            try:
                for _ in self._table.iter_batches(row_groups=groups, columns=[name]):
                    pass
            except MlaasError as failure:
                return failure
            except Exception as failure:
                culprit, cause = f"The column {name} of ", failure
                break
        return MlaasError(f"{culprit}{self.source} cannot be read ({reason(cause)}).", GET_AGAIN)


@contextmanager
def open_parquet(source: Source) -> Iterator[ParquetColumns]:
    """Open a Parquet file for training.

    Raises MlaasError for a file that is missing, empty, truncated, damaged or no Parquet file.
    """
    path = source.path
    refuse_compressed(path, "Parquet")
    with opened(path) as file:
        identity = _identity(file)
        with explained(path):
            table = pq.ParquetFile(
                file.stream if source.remote else path,
                buffer_size=0 if source.remote else _BUFFER,
                pre_buffer=source.remote,
                page_checksum_verification=True,
            )
        with table:
            with explained(path):
                columns = ParquetColumns(source, file, table, identity)
            yield columns


def _identity(file: OpenFile) -> str:
    """Digest of the footer, with the size; refuses what is no Parquet file."""
    start = file.stream.read(len(_MAGIC))
    if start != _MAGIC:
        raise MlaasError(f"{file.path} is not a Parquet file: it begins with {start!r}.", "Check the file's format.")
    if file.size < 3 * len(_MAGIC):
        raise MlaasError(f"{file.path} is truncated.", "Get the file again: its end is missing.")
    file.stream.seek(file.size - 8)
    end = file.stream.read(8)
    length = int.from_bytes(end[:4], "little")
    if end[4:] != _MAGIC or length + 12 > file.size:
        raise MlaasError(f"{file.path} is truncated.", "Get the file again: its end is missing.")
    file.stream.seek(file.size - 8 - length)
    digest = hashlib.sha256(file.stream.read(length)).hexdigest()
    file.stream.seek(0)
    return f"parquet {file.size} {digest}"
