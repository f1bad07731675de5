"""Avro files: a field of the record is a branch, its kind by the file's schema.

One pass counts the records without decoding them. A union with null is the other type, with NaN (or an empty list)
where it is null; other unions, maps and logical types (times, decimals) are objects.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import fastavro
import pyarrow as pa

from mlaas4hep.data.arrow import branch_of, column_values
from mlaas4hep.data.blocks import Block
from mlaas4hep.data.damage import explained
from mlaas4hep.data.files import BLOCK_BYTES, Digested, OpenFile, opened, refuse_compressed, scan_once
from mlaas4hep.data.schema import Branch, Kind
from mlaas4hep.data.sources import Source
from mlaas4hep.errors import MlaasError

_MAGIC = b"Obj\x01"
_BLOCK_ENTRIES = (1_000, 50_000)
_REMEDY = "Get the file again."
_SIMPLE = {
    "boolean": pa.bool_(),
    "int": pa.int32(),
    "long": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "string": pa.string(),
    "enum": pa.string(),
    "bytes": pa.binary(),
}


@dataclass(frozen=True)
class _Scan:
    """What one pass over a file finds."""

    records: int
    schema: Mapping[str, Any]
    digest: str


class AvroRecords:
    """An open Avro file; made by `open_avro`."""

    def __init__(self, source: Source, file: OpenFile, scan: _Scan) -> None:
        self.source = source
        self.facts = file.facts(f"sha256 {scan.digest}")
        self.entries = scan.records
        self._file = file
        self._schema = scan.schema
        self._types = {field["name"]: _arrow_type(field["type"]) for field in scan.schema["fields"]}
        self.branches: tuple[Branch, ...] = tuple(
            Branch(name, Kind.OBJECT, "union, map or logical type") if kind is None else branch_of(name, kind)
            for name, kind in self._types.items()
        )

    def blocks(self, names: Sequence[str], stop: int) -> Iterator[Block]:
        """The entries [0, stop) of the named fields, in blocks of about 8 MiB of the file."""
        path = self.source.path
        branches = {branch.name: branch for branch in self.branches if branch.name in names}
        smallest, largest = _BLOCK_ENTRIES
        step = max(smallest, min(largest, BLOCK_BYTES * self.entries // max(self.facts.size, 1)))
        start = 0
        self._file.stream.seek(0)
        with explained(path, _REMEDY):
            records = fastavro.reader(self._file.stream, self._only(names))
        while start < stop:
            with explained(f"{path}, between the records {start} and {min(start + step, stop)},", _REMEDY):
                part: list[Any] = list(itertools.islice(records, min(step, stop - start)))
                arrays = {name: pa.array([row[name] for row in part], self._types[name]) for name in names}
            if not part:
                raise MlaasError(f"{path} ends after {start} of {self.entries} records.", _REMEDY)
            end = start + len(part)
            yield Block(start, end, {name: column_values(arrays[name], branches[name], path) for name in names})
            start = end
        self._file.verify()

    def _only(self, names: Sequence[str]) -> Any:
        """The file's schema with the named fields only, so that the others are skipped instead of decoded."""
        fields = [field for field in self._schema["fields"] if field["name"] in names]
        if any(_refers(field["type"]) for field in fields):
            return None
        return {"type": "record", "name": self._schema["name"], "fields": fields}


@contextmanager
def open_avro(source: Source) -> Iterator[AvroRecords]:
    """Open an Avro file for training.

    Raises MlaasError for a file that is missing, empty, truncated, damaged or no Avro file of records.
    """
    refuse_compressed(source.path, "Avro")
    with opened(source.path) as file:
        scan = scan_once(file, _scan)
        with explained(source.path):
            records = AvroRecords(source, file, scan)
        yield records


def _scan(path: str, stream: BinaryIO) -> _Scan:
    start = stream.read(len(_MAGIC))
    if start != _MAGIC:
        raise MlaasError(f"{path} is not an Avro file: it begins with {start!r}.", "Check the file's format.")
    stream.seek(0)
    digest = Digested(stream).hexdigest()
    stream.seek(0)
    with explained(path, _REMEDY):
        blocks = fastavro.block_reader(stream)
        schema: Any = blocks.writer_schema
        records = sum(block.num_records for block in blocks)
    if not isinstance(schema, dict) or schema.get("type") != "record":
        raise MlaasError(f"{path} holds no records.", "Write one record an event.")
    return _Scan(records, schema, digest)


def _arrow_type(schema: Any) -> pa.DataType | None:
    """Arrow's type of an Avro type; None for one that has none here."""
    if isinstance(schema, str):
        return _SIMPLE.get(schema)
    if isinstance(schema, list):
        others = [choice for choice in schema if choice != "null"]
        return _arrow_type(others[0]) if len(others) == 1 else None
    if "logicalType" in schema:
        return None
    if schema["type"] == "array":
        items = _arrow_type(schema["items"])
        return None if items is None else pa.list_(items)
    if schema["type"] == "record":
        members = {field["name"]: _arrow_type(field["type"]) for field in schema["fields"]}
        return pa.struct([(name, kind) for name, kind in members.items() if kind is not None])
    return _arrow_type(schema["type"]) if isinstance(schema["type"], str) else None


def _refers(schema: Any) -> bool:
    """Whether a type names one that is defined elsewhere in the file's schema."""
    if isinstance(schema, str):
        return schema not in _SIMPLE and schema != "null"
    if isinstance(schema, list):
        return any(_refers(choice) for choice in schema)
    inner = [schema.get("items"), schema.get("values"), *(field["type"] for field in schema.get("fields", []))]
    return any(_refers(part) for part in inner if part is not None)
