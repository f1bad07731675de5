"""JSON: one object a line, or one array of objects; a key is a branch.

One pass finds the keys and their types over all records: integers and floats together are floats; a key that holds a
number here and a list, a bool, text or an object there is refused with file, line and key. One policy for what is
missing: a key that a record lacks, or that is null, is NaN, or an empty list where others have a list. Integers stay
64-bit integers; a key with integers beyond 64 bits is no input, so that none is rounded.
"""

from __future__ import annotations

import io
import itertools
import json
import re
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from mlaas4hep.data.arrow import branch_of, column_values
from mlaas4hep.data.blocks import Block
from mlaas4hep.data.damage import explained, reason
from mlaas4hep.data.files import BLOCK_BYTES, Digested, OpenFile, decompressed, opened, scan_once
from mlaas4hep.data.schema import Branch, Kind
from mlaas4hep.data.sources import Source
from mlaas4hep.errors import MlaasError

_LARGEST_RECORD = 64 * 2**20
_BEYOND_INTEGERS = float(2**63)
_REMEDY = "Correct it, or get the file again."
_VALUE = re.compile(r"[^\s,]|\Z")
_SIMPLE = {type(None): pa.null(), bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}


@dataclass(frozen=True)
class _Scan:
    """What one pass over a file finds: the number of records, each key's type, the keys with integers too large."""

    records: int
    types: dict[str, pa.DataType]
    too_large: frozenset[str]
    digest: str


@dataclass(frozen=True)
class _Piece:
    """Some whole records, one object a line.

    Attributes:
        text: the lines.
        line: the number of the first line in the file.
        lines: the number of each record's line in the file, where it is not one after another.
    """

    text: bytes
    line: int
    lines: tuple[int, ...] = ()


class JsonRecords:
    """An open JSON file; made by `open_json`."""

    def __init__(self, source: Source, file: OpenFile, scan: _Scan) -> None:
        self.source = source
        self.facts = file.facts(f"sha256 {scan.digest}")
        self.entries = scan.records
        self.branches: tuple[Branch, ...] = tuple(
            replace(branch_of(name, kind), kind=Kind.OBJECT, type="integer beyond 64 bits", dtype="")
            if name in scan.too_large
            else branch_of(name, kind)
            for name, kind in scan.types.items()
        )
        self._file = file
        self._types = scan.types

    def blocks(self, names: Sequence[str], stop: int) -> Iterator[Block]:
        """The entries [0, stop) of the named keys, in blocks of 8 MiB of text."""
        path = self.source.path
        branches = {branch.name: branch for branch in self.branches if branch.name in names}
        types = {name: self._types[name] for name in names}
        start = 0
        self._file.stream.seek(0)
        pieces = _pieces(path, self._file.stream)
        while start < stop and (piece := next(pieces, None)) is not None:
            batch = _parsed(path, piece, types, types)
            end = min(start + batch.num_rows, stop)
            part = batch.slice(0, end - start)
            yield Block(start, end, {name: column_values(part.column(name), branches[name], path) for name in names})
            start = end
        if start < stop:
            raise MlaasError(f"{path} ends after {start} of {self.entries} records.", "Get the file again.")
        self._file.verify()


@contextmanager
def open_json(source: Source) -> Iterator[JsonRecords]:
    """Open a file of JSON records for training.

    Raises MlaasError for a file that is missing, empty, truncated or no JSON, and for records that contradict each
    other, by line and key.
    """
    with opened(source.path) as file:
        yield JsonRecords(source, file, scan_once(file, _scan))


def _scan(path: str, stream: BinaryIO) -> _Scan:
    digested = Digested(stream)
    records = 0
    types: dict[str, pa.DataType] = {}
    too_large: set[str] = set()
    for piece in _pieces(path, io.BufferedReader(digested)):
        batch = _parsed(path, piece, types)
        records += batch.num_rows
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            both = _wider(types.get(name, pa.null()), _without_times(column.type))
            if both is None:
                raise _contradiction(path, piece, types)
            types[name] = both
            if _has_large(column) and any(_large_integer(record.get(name)) for _, record in _records(path, piece)):
                too_large.add(name)
    return _Scan(
        records, {name: _settled(kind) for name, kind in types.items()}, frozenset(too_large), digested.hexdigest()
    )


def _pieces(path: str, stream: BinaryIO | io.BufferedReader) -> Iterator[_Piece]:
    """The records of a file in order, in pieces of about `BLOCK_BYTES`."""
    with explained(path, "Get the file again."):
        text = decompressed(path, stream)
        line = 1
        if text.peek(len(BOM_UTF8)).startswith(BOM_UTF8):
            text.read(len(BOM_UTF8))
        while (first := text.read(1)).isspace():
            line += first == b"\n"
        if first == b"[":
            yield from _array(path, text, line)
        elif first == b"{":
            yield from _lines(path, text, line)
        elif first:
            raise MlaasError(f"{path} is not JSON: it begins with {first!r}.", "Write one object a line.")
        else:
            raise MlaasError(f"{path} holds nothing but blanks.", "Write one object a line.")


def _lines(path: str, text: io.BufferedReader, line: int) -> Iterator[_Piece]:
    rest = b"{"
    while data := text.read(BLOCK_BYTES):
        whole, newline, last = data.rpartition(b"\n")
        if not newline:
            rest += data
            if len(rest) > _LARGEST_RECORD:
                raise MlaasError(f"The line {line} of {path} is longer than {_LARGEST_RECORD} bytes.", _REMEDY)
            continue
        piece = rest + whole + newline
        yield _Piece(piece, line)
        line += piece.count(b"\n")
        rest = last
    if rest.strip():
        yield _Piece(rest, line)


def _array(path: str, text: io.BufferedReader, line: int) -> Iterator[_Piece]:
    """The objects of an array, one a line."""
    incoming = io.TextIOWrapper(text, "utf-8")
    decoder = json.JSONDecoder()
    buffer, place = "", 0
    found: list[str] = []
    lines: list[int] = []
    while True:
        start = next(_VALUE.finditer(buffer, place)).start()
        line += buffer.count("\n", place, start)
        place = start
        if buffer[start : start + 1] == "]":
            break
        try:
            record, place = decoder.raw_decode(buffer, start)
        except (ValueError, RecursionError) as error:
            more = incoming.read(BLOCK_BYTES)
            if not more or len(buffer) - start > _LARGEST_RECORD:
                raise _invalid(path, line, error) from error
            buffer, place = buffer[start:] + more, 0
            continue
        if not isinstance(record, dict):
            raise MlaasError(f"The line {line} of {path} has {_shown(record)} instead of an object.", _REMEDY)
        found.append(json.dumps(record))
        lines.append(line)
        line += buffer.count("\n", start, place)
        if place > BLOCK_BYTES:
            buffer, place = buffer[place:], 0
            yield _Piece("\n".join(found).encode(), lines[0], tuple(lines))
            found, lines = [], []
    if found:
        yield _Piece("\n".join(found).encode(), lines[0], tuple(lines))
    if (buffer[place + 1 :] + incoming.read(BLOCK_BYTES)).strip():
        raise MlaasError(f"{path} goes on after the end of its array in line {line}.", _REMEDY)


def _parsed(
    path: str, piece: _Piece, before: dict[str, pa.DataType], wanted: dict[str, pa.DataType] | None = None
) -> pa.RecordBatch:
    """The records as columns: those that are wanted with their types, or else all with types by their values.

    Args:
        path: the file.
        piece: its records.
        before: the types of earlier records, to tell where a record contradicts them.
        wanted: name and type of the columns.
    """
    options = (
        pyarrow.json.ParseOptions(explicit_schema=pa.schema(wanted), unexpected_field_behavior="ignore")
        if wanted
        else pyarrow.json.ParseOptions()
    )
    reading = pyarrow.json.ReadOptions(use_threads=False, block_size=len(piece.text) + 1)
    try:
        table = pyarrow.json.read_json(io.BytesIO(piece.text), reading, options)
        return (
            table.combine_chunks().to_batches()[0] if table.num_rows else pa.RecordBatch.from_pylist([], table.schema)
        )
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise _contradiction(path, piece, before, reason(error)) from error


def _records(path: str, piece: _Piece) -> Iterator[tuple[int, dict[str, Any]]]:
    """The records of a piece by Python, each with its line; raises MlaasError for what is no JSON object."""
    texts = piece.text.split(b"\n")
    for line, text in zip(piece.lines or itertools.count(piece.line), texts, strict=False):
        if text.strip():
            try:
                record = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise _invalid(path, line, error) from error
            if not isinstance(record, dict):
                raise MlaasError(f"The line {line} of {path} has {_shown(record)} instead of an object.", _REMEDY)
            yield line, record


def _contradiction(path: str, piece: _Piece, before: dict[str, pa.DataType], said: str = "") -> MlaasError:
    """Find the record and the key that contradict earlier ones."""
    seen = dict(before)
    for line, record in _records(path, piece):
        for key, value in record.items():
            both = _wider(seen.get(key, pa.null()), _kind_of(value))
            if both is None:
                return MlaasError(
                    f"The line {line} of {path} has {_shown(value)} for {key}, unlike what is before it.", _REMEDY
                )
            seen[key] = both
    return MlaasError(f"{path} cannot be read from the line {piece.line} on ({said}).", _REMEDY)


def _kind_of(value: Any) -> pa.DataType | None:
    """Arrow's type of a value of JSON; None for a list whose elements contradict each other."""
    if isinstance(value, list):
        inner: pa.DataType | None = pa.null()
        for element in value:
            inner = inner if inner is None else _wider(inner, _kind_of(element))
        return None if inner is None else pa.list_(inner)
    if isinstance(value, dict):
        kinds = {key: _kind_of(member) for key, member in value.items()}
        return None if None in kinds.values() else pa.struct(kinds)
    return _SIMPLE[type(value)]


def _wider(one: pa.DataType, other: pa.DataType | None) -> pa.DataType | None:
    """The type that holds the values of both; None when there is none."""
    if other is None or one == other or pa.types.is_null(other):
        return other and one
    if pa.types.is_null(one):
        return other
    if {one, other} == {pa.int64(), pa.float64()}:
        return pa.float64()
    if pa.types.is_list(one) and pa.types.is_list(other):
        inner = _wider(one.value_type, other.value_type)
        return None if inner is None else pa.list_(inner)
    if pa.types.is_struct(one) and pa.types.is_struct(other):
        members: dict[str, pa.DataType | None] = {member.name: member.type for member in one}
        for member in other:
            members[member.name] = _wider(members.get(member.name) or pa.null(), member.type)
        return None if None in members.values() else pa.struct(members)
    return None


def _mapped(kind: pa.DataType, simple: Callable[[pa.DataType], pa.DataType]) -> pa.DataType:
    """The type with `simple` applied to all that is neither list nor struct."""
    if pa.types.is_list(kind):
        return pa.list_(_mapped(kind.value_type, simple))
    if pa.types.is_struct(kind):
        return pa.struct([(member.name, _mapped(member.type, simple)) for member in kind])
    return simple(kind)


def _without_times(kind: pa.DataType) -> pa.DataType:
    """Arrow takes text for a time where it looks like one; here it stays text."""
    return _mapped(kind, lambda simple: pa.string() if pa.types.is_timestamp(simple) else simple)


def _settled(kind: pa.DataType) -> pa.DataType:
    """What is null in all records is taken for a number."""
    return _mapped(kind, lambda simple: pa.float64() if pa.types.is_null(simple) else simple)


def _has_large(column: pa.Array) -> bool:
    """Whether floats among the values are so large that they may have been written as integers."""
    if pa.types.is_list(column.type):
        return _has_large(column.flatten())
    if pa.types.is_struct(column.type):
        return any(_has_large(member) for member in column.flatten())
    if not pa.types.is_floating(column.type):
        return False
    return bool(pc.any(pc.greater_equal(pc.abs(column), _BEYOND_INTEGERS)).as_py())


def _large_integer(value: Any) -> bool:
    if isinstance(value, list):
        return any(_large_integer(element) for element in value)
    if isinstance(value, dict):
        return any(_large_integer(member) for member in value.values())
    return isinstance(value, int) and abs(value) >= _BEYOND_INTEGERS


def _invalid(path: str, line: int, error: Exception) -> MlaasError:
    return MlaasError(f"The line {line} of {path} is not valid JSON ({reason(error)}).", _REMEDY)


def _shown(value: Any) -> str:
    """A value of JSON, in few words."""
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
