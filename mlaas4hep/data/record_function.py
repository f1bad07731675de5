"""A Python file with `def preprocessing(record)`, called once for each event.

The function gets a dict: a number (or bool) for a flat branch, a list of numbers for a jagged branch or a fixed array,
a dict for a struct. It returns the dict, changed or not, or None or False to drop the event. The events that it keeps
become columns again; which ones, with which types, is found from the first events and holds for all that follow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from mlaas4hep.data.blocks import Block, Column, FlatValues, JaggedValues
from mlaas4hep.data.rules import Processed
from mlaas4hep.data.schema import INPUT_KINDS, Branch, Kind
from mlaas4hep.errors import MlaasError, UsageError
from mlaas4hep.names import did_you_mean, listing
from mlaas4hep.user_code import explained, find_function, run_file

FUNCTION = "preprocessing"
_REMEDY = "Correct the preprocessing."
_EXACT = 2**53  # integers up to here are exact in 64-bit floating point
_SHOWN = 40  # characters of a value in an error


def load_record_function(path: Path) -> RecordFunction:
    """Run the file. Raises MlaasError with file and line when it raises, UsageError without the function."""
    return RecordFunction(path, find_function(run_file(path, _REMEDY), FUNCTION))


@dataclass(frozen=True)
class RecordFunction:
    """The user's function.

    Attributes:
        path: its file.
        function: takes a record, returns one, or None or False.
        outputs: the branches that it makes, None until `sampled`.
    """

    path: Path
    function: Callable[[dict[str, Any]], Any]
    outputs: tuple[Branch, ...] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The function as the one cut."""
        return (f"{FUNCTION}() of {self.path.name}",)

    def sampled(self, block: Block, origin: str = "") -> RecordFunction:
        """The same, knowing what the function makes of these entries.

        Raises MlaasError when it fails, keeps none of them, or makes what is no column.
        """
        records, kept = self._called(block)
        if not records:
            raise MlaasError(
                f"{self.path}: {FUNCTION} drops each of the first {kept.size} events{_of(origin)}.",
                "Which branches it makes can only be told from an event that it keeps.",
            )
        return replace(self, outputs=self._outputs(records, block, kept))

    def _outputs(
        self, records: Sequence[Mapping[str, Any]], block: Block, kept: NDArray[np.bool_]
    ) -> tuple[Branch, ...]:
        """The branches that the records of a block's kept entries are; none for no record."""
        if not records:
            return ()
        self._refuse_other_names(records, block.start + np.flatnonzero(kept), set(records[0]))
        return tuple(
            self._inferred(name, [record[name] for record in records], block.columns.get(name)) for name in records[0]
        )

    def output_branches(self, branches: Mapping[str, Branch]) -> dict[str, Branch]:
        """The branches afterwards, those of the files in their order and then the new ones."""
        if self.outputs is None:
            raise MlaasError(f"{self.path} was not tried on any event yet.", "Sample it first.")
        outputs = {branch.name: branch for branch in self.outputs}
        order = [*(name for name in branches if name in outputs), *(name for name in outputs if name not in branches)]
        return {name: outputs[name] for name in order}

    def required(self, names: Iterable[str], branches: Mapping[str, Branch]) -> tuple[str, ...]:
        """Every branch that can be read: what the function looks at is its own affair."""
        known = {*branches, *(branch.name for branch in self.outputs or ())}
        for name in names:
            if name not in known:
                raise UsageError(f"There is no branch {name}.", did_you_mean(name, sorted(known), "branches"))
        return tuple(name for name, branch in branches.items() if branch.kind in INPUT_KINDS)

    def apply(self, block: Block, origin: str = "") -> Processed:
        """Call the function for each entry of a block; the kept events become columns of the types found before.

        Without `sampled`, as for events to predict, the block's own types hold, and no kept event means no column.

        Raises MlaasError when the function fails, and for a record that has other names or types than the first ones.
        """
        records, kept = self._called(block)
        entries = block.start + np.flatnonzero(kept)
        outputs = self._outputs(records, block, kept) if self.outputs is None else self.outputs
        self._refuse_other_names(records, entries, {branch.name for branch in outputs})
        columns = {
            branch.name: self._column(branch, [record[branch.name] for record in records], entries)
            for branch in outputs
        }
        return Processed(columns, kept, np.array([len(records)], dtype=np.int64))

    def _called(self, block: Block) -> tuple[list[Mapping[str, Any]], NDArray[np.bool_]]:
        """What the function returned for the events that it keeps, and which ones these are."""
        kept = np.zeros(block.stop - block.start, dtype=np.bool_)
        returned: list[Mapping[str, Any]] = []
        with explained(self.path, _REMEDY):
            for number, record in enumerate(_records(block)):
                changed = self.function(record)
                if changed is None or changed is False:
                    continue
                if not isinstance(changed, Mapping):
                    raise MlaasError(
                        f"{self.path}: {FUNCTION} returns {type(changed).__name__} for entry {block.start + number}.",
                        "Return the record, or None to drop the event.",
                    )
                kept[number] = True
                returned.append(changed)
        return returned, kept

    def _refuse_other_names(
        self, records: Sequence[Mapping[str, Any]], entries: NDArray[np.int64], expected: set[str]
    ) -> None:
        for record, entry in zip(records, entries, strict=True):
            if record.keys() != expected:
                lacking, more = sorted(expected - record.keys()), sorted(map(str, record.keys() - expected))
                difference = f"lacks {listing(lacking)}" if lacking else f"has also {listing(more)}"
                raise MlaasError(
                    f"{self.path}: the record of entry {entry} {difference}, unlike the first one.",
                    "Return the same names for every event.",
                )

    def _inferred(self, name: str, values: Sequence[Any], before: Column | None) -> Branch:
        """The branch that some values of one name are.

        A fixed array and a struct stay what they are. Numbers are float64, but for bools and for an integer branch of
        the file that is still one.
        """
        if not isinstance(name, str):
            raise MlaasError(f"{self.path}: {name!r} is no name for a branch.", "Use strings.")
        if isinstance(before, FlatValues) and before.values.dtype.names:
            types = [(member, before.values.dtype[member]) for member in before.values.dtype.names]
            members = tuple((member, "float64" if dtype.kind == "f" else dtype.name) for member, dtype in types)
            return Branch(name, Kind.STRUCT, members=members)
        if isinstance(before, FlatValues) and before.values.ndim > 1:
            return Branch(name, Kind.FIXED, dtype="float64", shape=before.values.shape[1:])
        jagged = _is_list(values[0])
        letters = _letters(_flattened([value for value in values if _is_list(value)]) if jagged else values)
        dtype = "float64"
        if letters == {"b"}:
            dtype = "bool"
        elif letters == {"i"} and before is not None and before.values.dtype.kind in "iu":
            dtype = "uint64" if before.values.dtype.kind == "u" else "int64"
        return Branch(name, Kind.JAGGED if jagged else Kind.FLAT, dtype=dtype)

    def _column(self, branch: Branch, values: Sequence[Any], entries: NDArray[np.int64]) -> Column:
        """The values of one name as a column of the branch that it was among the first events."""
        if branch.kind is Kind.STRUCT:
            return self._struct(branch, values, entries)
        if branch.kind is Kind.FIXED:
            return self._arrays(branch, values)
        if branch.kind is Kind.FLAT:
            return FlatValues(self._numbers(branch.name, values, entries, branch.dtype))
        for value, entry in zip(values, entries, strict=True):
            if not _is_list(value):
                self._refuse(branch.name, f"is {_shown(value)} in entry {entry}, and was a list before")
        offsets = np.zeros(len(values) + 1, dtype=np.int64)
        np.cumsum([len(value) for value in values], out=offsets[1:])
        numbers = self._numbers(branch.name, _flattened(values), np.repeat(entries, np.diff(offsets)), branch.dtype)
        return JaggedValues(offsets, numbers)

    def _struct(self, branch: Branch, values: Sequence[Any], entries: NDArray[np.int64]) -> FlatValues:
        names = {member for member, _ in branch.members}
        for value, entry in zip(values, entries, strict=True):
            if not isinstance(value, Mapping) or value.keys() != names:
                self._refuse(branch.name, f"has other members than {listing(sorted(names))} in entry {entry}")
        result = np.empty(len(values), dtype=np.dtype(list(branch.members)))
        for member, dtype in branch.members:
            column = [value[member] for value in values]
            result[member] = self._numbers(f"{branch.name}.{member}", column, entries, dtype)
        return FlatValues(result)

    def _arrays(self, branch: Branch, values: Sequence[Any]) -> FlatValues:
        shape = (len(values), *branch.shape)
        try:
            array = np.array(values) if values else np.empty(shape)
        except ValueError:
            array = np.empty(0, dtype=object)
        if array.shape != shape or array.dtype.kind not in "biuf":
            self._refuse(branch.name, f"is no longer an array of numbers with the shape {list(branch.shape)}")
        return FlatValues(array.astype(np.float64))

    def _numbers(self, name: str, values: Sequence[Any], entries: NDArray[np.int64], dtype: str) -> NDArray[Any]:
        """Numbers as an array of this type, exactly; None is NaN."""
        letters = set({"b": "b", "i": "bi", "u": "bi", "f": "bif"}[np.dtype(dtype).kind])
        if not _letters(values) <= letters:
            wrong = next(place for place, value in enumerate(values) if _letter(type(value)) not in letters)
            self._refuse(name, f"is {_shown(values[wrong])} in entry {entries[wrong]}, and was {dtype} before")
        try:
            array = np.array(values, dtype=dtype)
        except OverflowError:
            self._refuse(name, f"has an integer that {dtype} does not hold")
        if np.dtype(dtype).kind == "f":
            inexact = (place for place, value in enumerate(values) if isinstance(value, int) and abs(value) > _EXACT)
            if (place := next(inexact, None)) is not None:
                self._refuse(name, f"is {values[place]} in entry {entries[place]}, which {dtype} would round")
        return array

    def _refuse(self, name: str, what: str) -> NoReturn:
        raise MlaasError(
            f"{self.path}: {name} {what}.", "Return a number or a list of numbers, of one type for all events."
        )


def _records(block: Block) -> Iterator[dict[str, Any]]:
    """The entries as dicts of Python's own values."""
    columns = {name: _python(column) for name, column in block.columns.items()}
    for number in range(block.stop - block.start):
        yield {name: values[number] for name, values in columns.items()}


def _python(column: Column) -> list[Any]:
    values: list[Any] = column.values.tolist()
    if isinstance(column, JaggedValues):
        ends = column.offsets.tolist()
        return [values[start:stop] for start, stop in pairwise(ends)]
    if names := column.values.dtype.names:
        return [dict(zip(names, row, strict=True)) for row in values]
    return values


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim == 1)


def _flattened(lists: Iterable[Sequence[Any]]) -> list[Any]:
    return [value for values in lists for value in values]


def _letter(type_: type) -> str:
    """NumPy's letter for a kind of number: b, i or f; "" for what is none. None stands for NaN."""
    if issubclass(type_, bool | np.bool_):
        return "b"
    if issubclass(type_, int | np.integer):
        return "i"
    return "f" if issubclass(type_, float | np.floating | NoneType) else ""


def _letters(values: Iterable[Any]) -> set[str]:
    return {_letter(type_) for type_ in set(map(type, values))}


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _of(origin: str) -> str:
    return f" of {origin}" if origin else ""
