"""Which columns: the kinds of branches, the choice of inputs among them, and the layout of the input vector.

The layout is that of MLaaS4HEP: flat columns sorted by name, then jagged branches sorted by name, each padded to its
largest multiplicity. One policy a kind:

==============  ======================================================================================
flat, bool      one column (false 0, true 1)
fixed array     one column an element, `name[0]`, `name[1]`, ... (row-major for several dimensions)
struct          one column a numeric member, `branch.member`
jagged          as many columns as its largest multiplicity
nested          doubly jagged: skipped and reported
string, object  skipped and reported
unreadable      skipped and reported
==============  ======================================================================================

A branch that is named exactly in `selected_branches` and cannot be an input is refused instead of skipped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from mlaas4hep.errors import MlaasError, UsageError
from mlaas4hep.names import did_you_mean, is_pattern, listing, matching

SCHEMA_FORMAT = 2
Scaling = Literal["minmax", "standard", "robust"]


class Kind(StrEnum):
    """What a branch holds for each event."""

    FLAT = "flat"
    BOOL = "bool"
    FIXED = "fixed array"
    STRUCT = "struct"
    JAGGED = "jagged"
    NESTED = "nested"
    STRING = "string"
    OBJECT = "object"
    UNREADABLE = "unreadable"


INPUT_KINDS = frozenset({Kind.FLAT, Kind.BOOL, Kind.FIXED, Kind.STRUCT, Kind.JAGGED})


@dataclass(frozen=True)
class Branch:
    """A branch as it is in a file.

    Attributes:
        name: its name in the tree.
        kind: what it holds for each event.
        type: the type's name in the file (`float`, `std::vector<float>`, `Int_t[10]`).
        dtype: NumPy name of one value's type, "" where there is none.
        shape: shape of one event's values of a fixed array.
        members: name and NumPy type of the numeric members of a struct.
        compressed: bytes in the file.
        uncompressed: bytes in memory.
    """

    name: str
    kind: Kind
    type: str = ""
    dtype: str = ""
    shape: tuple[int, ...] = ()
    members: tuple[tuple[str, str], ...] = ()
    compressed: int = 0
    uncompressed: int = 0


@dataclass(frozen=True)
class FlatColumn:
    """One input column: a flat branch, one member of a struct, or one element (row-major `index`) of a fixed array."""

    name: str
    branch: str
    member: str = ""
    index: int = -1


@dataclass(frozen=True)
class JaggedColumn:
    """A jagged branch and the number of input columns that it gets: its largest multiplicity."""

    name: str
    multiplicity: int


@dataclass(frozen=True)
class Selection:
    """The inputs chosen among the branches, before anything is known about their values.

    Attributes:
        flat: the flat columns, in the order of the input vector.
        jagged: the jagged branches, in the order of the input vector.
        label: the branch that holds the label, "" when labels come by file.
        weight: the branch that holds each event's weight, "" without weights.
        missing: values that stand for no value.
        ignored: branches that are no input though the files have them (identifiers, excluded, skipped).
        notes: what was left out and why, one sentence each.
    """

    flat: tuple[FlatColumn, ...]
    jagged: tuple[str, ...]
    label: str
    ignored: tuple[str, ...]
    notes: tuple[str, ...]
    weight: str = ""
    missing: tuple[float, ...] = ()

    @property
    def inputs(self) -> tuple[str, ...]:
        """Every branch that the input vector is made of, each once."""
        return tuple(dict.fromkeys([column.branch for column in self.flat] + list(self.jagged)))

    @property
    def branches(self) -> tuple[str, ...]:
        """Every branch that is used, each once: the inputs, the label and the weight."""
        return tuple(dict.fromkeys([*self.inputs, *(name for name in (self.label, self.weight) if name)]))


def common_branches(
    files: Mapping[str, Sequence[Branch]], differing: Literal["common", "error"] = "common"
) -> tuple[dict[str, Branch], list[str]]:
    """The branches that every file has with the same kind, and a note on those that only some have.

    Args:
        files: the branches of each file.
        differing: `common` goes on with the branches in common, `error` refuses files whose branches differ.

    Raises MlaasError when a branch is of different kinds in two files.
    """
    tables = {file: {branch.name: branch for branch in branches} for file, branches in files.items()}
    first_file, common = next(iter(tables.items()))
    common = dict(common)
    everywhere = set.union(*(set(table) for table in tables.values()))
    for file, table in tables.items():
        for name in [name for name in common if name not in table]:
            del common[name]
        for name, branch in common.items():
            other = table[name]
            if _form(other) != _form(branch):
                raise MlaasError(
                    f"The branch {name} is {_form(branch)} in {first_file} but {_form(other)} in {file}.",
                    "Add it to exclude_branches, or train on files of one kind.",
                )
    lost = sorted(everywhere - set(common))
    if lost and differing == "error":
        wanting = {name: next(file for file, table in tables.items() if name not in table) for name in lost}
        raise MlaasError(
            f"The files differ in their branches: {listing([f'{name} is not in {wanting[name]}' for name in lost])}.",
            'Name the branches in selected_branches, or set "differing_branches": "common".',
        )
    notes = [f"Branches that only some of the files have are left out: {listing(lost)}."] if lost else []
    return common, notes


def _form(branch: Branch) -> str:
    """What has to be the same in all files; a bool may be a number elsewhere."""
    if branch.kind in (Kind.FLAT, Kind.BOOL):
        return Kind.FLAT.value
    if branch.kind is Kind.FIXED:
        return f"{branch.kind.value} {list(branch.shape)}"
    if branch.kind is Kind.STRUCT:
        return f"{branch.kind.value} of {', '.join(name for name, _ in branch.members)}"
    return branch.kind.value


def select(
    branches: Mapping[str, Branch],
    *,
    selected: Sequence[str] = (),
    excluded: Sequence[str] = (),
    identifiers: Sequence[str] = (),
    label: str = "",
    weight: str = "",
    missing: Sequence[float] = (),
    notes: Sequence[str] = (),
) -> Selection:
    """Choose the inputs.

    Args:
        branches: what the files have in common.
        selected: names and patterns of the inputs; none means every branch that can be one.
        excluded: names and patterns of branches that are no input.
        identifiers: names and patterns of branches that tell events apart and are no input.
        label: the branch that holds the label.
        weight: the branch that holds each event's weight.
        missing: values that stand for no value.
        notes: what was already found worth telling.

    Raises UsageError for names that no file has (with near misses), for an exactly named branch that cannot be an
    input, and when no input is left.
    """
    told = list(notes)
    dropped = _matched(excluded, branches, "exclude_branches", told) | _matched(
        identifiers, branches, "identifier", told
    )
    dropped |= {name for name in (label, weight) if name}
    chosen = _matched(selected, branches, "selected_branches", told) if selected else set(branches)
    chosen -= dropped
    for name in sorted(chosen & {name for name in selected if not is_pattern(name) or name in branches}):
        if branches[name].kind not in INPUT_KINDS:
            raise UsageError(
                f"The branch {name} is {_describe(branches[name])}, which cannot be an input.",
                "Take it out of selected_branches.",
            )
    told += _skipped([branches[name] for name in sorted(chosen)])
    usable = [branches[name] for name in chosen if branches[name].kind in INPUT_KINDS]
    keyed = [(key, column) for branch in usable for key, column in _flat_columns(branch)]
    columns = tuple(column for _, column in sorted(keyed, key=lambda pair: pair[0]))
    jagged = tuple(sorted(branch.name for branch in usable if branch.kind is Kind.JAGGED))
    if not columns and not jagged:
        raise UsageError(
            f"No branch is left as an input: of {len(branches)} branches none can be one.",
            "Check selected_branches, exclude_branches and the tree (mlaas4hep inspect FILE).",
        )
    _refuse_equal_names([column.name for column in columns] + list(jagged))
    used = {column.branch for column in columns} | set(jagged)
    ignored = tuple(sorted(set(branches) - used))
    return Selection(columns, jagged, label, ignored, tuple(told), weight, tuple(missing))


def _matched(patterns: Sequence[str], branches: Mapping[str, Branch], parameter: str, notes: list[str]) -> set[str]:
    found: set[str] = set()
    for pattern in patterns:
        names = matching(pattern, branches)
        if not names and not is_pattern(pattern):
            raise UsageError(
                f"{parameter} names the branch {pattern}, which the files do not have in common.",
                did_you_mean(pattern, list(branches), "branches"),
            )
        if not names:
            notes.append(f"{parameter}: no branch matches {pattern}.")
        found.update(names)
    return found


def _skipped(branches: Sequence[Branch]) -> list[str]:
    """One sentence a kind on the branches that cannot be inputs."""
    by_kind: dict[str, list[str]] = {}
    for branch in branches:
        if branch.kind not in INPUT_KINDS:
            by_kind.setdefault(_describe(branch), []).append(branch.name)
    return [f"Skipped, {what}: {listing(names)}." for what, names in sorted(by_kind.items())]


def _describe(branch: Branch) -> str:
    return {
        Kind.NESTED: "doubly jagged",
        Kind.STRING: "a string",
        Kind.OBJECT: "an object",
        Kind.UNREADABLE: "of a type that cannot be read",
    }.get(branch.kind, branch.kind.value)


def _flat_columns(branch: Branch) -> list[tuple[tuple[str, int], FlatColumn]]:
    """The flat columns of a branch, each with the key that orders it in the input vector."""
    if branch.kind in (Kind.FLAT, Kind.BOOL):
        return [((branch.name, -1), FlatColumn(branch.name, branch.name))]
    if branch.kind is Kind.STRUCT:
        names = [(f"{branch.name}.{member}", member) for member, _ in branch.members]
        return [((name, -1), FlatColumn(name, branch.name, member=member)) for name, member in names]
    if branch.kind is Kind.FIXED:
        return [
            (
                (branch.name, index),
                FlatColumn(f"{branch.name}{_element(index, branch.shape)}", branch.name, index=index),
            )
            for index in range(math.prod(branch.shape))
        ]
    return []


def _element(index: int, shape: tuple[int, ...]) -> str:
    """The row-major `index` written as `[i][j]`."""
    parts: list[int] = []
    for length in reversed(shape):
        index, part = divmod(index, length)
        parts.append(part)
    return "".join(f"[{part}]" for part in reversed(parts))


def _refuse_equal_names(names: Sequence[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise MlaasError(f"Two inputs would both be called {name}.", "Add one of the branches to exclude_branches.")
        seen.add(name)


@dataclass(frozen=True)
class InputBranch:
    """A branch that has to be read for the inputs, with the kind that it had in the training files."""

    name: str
    kind: Kind


class Schema(BaseModel):
    """The layout of the input vector with its scaling: what was trained, and therefore what is predicted with.

    A column's value is `(raw - shift) / width`, and 0 where the width is 0. `minmax` brings all events to [0, 1],
    `standard` to mean 0 and standard deviation 1, `robust` to median 0 and interquartile range 1. Padding, NaN,
    infinities and the values of `missing` become `fill` and are marked with 1 in the mask.

    Attributes:
        flat: the flat columns, in order.
        jagged: the jagged branches, in order.
        scaling: how shift and width follow from the statistics.
        shift: subtracted from each feature (flat columns, then jagged branches).
        width: what each feature is divided by.
        fill: what the model sees where there is no value.
        missing: values that stand for no value.
        ignored: branches of the training files that are no input.
        inputs: the branches to read; before preprocessing, if there is one.
        preprocessing: what is done to the branches first, as the JSON of `preproc.json`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = SCHEMA_FORMAT
    flat: tuple[FlatColumn, ...]
    jagged: tuple[JaggedColumn, ...]
    scaling: Scaling = "minmax"
    shift: tuple[float, ...]
    width: tuple[float, ...]
    fill: float = 0.0
    missing: tuple[float, ...] = ()
    ignored: tuple[str, ...] = ()
    inputs: tuple[InputBranch, ...] = ()
    preprocessing: dict[str, Any] | None = None

    def _repr_html_(self) -> str:
        from mlaas4hep.display import schema_html

        return schema_html(self)

    @property
    def idim(self) -> int:
        """Width of the input vector."""
        return len(self.flat) + sum(column.multiplicity for column in self.jagged)

    @property
    def features(self) -> tuple[str, ...]:
        """The flat columns' and the jagged branches' names, in order."""
        return tuple(column.name for column in self.flat) + tuple(column.name for column in self.jagged)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """A name for each of the `idim` columns: `MET_pt`, `Muon_pt[0]`, `Muon_pt[1]`, ..."""
        padded = [f"{column.name}[{index}]" for column in self.jagged for index in range(column.multiplicity)]
        return tuple(column.name for column in self.flat) + tuple(padded)

    @cached_property
    def slices(self) -> dict[str, slice]:
        """Where each feature lies in the input vector."""
        place = 0
        slices: dict[str, slice] = {}
        for name, width in zip(self.features, self.widths, strict=True):
            slices[name] = slice(place, place + width)
            place += width
        return slices

    @property
    def widths(self) -> tuple[int, ...]:
        """Number of columns of each feature."""
        return (1,) * len(self.flat) + tuple(column.multiplicity for column in self.jagged)

    @property
    def multiplicities(self) -> dict[str, int]:
        """Number of columns of each jagged branch."""
        return {column.name: column.multiplicity for column in self.jagged}

    @property
    def kinds(self) -> dict[str, str]:
        """`flat` or `jagged` for each feature."""
        return {column.name: "flat" for column in self.flat} | {column.name: "jagged" for column in self.jagged}
