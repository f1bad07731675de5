"""New branches, cuts and removals of branches, applied to blocks of entries in this order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

import numpy as np
from numpy.typing import NDArray

from mlaas4hep.data.blocks import Block, Column, FlatValues, JaggedValues
from mlaas4hep.data.evaluation import available, evaluate
from mlaas4hep.data.expressions import Expression, find_branch
from mlaas4hep.data.schema import INPUT_KINDS, Branch, Kind
from mlaas4hep.errors import UsageError
from mlaas4hep.names import did_you_mean


@dataclass(frozen=True)
class Processed:
    """A block after its preprocessing.

    Attributes:
        columns: every branch, of the kept entries only.
        kept: shape (n,), whether an entry of the block was kept.
        passed: shape (cuts,), int64, the entries that passed this cut and all before it.
    """

    columns: dict[str, Column]
    kept: NDArray[np.bool_]
    passed: NDArray[np.int64]


@dataclass(frozen=True)
class Definition:
    """A new branch: its name, what it is computed from, and its kind (flat or jagged)."""

    name: str
    expression: Expression
    kind: Kind


@dataclass(frozen=True)
class Cut:
    """A condition that an event has to pass.

    Attributes:
        name: as it is shown in the cut flow.
        expression: one bool an event.
    """

    name: str
    expression: Expression


@dataclass(frozen=True)
class Mention:
    """A branch that has to exist for a rule.

    Attributes:
        name: the branch.
        where: the rule, for errors.
        kind: flat or jagged, if only one of them makes sense.
    """

    name: str
    where: str
    kind: Kind | None = None


@dataclass(frozen=True)
class Rules:
    """What a preproc.json says.

    Attributes:
        definitions: the new branches, each after those that it is computed from.
        cuts: in order.
        subjects: the branches that flat and jagged cuts are listed under.
        removed: branches that are dropped at the end.
    """

    definitions: tuple[Definition, ...]
    cuts: tuple[Cut, ...]
    subjects: tuple[Mention, ...]
    removed: tuple[Mention, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The cuts' names, in order."""
        return tuple(cut.name for cut in self.cuts)

    def output_branches(self, branches: Mapping[str, Branch]) -> dict[str, Branch]:
        """The branches afterwards; found by applying the rules to no entry at all.

        Raises UsageError for unknown names, for kinds and types that do not fit, and for names that are taken.
        """
        table = dict(branches)
        columns = {name: _no_entries(branch) for name, branch in branches.items() if branch.kind in INPUT_KINDS}
        for definition in self.definitions:
            _refuse_taken(definition, table)
            column = _computed(definition.expression, table, columns)
            _refuse_other_kind(definition, column)
            columns[definition.name] = column
            text, dtype = definition.expression.text, column.values.dtype.name
            table[definition.name] = Branch(definition.name, definition.kind, text, dtype)
        for cut in self.cuts:
            _refuse_no_condition(cut, _computed(cut.expression, table, columns))
        for mention in self.subjects + self.removed:
            _refuse_mention(mention, table)
        dropped = {mention.name for mention in self.removed}
        return {name: branch for name, branch in table.items() if name not in dropped}

    def required(self, names: Iterable[str], branches: Mapping[str, Branch]) -> tuple[str, ...]:
        """The branches to read, in the order of the file, for these branches afterwards and for the cuts.

        Raises UsageError for unknown names.
        """
        definitions = {definition.name: definition for definition in self.definitions}
        known = {**branches, **definitions}
        missing = list(names)
        for cut in self.cuts:
            missing += cut.expression.inputs(known)
        found: set[str] = set()
        while missing:
            name = missing.pop()
            if name not in known:
                raise UsageError(f"There is no branch {name}.", did_you_mean(name, list(known), "branches"))
            if name in definitions and name not in found:
                missing += definitions[name].expression.inputs(known)
            found.add(name)
        return tuple(name for name in branches if name in found)

    def apply(self, block: Block, origin: str = "") -> Processed:
        """Compute the new branches, drop the events that fail a cut, and drop the removed branches.

        A new branch whose inputs the block does not have is left out: it was not asked for (see `required`).

        Args:
            block: n entries.
            origin: the file that they come from, for errors.

        Raises MlaasError, with file and entry, for data that cannot be computed with.
        """
        columns = dict(block.columns)
        for definition in self.definitions:
            if available(definition.expression, columns):
                columns[definition.name] = evaluate(definition.expression, columns, block.start, origin)
        kept = np.ones(block.stop - block.start, dtype=np.bool_)
        passed = np.empty(len(self.cuts), dtype=np.int64)
        for number, cut in enumerate(self.cuts):
            kept &= evaluate(cut.expression, columns, block.start, origin).values
            passed[number] = np.count_nonzero(kept)
        for mention in self.removed:
            columns.pop(mention.name, None)
        return Processed(selected(columns, kept), kept, passed)


def selected(columns: Mapping[str, Column], kept: NDArray[np.bool_]) -> dict[str, Column]:
    """The kept entries of every column."""
    if kept.all():
        return dict(columns)
    return {name: _selected(column, kept) for name, column in columns.items()}


def _selected(column: Column, kept: NDArray[np.bool_]) -> Column:
    if isinstance(column, FlatValues):
        return FlatValues(column.values[kept])
    counts = np.diff(column.offsets)
    offsets = np.zeros(np.count_nonzero(kept) + 1, dtype=np.int64)
    np.cumsum(counts[kept], out=offsets[1:])
    return JaggedValues(offsets, column.values[np.repeat(kept, counts)])


def _no_entries(branch: Branch) -> Column:
    """A column of this branch without entries."""
    dtype = np.dtype(branch.dtype or ("bool" if branch.kind is Kind.BOOL else "float64"))
    if branch.kind is Kind.JAGGED:
        return JaggedValues(np.zeros(1, dtype=np.int64), np.empty(0, dtype=dtype))
    if branch.kind is Kind.STRUCT:
        return FlatValues(np.empty(0, dtype=np.dtype(list(branch.members))))
    return FlatValues(np.empty((0, *branch.shape), dtype=dtype))


def _computed(expression: Expression, table: Mapping[str, Branch], columns: Mapping[str, Column]) -> Column:
    for name in expression.inputs(table):
        if name not in columns:
            raise UsageError(
                f"{expression} refers to {name}, which is no number but {table[name].kind.value}.",
                "Expressions are computed from flat, bool and jagged branches, structs' members and arrays' elements.",
            )
    return evaluate(expression, columns)


def _refuse_taken(definition: Definition, table: Mapping[str, Branch]) -> None:
    members = {f"{branch.name}.{member}" for branch in table.values() for member, _ in branch.members}
    if definition.name in table or definition.name in members:
        raise UsageError(
            f"{definition.expression.where}: there is already a branch {definition.name}.",
            "Give the new branch another name.",
        )


def _refuse_other_kind(definition: Definition, column: Column) -> None:
    kind = Kind.JAGGED if isinstance(column, JaggedValues) else Kind.FLAT
    if kind is not definition.kind:
        raise UsageError(
            f"{definition.expression} is {kind.value}, and its type says {definition.kind.value}.",
            f'Write "type": "{kind.value}".',
        )


def _refuse_no_condition(cut: Cut, column: Column) -> None:
    if isinstance(column, JaggedValues):
        raise UsageError(
            f"{cut.expression} is jagged: it holds for some values of an event and not for others.",
            f'Write ["{cut.expression.text}", "all"] or ["{cut.expression.text}", "any"].',
        )
    if column.values.dtype != np.bool_:
        raise UsageError(f"{cut.expression} is a number, not a condition.", "Compare it with something.")


def _refuse_mention(mention: Mention, table: Mapping[str, Branch]) -> None:
    if mention.name not in table:
        raise UsageError(
            f"{mention.where} names {mention.name}, which is no branch.",
            did_you_mean(mention.name, list(table), "branches"),
        )
    kind = Kind.JAGGED if table[mention.name].kind is Kind.JAGGED else Kind.FLAT
    if mention.kind is not None and kind is not mention.kind:
        raise UsageError(f"{mention.where}: {mention.name} is {kind.value}.", f"Its cut belongs into {kind.value}_cut.")


def ordered(definitions: Sequence[Definition], origin: str) -> tuple[Definition, ...]:
    """The new branches, each after those that it is computed from. Raises UsageError when some go round in a circle."""
    names = {definition.name: definition for definition in definitions}
    graph = {
        name: [used for reference in definition.expression.references if (used := _new_branch(reference, names))]
        for name, definition in names.items()
    }
    try:
        return tuple(names[name] for name in TopologicalSorter(graph).static_order())
    except CycleError as error:
        circle = " -> ".join(reversed(error.args[1]))
        raise UsageError(
            f"{origin}: new branches are computed from each other in a circle: {circle}.",
            "A new branch needs a name that no branch has, and may use branches and other new branches.",
        ) from error


def _new_branch(reference: str, names: Mapping[str, Definition]) -> str:
    """The new branch that a reference means, "" for none: a new branch has no members."""
    place = find_branch(reference, names)
    return place[0] if place and not place[1] else ""
