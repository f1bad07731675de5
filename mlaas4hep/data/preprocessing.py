"""Preprocessing: the rules of a preproc.json, or a Python file with `def preprocessing(record)`.

The JSON format is that of MLaaS4HEP: new branches (`new_branch`), cuts on flat and on jagged branches (`flat_cut`,
`jagged_cut`), and removals. New branches are made first, then events are cut, then branches are removed. docs/
preprocessing.md has every rule with an example.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlaas4hep.data.blocks import Block
from mlaas4hep.data.expressions import Expression, Operation, parse
from mlaas4hep.data.record_function import RecordFunction, load_record_function
from mlaas4hep.data.rules import Cut, Definition, Mention, Processed, Rules, ordered
from mlaas4hep.data.schema import Branch, Kind
from mlaas4hep.errors import UsageError
from mlaas4hep.names import did_you_mean

_SECTIONS = ("new_branch", "flat_cut", "jagged_cut")
_CUT = re.compile(r"cut(_\d+)?")
_NEW_BRANCH_KEYS = ("def", "type", "cut", "remove", "keys_to_remove")
_CUT_KEYS = ("cut", "remove")
_KINDS = {"flat": Kind.FLAT, "jagged": Kind.JAGGED}
_MODES = ("all", "any")


@dataclass(frozen=True)
class Preprocessing:
    """What is done to events before they are used; made by `load` or `from_json`.

    Attributes:
        digest: SHA-256 of the rules in their order, or of the Python file; a change of it is a change of the events.
        steps: the rules, or the user's function.
        text: the rules as JSON, "" for a Python file.
    """

    digest: str
    steps: Rules | RecordFunction
    text: str = ""

    @classmethod
    def load(cls, path: Path) -> Preprocessing:
        """Read a preproc.json, or run a Python file (name ends in .py) with `def preprocessing(record)`.

        Raises UsageError for a file that cannot be read or says what has no meaning, MlaasError with file and line for
        a Python file that raises.
        """
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror or error}.") from error
        if path.suffix == ".py":
            return cls(hashlib.sha256(content).hexdigest(), load_record_function(path))
        try:
            data = json.loads(content.decode("utf-8-sig"), object_pairs_hook=lambda pairs: _unique(pairs, str(path)))
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{path} is no JSON: {error}.", "Correct it there.") from error
        return cls.from_json(data, str(path))

    @classmethod
    def from_json(cls, data: Mapping[str, Any], origin: str) -> Preprocessing:
        """From the object of a preproc.json.

        Args:
            data: the object.
            origin: where it comes from, for errors.

        Raises UsageError for unknown keys (with near misses), expressions that are none, and circular definitions.
        """
        text = json.dumps(data)
        return cls(hashlib.sha256(text.encode()).hexdigest(), _rules(data, origin), text)

    def as_json(self) -> dict[str, Any] | None:
        """The object that `from_json` takes; None for a Python file, which has to be kept itself."""
        rules: dict[str, Any] | None = json.loads(self.text) if self.text else None
        return rules

    @property
    def cuts(self) -> tuple[str, ...]:
        """Readable names of the cuts, in the order in which events pass them."""
        return self.steps.names

    @property
    def needs_sample(self) -> bool:
        """Whether `sampled` has to come before the branches afterwards are known: for a Python file."""
        return isinstance(self.steps, RecordFunction) and self.steps.outputs is None

    def sampled(self, block: Block, origin: str = "") -> Preprocessing:
        """The same, knowing the branches afterwards from the first entries; itself where that needs no sample.

        Args:
            block: entries with every branch of `required([], branches)`.
            origin: the file that they come from, for errors.

        Raises MlaasError when the user's function fails, keeps none of these entries, or returns what is no column.
        """
        if isinstance(self.steps, Rules):
            return self
        return replace(self, steps=self.steps.sampled(block, origin))

    def output_branches(self, branches: Mapping[str, Branch]) -> dict[str, Branch]:
        """The branches afterwards: new ones (flat or jagged) are there, removed ones are not.

        Raises UsageError for unknown names (with near misses), branches of a kind that does not fit, a `type` that is
        not the expression's, and new branches whose name is taken.
        """
        return self.steps.output_branches(branches)

    def required(self, names: Iterable[str], branches: Mapping[str, Branch]) -> tuple[str, ...]:
        """The branches of the files that have to be read for some branches afterwards, and for the cuts.

        Args:
            names: branches afterwards, or of the files.
            branches: what the files have.

        Raises UsageError for unknown names.
        """
        return self.steps.required(names, branches)

    def apply(self, block: Block, origin: str = "") -> Processed:
        """Process a block of any number of entries that has the `required` branches.

        A Python file has the types of its sample, or without one those of the block (no column if it keeps no entry).

        Args:
            block: the entries.
            origin: the file that they come from, for errors.

        Raises MlaasError, with file and entry, for data that cannot be computed with, and for a user's function that
        fails.
        """
        return self.steps.apply(block, origin)


def _unique(pairs: list[tuple[str, Any]], origin: str) -> dict[str, Any]:
    """An object of JSON; JSON itself would let the last of two equal keys win."""
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        double = next(key for key in keys if keys.count(key) > 1)
        raise UsageError(f"{origin} has {double} twice in one object.", "Number several cuts: cut_1, cut_2, ...")
    return result


def _rules(data: Mapping[str, Any], origin: str) -> Rules:
    sections = _object(data, origin)
    _refuse_unknown_keys(sections, _SECTIONS, origin)
    definitions: list[Definition] = []
    cuts: list[Cut] = []
    subjects: list[Mention] = []
    removed: list[Mention] = []
    for name, rule, where in _entries(sections, "new_branch", _NEW_BRANCH_KEYS, origin):
        definitions.append(_definition(name, rule, where))
        cuts += _cuts(rule, where)
        removed += [Mention(key, f"{where}, keys_to_remove,") for key in _names(rule.get("keys_to_remove"), where)]
        removed += [Mention(name, where)] if _removes(rule, where) else []
    for section, kind in (("flat_cut", Kind.FLAT), ("jagged_cut", Kind.JAGGED)):
        for name, rule, where in _entries(sections, section, _CUT_KEYS, origin):
            found = _cuts(rule, where, kind)
            if not found and not _removes(rule, where):
                raise UsageError(f"{where} has no cut.", f'Write "cut": "{name} > 0" or what you mean.')
            cuts += found
            subjects.append(Mention(name, where, kind))
            removed += [Mention(name, where)] if _removes(rule, where) else []
    return Rules(ordered(definitions, origin), tuple(cuts), tuple(subjects), tuple(removed))


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise UsageError(f"{where} is no JSON object.", "Write {...}.")
    return value


def _refuse_unknown_keys(keys: Iterable[str], known: tuple[str, ...], where: str) -> None:
    for key in keys:
        if key not in known and not ("cut" in known and _CUT.fullmatch(key)):
            raise UsageError(f"{where} has the unknown key {key}.", did_you_mean(key, known, "keys"))


def _entries(
    sections: Mapping[str, Any], section: str, known: tuple[str, ...], origin: str
) -> Iterator[tuple[str, Mapping[str, Any], str]]:
    """Name, contents and description of each rule of a section."""
    for name, rule in _object(sections.get(section, {}), f"{origin}: {section}").items():
        where = f"{origin}: {section} {name}"
        _refuse_unknown_keys(_object(rule, where), known, where)
        yield name, rule, where


def _definition(name: str, rule: Mapping[str, Any], where: str) -> Definition:
    if not name.strip() or "`" in name:
        raise UsageError(f"{where} is no name for a branch.", "Take one without backquotes.")
    kind = rule.get("type")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise UsageError(f"{where} has the type {kind}.", 'Write "type": "flat" or "type": "jagged".')
    return Definition(name, parse(rule.get("def"), f"{where}, def"), _KINDS[kind])


def _cuts(rule: Mapping[str, Any], where: str, kind: Kind | None = None) -> list[Cut]:
    return [_cut(value, f"{where}, {key}", kind) for key, value in rule.items() if _CUT.fullmatch(key)]


def _cut(value: Any, where: str, kind: Kind | None) -> Cut:
    """A cut as text, one condition an event; or as [text, "all" or "any"], a condition on each value of a list."""
    if isinstance(value, str) and kind is not Kind.JAGGED:
        return Cut(value.strip(), parse(value, where))
    pair = isinstance(value, list | tuple) and len(value) == 2 and value[1] in _MODES
    if not pair or kind is Kind.FLAT:
        forms = {Kind.FLAT: '"x > 0"', Kind.JAGGED: '["x > 0", "all"] or ["x > 0", "any"]'}
        form = forms[kind] if kind else " or ".join(forms.values())
        raise UsageError(f"{where} has the wrong form.", f"Write {form}.")
    inner = parse(value[0], where)
    whole = Expression(inner.text, where, Operation(value[1], (inner.root,)), inner.references)
    return Cut(f"{value[1]} {inner.text}", whole)


def _names(value: Any, where: str) -> list[str]:
    """A list of names, or names in one string with commas between them."""
    if value is None:
        return []
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise UsageError(f"{where}, keys_to_remove, is no list of names.", 'Write ["name", ...].')
    return [name.strip() for name in names if name.strip()]


def _removes(rule: Mapping[str, Any], where: str) -> bool:
    value = rule.get("remove", False)
    if isinstance(value, bool):
        return value
    if not isinstance(value, str) or value.lower() not in ("true", "false"):
        raise UsageError(f"{where} has remove {value}.", 'Write "True" or "False".')
    return value.lower() == "true"
