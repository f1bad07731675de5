"""Arrow's arrays as branches: the kinds of columns, and blocks of their values. Parquet, CSV, JSON and Avro end here.

=======================================  ==========================================================================
number, bool                             flat, bool
list of numbers or bools                 jagged
list of a fixed length                   fixed array
struct                                   struct: its numeric members
list of lists                            nested
text, bytes, categories                  string
anything else (times, decimals, maps)    object
=======================================  ==========================================================================

A value that is missing (null) is NaN, a list that is missing is empty. Integers stay integers; where some are missing
they become float64, which is refused for those beyond 2**24 that 32-bit inputs would round without anyone noticing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mlaas4hep.data.blocks import Column, FlatValues, JaggedValues
from mlaas4hep.data.damage import explained
from mlaas4hep.data.schema import Branch, Kind
from mlaas4hep.errors import MlaasError

_EXACT_INTEGER = 2**24
_LISTS = (pa.types.is_list, pa.types.is_large_list)
_TEXTS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)


def branch_of(name: str, kind: pa.DataType) -> Branch:
    """A column as a branch, by its Arrow type."""

    plain = _plain(kind)

    def described(what: Kind, dtype: str = "", shape: tuple[int, ...] = (), members: Any = ()) -> Branch:
        return Branch(name, what, str(plain), dtype, shape, tuple(members))

    if is_number(plain):
        return described(Kind.BOOL if pa.types.is_boolean(plain) else Kind.FLAT, dtype_of(plain))
    if _is_list(plain):
        inner = _plain(plain.value_type)
        if is_number(inner):
            return described(Kind.JAGGED, dtype_of(inner))
        deep = (_is_list(inner) or pa.types.is_fixed_size_list(inner)) and is_number(_plain(inner.value_type))
        return described(Kind.NESTED if deep else Kind.OBJECT)
    if pa.types.is_fixed_size_list(plain) and is_number(inner := _plain(plain.value_type)):
        return described(Kind.FIXED, dtype_of(inner), (plain.list_size,))
    if pa.types.is_struct(plain):
        typed = [(member.name, _plain(member.type)) for member in plain]
        members = [(member, dtype_of(inner)) for member, inner in typed if is_number(inner)]
        return described(Kind.STRUCT if members else Kind.OBJECT, members=members)
    return described(Kind.STRING if any(test(plain) for test in _TEXTS) else Kind.OBJECT)


def is_number(kind: pa.DataType) -> bool:
    """Whether NumPy has the type as a number or bool."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def dtype_of(kind: pa.DataType) -> str:
    """NumPy's name of a number's type."""
    return str(np.dtype(kind.to_pandas_dtype()).name)


def column_values(array: pa.Array, branch: Branch, where: str) -> Column:
    """The values of one column.

    Args:
        array: n entries.
        branch: what `branch_of` says of it.
        where: names the file in messages.

    Raises MlaasError for a kind that has no numbers, and for large integers of which some are missing.
    """
    place = f"The column {branch.name} of {where}"
    with explained(place):
        return _column(_decoded(array), branch, place)


def _column(array: pa.Array, branch: Branch, place: str) -> Column:
    if branch.kind in (Kind.FLAT, Kind.BOOL):
        return FlatValues(_numbers(array, place))
    if branch.kind is Kind.JAGGED:
        counts = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
        offsets = np.zeros(len(array) + 1, dtype=np.int64)
        np.cumsum(counts, out=offsets[1:])
        return JaggedValues(offsets, _numbers(array.flatten(), place))
    if branch.kind is Kind.FIXED:
        return FlatValues(_fixed(array, branch.shape[0], place))
    if branch.kind is Kind.STRUCT:
        return FlatValues(_struct(array, branch, place))
    if branch.kind is Kind.STRING:
        texts = pc.fill_null(array, "") if pa.types.is_string(array.type) else array.cast(pa.string()).fill_null("")
        return FlatValues(np.asarray(texts.to_pylist(), dtype=np.str_))
    raise MlaasError(f"{place} is {branch.type}, which has no numbers.", "Add it to exclude_branches.")


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type behind an extension or a dictionary."""
    if isinstance(kind, pa.BaseExtensionType):
        return _plain(kind.storage_type)
    return _plain(kind.value_type) if pa.types.is_dictionary(kind) else kind


def _decoded(array: pa.Array) -> pa.Array:
    if isinstance(array, pa.ExtensionArray):
        return _decoded(array.storage)
    return _decoded(array.dictionary_decode()) if isinstance(array, pa.DictionaryArray) else array


def _is_list(kind: pa.DataType) -> bool:
    return any(test(kind) for test in _LISTS)


def _numbers(array: pa.Array, place: str) -> NDArray[Any]:
    """Numbers or bools, shape (n,); NaN where one is missing."""
    array = _decoded(array)
    if not array.null_count or pa.types.is_floating(array.type):
        values: NDArray[Any] = array.to_numpy(zero_copy_only=False)
        return values
    missing = array.is_null().to_numpy(zero_copy_only=False)
    filled = pc.fill_null(array, False if pa.types.is_boolean(array.type) else 0).to_numpy(zero_copy_only=False)
    if filled.dtype.kind in "iu" and not -_EXACT_INTEGER <= int(filled.min()) <= int(filled.max()) <= _EXACT_INTEGER:
        raise MlaasError(
            f"{place} has integers beyond {_EXACT_INTEGER} and lacks some values.",
            "Fill in the missing ones, or add it to identifier or exclude_branches.",
        )
    return np.where(missing, np.nan, filled.astype(np.float64))


def _fixed(array: pa.FixedSizeListArray, length: int, place: str) -> NDArray[Any]:
    values = _numbers(array.values.slice(array.offset * length, len(array) * length), place).reshape(-1, length)
    if not array.null_count:
        return values
    missing = array.is_null().to_numpy(zero_copy_only=False)
    wide = values if values.dtype.kind == "f" else values.astype(np.float64)
    return np.where(missing[:, None], np.array(np.nan, dtype=wide.dtype), wide)


def _struct(array: pa.StructArray, branch: Branch, place: str) -> NDArray[Any]:
    fields = dict(zip((member.name for member in array.type), array.flatten(), strict=True))
    members = {name: _numbers(fields[name], f"{place}, its member {name},") for name, _ in branch.members}
    values = np.empty(len(array), dtype=[(name, column.dtype) for name, column in members.items()])
    for name, column in members.items():
        values[name] = column
    return values
