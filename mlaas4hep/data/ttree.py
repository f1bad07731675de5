"""The contents of a TTree (or TNtuple): its branches by kind, and their values basket by basket.

uproot parses the file and each basket; the values are put together here, so that everything that baskets claim is
checked against the rest before memory is taken for it: uproot's own arrays can hold uninitialised memory, and wait for
ever, where baskets contradict each other.
"""

from __future__ import annotations

import os
import queue
import re
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import uproot
from numpy.typing import NDArray

from mlaas4hep.data import kernels
from mlaas4hep.data.blocks import Column, FlatValues, JaggedValues, cut, joined
from mlaas4hep.data.compression import decompressed
from mlaas4hep.data.damage import GET_AGAIN, DamageError, explained, reason
from mlaas4hep.data.schema import Branch, Kind
from mlaas4hep.data.sources import is_remote

_NUMBER = (
    r"(?:unsigned |signed )?(?:long |short )?(?:(?:std::)?u?int(?:8|16|32|64)_t|float|double|bool|char|int|short|long)"
)
_KEY = struct.Struct(">ihiIhh")
_BASKET = struct.Struct(">HiiiiB")
# header of a std::vector: byte count, version, and number of elements in the last four bytes
_VECTOR_HEADER = 10
# one that is streamed member by member says so in its version, and has the version and checksum of its class as well
_MEMBERWISE, _MEMBERWISE_HEADER = 0x40, 16


@dataclass(frozen=True)
class Leaf:
    """A branch without sub-branches, or one number of its jagged objects (`member`)."""

    described: Branch
    branch: Any
    member: str = ""


class TreeContents:
    """The branches and values of an open TTree.

    Args:
        tree: uproot's TTree.
        where: file and tree, for messages.
        size: bytes of the file.
    """

    def __init__(self, tree: Any, where: str, size: int) -> None:
        self.entries = int(tree.num_entries)
        if self.entries < 0:
            raise DamageError(f"it claims to have {self.entries} entries")
        self._where = where
        self._size = size
        self._source = tree.file.source
        path = str(tree.file.file_path)
        self._local = None if is_remote(path) else Path(path)
        self._leaves = {leaf.described.name: leaf for leaf in leaves(tree)}
        self.branches = tuple(leaf.described for leaf in self._leaves.values())

    def blocks(self, names: Sequence[str], stop: int, step: int) -> Iterator[tuple[int, int, dict[str, Column]]]:
        """The entries [0, stop), `step` at a time: start, stop and the values of each named branch.

        Each basket is fetched and decompressed once. Raises MlaasError that names the branch when its data are damaged.
        """
        readers: dict[int, BasketReader] = {}
        fetched: dict[int, BasketReader] = {}
        counters: dict[str, Any] = {}
        for name in names:
            branch = self._leaves[name].branch
            with explained(f"The branch {name} of {self._where}", GET_AGAIN):
                # uproot looks for the counter anew each time that it is asked
                counters[name] = branch.count_branch
                for needed in (branch, counters[name]):
                    if needed is not None and id(needed) not in readers:
                        readers[id(needed)] = BasketReader(needed, self.entries)
                    # lists whose baskets hold their offsets do without the counter
                    if needed is branch or (
                        needed is not None and not branch.member("fEntryOffsetLen", none_if_missing=True)
                    ):
                        fetched[id(needed)] = readers[id(needed)]
        for start in range(0, stop, step):
            end = min(start + step, stop)
            with explained(f"{self._where} between the entries {start} and {end}", "Get the file again."):
                self._fetch(list(fetched.values()), start, end)
            read: dict[int, Column] = {}
            yield start, end, {name: self._values(name, counters[name], readers, read, start, end) for name in names}

    def _fetch(self, readers: Sequence[BasketReader], start: int, stop: int) -> None:
        """Ask for the bytes of all baskets of a block in one request."""
        wanted = [(reader, basket, place) for reader in readers for basket, place in reader.missing(start, stop)]
        ranges = list(dict.fromkeys(place for _, _, place in wanted))
        for reader, _, (first, last) in wanted:
            if not 0 < first < last <= self._size:
                raise DamageError(f"the branch {reader.name} has a basket outside the file")
        if sum(last - first for first, last in ranges) > self._size:
            raise DamageError("the baskets are larger than the file")
        found = dict(zip(ranges, self._bytes(ranges), strict=True))
        for reader, basket, place in wanted:
            reader.fetched[basket] = found[place]

    def _bytes(self, ranges: Sequence[tuple[int, int]]) -> Iterator[memoryview]:
        """The bytes of the file in some ranges."""
        if self._local is None:
            chunks = self._source.chunks(list(ranges), queue.Queue()) if ranges else []
            yield from (memoryview(chunk.raw_data) for chunk in chunks)
            return
        # reading, not mapping: a file that is cut meanwhile must not end the process
        with self._local.open("rb", buffering=0) as stream:
            for first, last in ranges:
                yield memoryview(os.pread(stream.fileno(), last - first, first))

    def _values(
        self, name: str, counter: Any, readers: dict[int, BasketReader], read: dict[int, Column], start: int, stop: int
    ) -> Column:
        """The values of one name; `read` keeps those of branches that several names come from."""
        leaf = self._leaves[name]
        with explained(f"The branch {name} of {self._where} between the entries {start} and {stop}", GET_AGAIN):
            counts = readers[id(counter)].counts if counter is not None else None
            if id(leaf.branch) not in read:
                read[id(leaf.branch)] = readers[id(leaf.branch)].values(start, stop, counts)
            values = read[id(leaf.branch)]
            if leaf.member and isinstance(values, JaggedValues):
                return JaggedValues(values.offsets, np.ascontiguousarray(values.values[leaf.member]))
            return values


class BasketReader:
    """Decodes the baskets of one branch; a basket that two blocks share is kept between them.

    Attributes:
        name: the branch's name.
        fetched: the bytes of baskets that are not decoded yet.
    """

    def __init__(self, branch: Any, entries: int) -> None:
        self.name = branch.name
        self.fetched: dict[int, memoryview] = {}
        self._branch = branch
        self._decoded: dict[int, Column] = {}
        self._offsets = np.asarray(branch.entry_offsets, dtype=np.int64)
        if self._offsets[0] or self._offsets[-1] != entries or (np.diff(self._offsets) < 0).any():
            raise DamageError(f"its baskets end at entry {self._offsets[-1]} of {entries}")

    def missing(self, start: int, stop: int) -> Iterator[tuple[int, tuple[int, int]]]:
        """Number and place in the file of each basket with entries in [start, stop) that was not read before."""
        for basket in self._baskets(start, stop):
            if basket not in self._decoded and basket < self._branch._num_normal_baskets:
                first = int(self._branch.member("fBasketSeek")[basket])
                yield basket, (first, first + int(self._branch.member("fBasketBytes")[basket]))

    def _baskets(self, start: int, stop: int) -> Sequence[int]:
        first = np.searchsorted(self._offsets, start, side="right") - 1
        last = np.searchsorted(self._offsets, stop, side="left")
        return [basket for basket in range(first, last) if self._offsets[basket] < self._offsets[basket + 1]]

    def counts(self, start: int, stop: int) -> NDArray[np.int64]:
        """The values of a counter branch, shape (stop - start,)."""
        missing = [basket for basket, _ in self.missing(start, stop) if basket not in self.fetched]
        for basket in missing:
            self.fetched[basket] = memoryview(self._branch.basket_chunk_cursor(basket)[0].raw_data)
        values = self.values(start, stop, None, keep=True)
        if not isinstance(values, FlatValues) or values.values.ndim != 1 or values.values.dtype.kind not in "iu":
            raise DamageError(f"its counter {self.name} holds no whole numbers")
        return values.values.astype(np.int64)

    def values(self, start: int, stop: int, counts: Callable[..., Any] | None, *, keep: bool = False) -> Column:
        """The entries [start, stop).

        Args:
            start: first entry.
            stop: one past the last entry.
            counts: gives the number of values of entries, for branches with a counter.
            keep: whether baskets that end at `stop` will be asked for again.
        """
        pieces = []
        for basket in self._baskets(start, stop):
            first, last = int(self._offsets[basket]), int(self._offsets[basket + 1])
            if basket not in self._decoded:
                self._decoded[basket] = self._decode(basket, last - first, first, counts)
            pieces.append(cut(self._decoded[basket], max(start, first) - first, min(stop, last) - first))
        self._decoded = {
            basket: values
            for basket, values in self._decoded.items()
            if self._offsets[basket + 1] > stop or (keep and self._offsets[basket + 1] > start)
        }
        return joined(pieces)

    def _decode(self, number: int, entries: int, first: int, counts: Callable[..., Any] | None) -> Column:
        branch = self._branch
        if number < branch._num_normal_baskets:
            basket = read_basket(self.fetched.pop(number))
        else:
            embedded = branch.basket(number)
            keylen = int(embedded.member("fKeylen"))
            basket = Basket(embedded.num_entries, keylen, embedded.data, embedded.byte_offsets)
        if basket.entries != entries:
            raise DamageError(f"a basket has {basket.entries} entries instead of {entries}")
        interpretation = branch.interpretation
        if isinstance(interpretation, uproot.interpretation.jagged.AsJagged):
            offsets = _byte_offsets(basket, entries, first, interpretation.content.from_dtype.itemsize, counts)
            return _jagged(branch, basket, interpretation, offsets)
        return FlatValues(_flat(branch, basket, interpretation, basket.data, entries))


@dataclass(frozen=True)
class Basket:
    """A decompressed basket.

    Attributes:
        entries: number of entries that it claims.
        keylen: length of its key, which ROOT's offsets count from.
        data: uint8, the values.
        byte_offsets: where each entry begins in `data`, shape (entries + 1,), or None where all have the same size.
    """

    entries: int
    keylen: int
    data: NDArray[np.uint8]
    byte_offsets: NDArray[Any] | None


def read_basket(raw: memoryview) -> Basket:
    """Decompress a basket from its bytes in the file.

    The key (`TKey`) ends in the members of `TBasket`: version, buffer size, size of an entry, number of entries, end of
    the data, and a flag. Lists have their offsets behind the data (`TBasket::ReadBasketBuffers` of ROOT).
    """
    size = len(raw)
    if size <= _KEY.size + _BASKET.size:
        raise DamageError("a basket is shorter than its key")
    total, _, objlen, _, keylen, _ = _KEY.unpack_from(raw, 0)
    if total != size or not _KEY.size + _BASKET.size < keylen <= total or objlen < 0:
        raise DamageError("a basket's key contradicts the tree")
    _, _, _, entries, last, _ = _BASKET.unpack_from(raw, keylen - _BASKET.size)
    border = last - keylen
    if entries < 0 or not 0 <= border <= objlen:
        raise DamageError("a basket's sizes contradict each other")
    data = decompressed(raw[keylen:], objlen)
    if border == objlen:
        return Basket(entries, keylen, data, None)
    if (objlen - border) % 4 or objlen - border < 8:
        raise DamageError("the offsets of a basket's lists are incomplete")
    offsets = np.subtract(data[border:].view(">i4")[1:], keylen, dtype=np.int64)
    offsets[-1] = border
    return Basket(entries, keylen, data[:border], offsets)


def _byte_offsets(
    basket: Basket, entries: int, first: int, itemsize: int, counts: Callable[..., Any] | None
) -> NDArray[np.int64]:
    """Where each entry begins in the basket's data, shape (entries + 1,); from first to last, in any order between."""
    if basket.byte_offsets is not None:
        offsets = np.asarray(basket.byte_offsets, dtype=np.int64)
    elif counts is not None:
        offsets = np.zeros(entries + 1, dtype=np.int64)
        np.cumsum(counts(first, first + entries) * itemsize, out=offsets[1:])
    else:
        raise DamageError("its lists have no lengths")
    if offsets.size != entries + 1 or offsets[0] or offsets[-1] != len(basket.data):
        raise DamageError("the lengths of its lists contradict the data")
    return offsets


def _jagged(branch: Any, basket: Basket, interpretation: Any, begin: NDArray[np.int64]) -> JaggedValues:
    """The lists of a basket, without the headers that each may have."""
    header, content = int(interpretation.header_bytes), interpretation.content
    itemsize, data = content.from_dtype.itemsize, basket.data
    by_member = (
        header == _VECTOR_HEADER and content.from_dtype.names is not None and begin[-1] and data[4] & _MEMBERWISE
    )
    if by_member:
        header = _MEMBERWISE_HEADER
    if not header:
        offsets = np.empty_like(begin)
        if not kernels.elements(begin, itemsize, offsets):
            raise DamageError("the lengths of its lists contradict the data")
        return JaggedValues(offsets, _flat(branch, basket, content, data, int(offsets[-1])))
    sizes = np.diff(begin) - header
    if (sizes < 0).any() or (sizes % itemsize).any():
        raise DamageError("the lengths of its lists contradict the data")
    offsets = np.zeros(begin.size, dtype=np.int64)
    np.cumsum(sizes // itemsize, out=offsets[1:])
    if by_member and (data[begin[:-1] + 4] & _MEMBERWISE).all():
        data = _objectwise(data, begin, offsets, content.from_dtype)
    places = begin[:-1, None] + np.arange(header)
    if header in (_VECTOR_HEADER, _MEMBERWISE_HEADER):
        told = np.ascontiguousarray(data[places[:, -4:]]).view(">u4").ravel()
        if (told != np.diff(offsets)).any():
            raise DamageError("the lengths of its lists contradict the data")
    mask = np.ones(len(data), dtype=np.bool_)
    mask[places.ravel()] = False
    data = data[mask]
    return JaggedValues(offsets, _flat(branch, basket, content, data, int(offsets[-1])))


def _objectwise(
    data: NDArray[np.uint8], begin: NDArray[np.int64], offsets: NDArray[np.int64], dtype: np.dtype[Any]
) -> NDArray[np.uint8]:
    """Vectors that are streamed member by member (all of the first member, then all of the second) put in order."""
    if any("@" in name for name in dtype.names or ()):
        raise DamageError("its objects are streamed member by member, which is not read")
    ordered, counts = data.copy(), np.diff(offsets)
    first = np.repeat(begin[:-1] + _MEMBERWISE_HEADER, counts)
    within = np.arange(int(offsets[-1])) - np.repeat(offsets[:-1], counts)
    for name in dtype.names or ():
        member, place = dtype.fields[name][:2]  # type: ignore[index]
        target = first + within * dtype.itemsize + place
        source = first + np.repeat(counts, counts) * place + within * member.itemsize
        for byte in range(member.itemsize):
            ordered[target + byte] = data[source + byte]
    return ordered


def _flat(branch: Any, basket: Basket, interpretation: Any, data: NDArray[np.uint8], length: int) -> NDArray[Any]:
    """The numbers in a basket's data, in the file's byte order, shape (length, ...)."""
    dtype: Any = getattr(interpretation, "from_dtype", None)
    if type(interpretation) is uproot.AsDtype and dtype.names is None and not dtype.shape:
        if len(data) != length * dtype.itemsize:
            raise DamageError(f"a basket holds {len(data)} bytes instead of {length * dtype.itemsize}")
        raw = data.view(dtype)
    else:
        library = uproot.interpretation.library._libraries["np"]
        raw = interpretation.basket_array(data, None, basket, branch, branch.context, basket.keylen, library, {})
    if len(raw) != length:
        raise DamageError(f"a basket holds {len(raw)} values instead of {length}")
    dtype = interpretation.to_dtype.base
    if dtype.names is not None:
        return _members(raw, dtype)
    if dtype.kind == "b":
        return np.asarray(np.ascontiguousarray(raw).view(np.uint8) != 0)
    return np.asarray(raw)


def _members(raw: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """The numbers of structs as a structured array with one field a number."""
    members = _numeric_members(dtype)
    values = np.empty(len(raw), dtype=[(name, kind) for name, kind, _, _ in members])
    for name, _, field, index in members:
        values[name] = raw[field].reshape(len(raw), dtype[field].itemsize // dtype[field].base.itemsize)[:, index]
    return values


def _numeric_members(dtype: np.dtype[Any]) -> list[tuple[str, str, str, int]]:
    """Name, NumPy type, field and place in the field of each number of a struct.

    Objects have fields of ROOT's own (`@num_bytes`), and those of objects in them by paths (`fP/fX`), which are written
    with dots; the elements of an array in a struct are written as `name[0]`.
    """
    members = []
    for field in dtype.names or ():
        if "@" not in field and dtype[field].base.kind in "biuf":
            base, shape = dtype[field].base.newbyteorder("="), dtype[field].shape
            name = field.replace("/", ".")
            for index, place in enumerate(np.ndindex(shape)):
                members.append((name + "".join(f"[{part}]" for part in place), base.name, field, index))
    return members


def leaves(tree: Any) -> Iterator[Leaf]:
    """Every branch without sub-branches, by its own name, or by its path where several have the same name.

    Jagged objects (`std::vector<TLorentzVector>`) give one leaf a number, `branch.fE`.
    """
    found = [(path, branch) for path, branch in tree.iteritems(recursive=True) if not branch.branches]
    by_name = Counter(branch.name for _, branch in found)
    by_path = Counter(path for path, _ in found)
    for path, branch in found:
        if by_name[branch.name] == 1:
            yield from _described(branch.name, branch)
        elif by_path[path] == 1 and path not in by_name:
            yield from _described(path, branch)
        else:
            yield Leaf(Branch(path, Kind.UNREADABLE, "name not unique"), branch)


def _described(name: str, branch: Any) -> Iterator[Leaf]:
    try:
        interpretation, typename = branch.interpretation, str(branch.typename or "unknown")
        compressed, uncompressed = int(branch.compressed_bytes), int(branch.uncompressed_bytes)
    except Exception as error:
        yield Leaf(Branch(name, Kind.UNREADABLE, reason(error)), branch)
        return
    members = _jagged_members(interpretation)
    parts = max(len(members), 1)
    plain = Branch(
        name,
        _object_kind(typename),
        typename,
        compressed=compressed // parts,
        uncompressed=uncompressed // parts,
    )
    for member, dtype in members:
        yield Leaf(replace(plain, name=f"{name}.{member}", kind=Kind.JAGGED, dtype=dtype), branch, member)
    if not members:
        yield Leaf(_classified(plain, interpretation), branch)


def _jagged_members(interpretation: Any) -> list[tuple[str, str]]:
    """Name and type of each number of jagged objects; none for whatever is something else."""
    if not isinstance(interpretation, uproot.interpretation.jagged.AsJagged):
        return []
    dtype = getattr(interpretation.content, "to_dtype", np.dtype("O"))
    if dtype.shape or dtype.names is None:
        return []
    return [(name, kind) for name, kind, _, _ in _numeric_members(dtype)]


def _classified(plain: Branch, interpretation: Any) -> Branch:
    """The kind of a branch by uproot's interpretation of it."""
    name = type(interpretation).__name__
    if name in ("AsDtype", "AsDouble32", "AsFloat16", "AsStridedObjects"):
        return _classified_numbers(plain, interpretation.to_dtype)
    if name == "AsJagged":
        dtype = getattr(interpretation.content, "to_dtype", np.dtype("O"))
        if dtype.base.kind in "biuf":
            return replace(plain, kind=Kind.NESTED if dtype.shape else Kind.JAGGED, dtype=_name(dtype.base))
        return replace(plain, kind=Kind.OBJECT)
    if name == "AsStrings":
        return replace(plain, kind=Kind.STRING)
    if name == "UnknownInterpretation":
        return replace(plain, kind=Kind.UNREADABLE)
    return plain


def _classified_numbers(plain: Branch, dtype: np.dtype[Any]) -> Branch:
    """Numbers, arrays of them, or structs."""
    base, shape = dtype.base, dtype.shape
    if base.names is not None:
        members = tuple((name, kind) for name, kind, _, _ in _numeric_members(base))
        return replace(plain, kind=Kind.STRUCT if members and not shape else Kind.OBJECT, members=members)
    if base.kind not in "biuf":
        return replace(plain, kind=Kind.OBJECT)
    if shape:
        return replace(plain, kind=Kind.FIXED, dtype=_name(base), shape=shape)
    return replace(plain, kind=Kind.BOOL if base.kind == "b" else Kind.FLAT, dtype=_name(base))


def _name(dtype: np.dtype[Any]) -> str:
    return dtype.newbyteorder("=").name


def _object_kind(typename: str) -> Kind:
    """What uproot can only read as Python objects, by the name of the type."""
    if "string" in typename.lower() and "map" not in typename:
        return Kind.STRING
    if re.match(rf"^std::vector<\s*(?:std::)?(?:vector|set|array)<\s*{_NUMBER}\b", typename):
        return Kind.NESTED
    return Kind.OBJECT
