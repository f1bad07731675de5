"""The contents of an RNTuple: its fields by kind, and their values cluster by cluster.

Every page and page list has a checksum (XXH3) in the file, which uproot does not verify; it is verified here.
Format: `tree/ntuple/doc/BinaryFormatSpecification.md` of ROOT.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import uproot
import xxhash
from numpy.typing import NDArray
from uproot.const import RNTupleFieldFlags, RNTupleFieldRole

from mlaas4hep.data.blocks import Column, FlatValues, JaggedValues, cut
from mlaas4hep.data.compression import checked_blocks
from mlaas4hep.data.damage import GET_AGAIN, DamageError, explained
from mlaas4hep.data.remote_root import RemoteSource
from mlaas4hep.data.schema import INPUT_KINDS, Branch, Kind

_CHECKSUM_BYTES = 8
_DTYPES = {"float": "float32", "double": "float64", "char": "uint8", "byte": "uint8", "bool": "bool"} | {
    name: name for sign in ("int", "uint") for name in (f"{sign}{bits}" for bits in (8, 16, 32, 64))
}
_CARDINALITY = "RNTupleCardinality"
_OBJECTS = {RNTupleFieldRole.VARIANT, RNTupleFieldRole.STREAMER}
_NULLABLE = re.compile(r"^std::(?:optional|unique_ptr)<")


@dataclass(frozen=True)
class NTupleField:
    """A field that holds values.

    Attributes:
        described: as a branch.
        values: number of the column with its values, -1 where no column is read (strings, objects).
        offsets: number of the column with the ends of its lists, -1 for fields without lists.
        cardinality: whether it is the length of the lists only.
    """

    described: Branch
    values: int = -1
    offsets: int = -1
    cardinality: bool = False


class NTupleContents:
    """The fields and values of an open RNTuple.

    Args:
        ntuple: uproot's RNTuple.
        where: file and RNTuple, for messages.
        size: bytes of the file.
    """

    def __init__(self, ntuple: Any, where: str, size: int) -> None:
        self._where = where
        self._ntuple = ntuple
        _verify_pages(ntuple, size)
        self.entries = int(ntuple.num_entries)
        self._fields = {field.described.name: field for field in _fields(ntuple)}
        self.branches = tuple(field.described for field in self._fields.values())

    def blocks(self, names: Sequence[str], stop: int, step: int) -> Iterator[tuple[int, int, dict[str, Column]]]:
        """The entries [0, stop), at most `step` at a time and none across clusters: start, stop and values.

        Each cluster is read once. Raises MlaasError that names the field when its data are damaged.
        """
        for number, first, last in self._clusters(stop):
            columns = self._cluster(names, number, first)
            for start in range(first, last, step):
                end = min(start + step, last)
                yield start, end, {name: cut(columns[name], start - first, end - first) for name in names}

    def _clusters(self, stop: int) -> Iterator[tuple[int, int, int]]:
        """Number, first entry, and one past the last entry to be read, of each cluster."""
        first = 0
        for number, cluster in enumerate(self._ntuple.cluster_summaries):
            if cluster.num_first_entry != first:
                raise DamageError("its clusters do not follow each other")
            last = min(first + int(cluster.num_entries), stop)
            if first < last:
                yield number, first, last
            first += int(cluster.num_entries)

    def _cluster(self, names: Sequence[str], number: int, first: int) -> dict[str, Column]:
        """All entries of one cluster; a column that several fields share is read once.

        A field that was added while the file was written is 0, or an empty list, in the entries before.
        """
        entries = int(self._ntuple.cluster_summaries[number].num_entries)
        columns: dict[int, NDArray[Any]] = {}

        def column(wanted: int) -> NDArray[Any]:
            if wanted not in columns:
                late = max(0, int(self._ntuple.column_records[wanted].first_element_index) - first)
                columns[wanted] = self._ntuple.read_cluster_range(wanted, number, number + 1, min(late, entries))
            return columns[wanted]

        self._fetch_together(names, number)
        values = {}
        for name in names:
            where = f"The branch {name} of {self._where} between the entries {first} and {first + entries}"
            with explained(where, GET_AGAIN):
                values[name] = _field_values(self._fields[name], column, entries)
        return values

    def _fetch_together(self, names: Sequence[str], number: int) -> None:
        """Have a file on a server give all pages of a cluster by one request."""
        source = self._ntuple.file.source
        if isinstance(source, RemoteSource):
            fields = [self._fields[name] for name in names]
            wanted = {column for field in fields for column in (field.values, field.offsets) if column >= 0}
            pages = self._ntuple.page_link_list[number]
            locators = [page.locator for column in wanted if column < len(pages) for page in pages[column].pages]
            source.fetch_together(
                [(int(at.offset), int(at.offset + at.num_bytes) + _CHECKSUM_BYTES) for at in locators]
            )


def _field_values(field: NTupleField, column: Callable[[int], NDArray[Any]], entries: int) -> Column:
    """The values of a field in one cluster."""
    if field.offsets < 0:
        shape = field.described.shape
        values = column(field.values)
        if values.size != entries * math.prod(shape):
            raise DamageError(f"it has {values.size} values for {entries} entries")
        return FlatValues(values.reshape(entries, *shape))
    offsets = column(field.offsets).astype(np.int64)
    if offsets.size != entries + 1 or offsets[0] or (np.diff(offsets) < 0).any():
        raise DamageError("the lengths of its lists contradict each other")
    if field.cardinality:
        return FlatValues(np.diff(offsets))
    values = column(field.values)
    if offsets[-1] != values.size:
        raise DamageError("the lengths of its lists contradict the data")
    return JaggedValues(offsets, values)


def _verify_pages(ntuple: Any, size: int) -> None:
    """Have the RNTuple verify the checksum of whatever it reads from the file."""
    lists_read = False
    with_sum: set[int] = set()

    def read(locator: Any, uncompressed: int) -> tuple[Any, Any]:
        start, length = int(locator.offset), int(locator.num_bytes)
        with_checksum = id(locator) in with_sum
        end = start + length + _CHECKSUM_BYTES * with_checksum
        if not 0 < start <= end <= size:
            raise DamageError("a page lies outside the file")
        raw = ntuple.file.source.chunk(start, end).raw_data
        if with_checksum:
            _check_sum(raw)
            raw = raw[:length]
        if length < uncompressed:
            checked_blocks(memoryview(raw), uncompressed)
        chunk, cursor = uproot.source.chunk.Chunk.wrap(ntuple.file.source, raw), uproot.source.cursor.Cursor(0)
        if length < uncompressed:
            chunk = uproot.compression.decompress(chunk, cursor, {}, length, uncompressed, block_info=None)
            cursor.move_to(0)
        if not lists_read:
            _check_sum(chunk.raw_data[:uncompressed])
        return chunk, cursor

    ntuple.read_locator = read
    with_sum |= {
        id(page.locator)
        for cluster in ntuple.page_link_list
        for column in cluster
        for page in column.pages
        if page.has_checksum
    }
    lists_read = True


def _check_sum(raw: Any) -> None:
    """The last eight bytes are the XXH3 of those before them."""
    told = int.from_bytes(bytes(raw[-_CHECKSUM_BYTES:]), "little")
    if xxhash.xxh3_64_intdigest(bytes(raw[:-_CHECKSUM_BYTES])) != told:
        raise DamageError("a checksum does not match")


def _fields(ntuple: Any) -> Iterator[NTupleField]:
    """The fields that hold values, each once: by its path, or by the name of its projection where it has one.

    A collection of records without a name of its own (`_collection0.Muon_pt`) is projected by NanoAOD's names
    (`Muon_pt`), and both are fields of the file.
    """
    fields, records = ntuple.all_fields, ntuple.field_records
    lines = _lines(records)
    projected = {record.source_field_id for record in records} - {None}
    named = [number for number, field in enumerate(fields) if field.path and not field.is_anonymous]
    inside = {outer for number in named if not _in_variant(lines[number][:-1], records) for outer in lines[number][:-1]}
    children: dict[int, list[int]] = {}
    for number, line in enumerate(lines):
        if len(line) > 1:
            children.setdefault(line[-2], []).append(number)
    for number in named:
        shadowed = number in projected and records[number].source_field_id is None
        if not (number in inside or shadowed or _in_variant(lines[number][:-1], records)):
            line = lines[number]
            while len(children.get(line[-1], ())) == 1:
                line = (*line, children[line[-1]][0])
            chain = [records[part] for part in line]
            described = _described(fields[number].path, fields[number].typename, chain, line[-1] in children)
            yield _with_columns(ntuple, line, described)


def _with_columns(ntuple: Any, line: Sequence[int], described: Branch) -> NTupleField:
    """Where the values of a described field are."""
    records = ntuple.field_records
    owners = [number if records[number].source_field_id is None else records[number].source_field_id for number in line]
    compressed, uncompressed = _sizes(ntuple, owners)
    described = replace(described, compressed=compressed, uncompressed=uncompressed)
    if described.kind not in INPUT_KINDS:
        return NTupleField(described)
    own = [ntuple._column_records_dict[owner][0].idx for owner in owners if owner in ntuple._column_records_dict]
    cardinality = _CARDINALITY in str(records[line[-1]].type_name)
    lists = described.kind is Kind.JAGGED or cardinality
    return NTupleField(described, own[-1], own[0] if lists else -1, cardinality)


def _lines(records: Sequence[Any]) -> list[tuple[int, ...]]:
    """For each field its number, after those of the fields around it, outermost first."""
    lines: list[tuple[int, ...]] = []
    for number, record in enumerate(records):
        parent = record.parent_field_id
        if parent > number:
            raise DamageError("a field comes before the one that it belongs to")
        lines.append((number,) if parent == number else (*lines[parent], number))
    return lines


def _in_variant(line: Sequence[int], records: Sequence[Any]) -> bool:
    return any(records[number].struct_role == RNTupleFieldRole.VARIANT for number in line)


def _sizes(ntuple: Any, owners: Sequence[int]) -> tuple[int, int]:
    """Bytes of the pages of some fields, in the file and in memory."""
    columns = [column.idx for owner in owners for column in ntuple._column_records_dict.get(owner, ())]
    compressed = uncompressed = 0
    for cluster in ntuple.page_link_list:
        for column in columns:
            for page in cluster[column].pages if column < len(cluster) else ():
                compressed += int(page.locator.num_bytes)
                uncompressed += int(page.num_elements) * int(ntuple.column_records[column].nbits) // 8
    return compressed, uncompressed


def _described(path: str, typename: str, line: Sequence[Any], several: bool) -> Branch:
    """The kind of a field, by the records of the fields around it, its own, and those of the values in it."""
    last = str(line[-1].type_name)
    roles = {record.struct_role for record in line}
    dtype = "int64" if _CARDINALITY in last else _DTYPES.get(last.removeprefix("std::").removesuffix("_t"), "")
    lists = sum(record.struct_role == RNTupleFieldRole.COLLECTION for record in line)
    shape = tuple(int(record.repetition) for record in line if record.flags & RNTupleFieldFlags.REPETITIVE)
    described = partial(Branch, path, type=str(typename) or "untyped")
    if last == "std::string" and not several:
        return described(kind=Kind.STRING)
    if not dtype or several or roles & _OBJECTS or any(_NULLABLE.match(str(record.type_name)) for record in line):
        return described(kind=Kind.OBJECT)
    if lists + bool(shape) > 1:
        return described(kind=Kind.NESTED, dtype=dtype)
    if lists:
        return described(kind=Kind.JAGGED, dtype=dtype)
    if shape:
        return described(kind=Kind.FIXED, dtype=dtype, shape=shape)
    return described(kind=Kind.BOOL if dtype == "bool" else Kind.FLAT, dtype=dtype)
