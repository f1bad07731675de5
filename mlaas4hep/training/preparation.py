"""From a workflow to its events: files, preprocessing and the choice of inputs, to the store and the input layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlaas4hep.data.formats import open_source
from mlaas4hep.data.ingest import ScannedFile, ingest, scan
from mlaas4hep.data.preprocessing import Preprocessing
from mlaas4hep.data.schema import Branch, InputBranch, Kind, Schema, Selection, select
from mlaas4hep.data.sources import Source
from mlaas4hep.data.statistics import FeatureStatistics
from mlaas4hep.data.store import PackedStore
from mlaas4hep.errors import UsageError
from mlaas4hep.names import did_you_mean, listing
from mlaas4hep.training.parameters import Parameters
from mlaas4hep.training.progress import Note, Reading, Stage, Tell
from mlaas4hep.training.workflow import Labels, Workflow

_SAMPLE_ENTRIES = 1000


@dataclass(frozen=True)
class Prepared:
    """The events of a workflow, and what there is to say about them.

    Attributes:
        store: the events.
        schema: the layout of the input vector.
        notes: what is worth telling, one sentence each.
    """

    store: PackedStore
    schema: Schema
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Choice:
    """What is trained on, before any value is read.

    Attributes:
        files: those that have entries.
        branches: what these have in common.
        preprocessing: what is done to the branches first.
        offered: the branches afterwards.
        selection: the inputs, label and weight among them.
    """

    files: list[ScannedFile]
    branches: Mapping[str, Branch]
    preprocessing: Preprocessing | None
    offered: Mapping[str, Branch]
    selection: Selection


def choose(
    sources: Sequence[Source], labels: Labels, parameters: Parameters, preprocessing: Preprocessing | None
) -> Choice:
    """Open the files and choose inputs, label and weight among their branches.

    Raises MlaasError or UsageError for files, branches and parameters that do not fit together.
    """
    files, branches, notes = scan(sources, parameters.differing_branches)
    preprocessing = _with_sample(preprocessing, files, branches)
    offered = preprocessing.output_branches(branches) if preprocessing else branches
    selection = _select(labels.branch, parameters, offered, files, notes)
    return Choice(files, branches, preprocessing, offered, selection)


def prepare(workflow: Workflow, tell: Tell, cache: Path | None = None) -> Prepared:
    """Read the files of a workflow into a store, and lay out the input vector.

    Raises MlaasError or UsageError for files, branches and parameters that do not fit together.
    """
    parameters = workflow.parameters
    tell(Stage(f"reading {len(workflow.sources)} files"))
    choice = choose(workflow.sources, workflow.labels, parameters, workflow.preprocessing)
    files, branches, preprocessing, selection = choice.files, choice.branches, choice.preprocessing, choice.selection
    for note in selection.notes:
        tell(Note(note))
    needed = _needed(selection.branches, preprocessing, branches)
    store = ingest(
        files,
        selection,
        split=parameters.split,
        nevts=parameters.nevts,
        preprocessing=preprocessing,
        needed=needed,
        cache=cache,
        watch=lambda done, total: tell(Reading(done, total)),
    )
    inputs = _needed(selection.inputs, preprocessing, branches)
    schema = store.schema(
        parameters.fill,
        selection.ignored,
        scaling=parameters.scaling,
        max_multiplicity=parameters.max_multiplicity,
        inputs=[InputBranch(name, branches[name].kind) for name in inputs],
        preprocessing=preprocessing.as_json() if preprocessing else None,
    )
    if workflow.specs:
        schema = workflow.specs.applied(schema)
    told = [note for feature in store.facts.statistics for note in _remarks(feature)] + _constant(store)
    for note in told:
        tell(Note(note))
    width = f"{len(schema.flat)} flat and {len(schema.jagged)} jagged inputs, width {schema.idim}"
    tell(Stage(f"{store.facts.events} events, {width}"))
    return Prepared(store, schema, (*selection.notes, *told))


def _with_sample(
    preprocessing: Preprocessing | None, files: Sequence[ScannedFile], branches: Mapping[str, Branch]
) -> Preprocessing | None:
    """A user's function shows what it makes of the first entries; JSON says it itself."""
    if preprocessing is None or not preprocessing.needs_sample:
        return preprocessing
    first = files[0]
    with open_source(first.source) as reader:
        names = preprocessing.required([], branches)
        block = next(reader.blocks(names, min(first.entries, _SAMPLE_ENTRIES)))
    return preprocessing.sampled(block, str(first.source))


def _select(
    label: str,
    parameters: Parameters,
    offered: Mapping[str, Branch],
    files: Sequence[ScannedFile],
    notes: Sequence[str],
) -> Selection:
    if label and label not in offered:
        raise UsageError(
            f"The labels {label!r} are neither a file nor a branch of {files[0].source}.",
            did_you_mean(label, list(offered), "branches"),
        )
    if parameters.weight and parameters.weight not in offered:
        raise UsageError(
            f"weight names {parameters.weight}, which is no branch of {files[0].source}.",
            did_you_mean(parameters.weight, list(offered), "branches"),
        )
    for use, name in (("label", label), ("weight", parameters.weight)):
        if name and offered[name].kind not in (Kind.FLAT, Kind.BOOL):
            raise UsageError(f"The {use} branch {name} of {files[0].source} is not one number an event.")
    return select(
        offered,
        selected=parameters.selected_branches,
        excluded=parameters.exclude_branches,
        identifiers=parameters.identifier,
        label=label,
        weight=parameters.weight,
        missing=parameters.missing,
        notes=notes,
    )


def _needed(
    names: Sequence[str], preprocessing: Preprocessing | None, branches: Mapping[str, Branch]
) -> tuple[str, ...]:
    return preprocessing.required(names, branches) if preprocessing else tuple(names)


def _remarks(feature: FeatureStatistics) -> list[str]:
    """What about a feature deserves attention."""
    notes = []
    if feature.nan or feature.infinite:
        notes.append(f"{feature.name}: {feature.nan} NaN and {feature.infinite} infinite values count as missing.")
    for value, share in feature.sentinels:
        notes.append(
            f"{feature.name}: {value:g} in {share:.1%} of the values seems to stand for no value; "
            f'"missing": [{value:g}] treats it so.'
        )
    return notes


def _constant(store: PackedStore) -> list[str]:
    constant = [feature.name for feature in store.facts.statistics if feature.minimum == feature.maximum]
    return [f"Constant over all events, so of no use: {listing(constant)}."] if constant else []
