"""The specs of MLaaS4HEP: dimensions, minima and maxima of the inputs, as JSON a file and for all files.

========  =====================================================================================
jdim      largest multiplicity of each jagged branch
minv      least value of each flat column and jagged branch
maxv      greatest value of each
fkeys     the flat columns, sorted
jkeys     the jagged branches, sorted
nans      what 0 becomes when it is scaled by minimum and maximum
events    entries of each file, and `total`
========  =====================================================================================
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from mlaas4hep.data.packing import inputs_of, pack
from mlaas4hep.data.schema import JaggedColumn, Schema, Selection, select
from mlaas4hep.data.sources import Source
from mlaas4hep.data.statistics import FeatureStatistics, RunningStatistics
from mlaas4hep.errors import MlaasError, UsageError
from mlaas4hep.names import did_you_mean, listing

if TYPE_CHECKING:
    from mlaas4hep.data.ingest import ScannedFile

GLOBAL_SPECS = "global-specs.json"
_KEYS = ("jdim", "minv", "maxv", "fkeys", "jkeys")
Watch = Callable[[int, int], None]


@dataclass(frozen=True)
class Specs:
    """What a specs file says.

    Attributes:
        multiplicities: of each jagged branch.
        minima, maxima: of each feature.
        flat, jagged: the features.
        events: entries of each file.
    """

    multiplicities: dict[str, int]
    minima: dict[str, float]
    maxima: dict[str, float]
    flat: tuple[str, ...]
    jagged: tuple[str, ...]
    events: dict[str, int]

    def applied(self, schema: Schema) -> Schema:
        """The schema with the dimensions of these specs, and scaled to [0, 1] between their minima and maxima.

        Raises UsageError for an input that the specs lack, with near misses.
        """
        for name in schema.features:
            if name not in self.minima or name not in self.maxima:
                raise UsageError(
                    f"The specs have no minimum and maximum of {name}.",
                    did_you_mean(name, sorted(self.minima), "inputs"),
                )
        for column in schema.jagged:
            if column.name not in self.multiplicities:
                raise UsageError(
                    f"The specs have no jdim of {column.name}.",
                    did_you_mean(column.name, sorted(self.multiplicities), "jagged branches"),
                )
        changed = {
            "jagged": tuple(JaggedColumn(column.name, self.multiplicities[column.name]) for column in schema.jagged),
            "scaling": "minmax",
            "shift": tuple(self.minima[name] for name in schema.features),
            "width": tuple(self.maxima[name] - self.minima[name] for name in schema.features),
        }
        return Schema.model_validate(schema.model_dump() | changed)


def to_specs(
    flat: Sequence[str], jagged: Sequence[str], statistics: Sequence[FeatureStatistics], events: Mapping[str, int]
) -> dict[str, Any]:
    """Statistics as the object of a specs file.

    Args:
        flat, jagged: the features.
        statistics: of each feature, by any order.
        events: entries of each file.
    """
    found = {feature.name: feature for feature in statistics}
    names = [*sorted(flat), *sorted(jagged)]
    return {
        "jdim": {name: found[name].multiplicity for name in sorted(jagged)},
        "minv": {name: found[name].minimum for name in names},
        "maxv": {name: found[name].maximum for name in names},
        "fkeys": sorted(flat),
        "jkeys": sorted(jagged),
        "nans": {name: _scaled_zero(found[name]) for name in names},
        "events": dict(events) | {"total": sum(events.values())},
    }


def from_specs(data: Any, origin: str) -> Specs:
    """The object of a specs file; `origin` names it in errors. Raises UsageError for whatever is no specs file."""
    if not isinstance(data, Mapping):
        raise UsageError(f"{origin} is no JSON object.", "Name a file that mlaas4hep specs wrote.")
    if lacking := [key for key in _KEYS if key not in data]:
        raise UsageError(f"{origin} lacks {listing(lacking)}.", "Name a file that mlaas4hep specs wrote.")
    try:
        specs = Specs(
            {str(name): int(value) for name, value in data["jdim"].items()},
            {str(name): float(value) for name, value in data["minv"].items()},
            {str(name): float(value) for name, value in data["maxv"].items()},
            tuple(map(str, data["fkeys"])),
            tuple(map(str, data["jkeys"])),
            {str(name): int(value) for name, value in data.get("events", {}).items() if name != "total"},
        )
    except (AttributeError, TypeError, ValueError) as error:
        raise UsageError(f"{origin} has values of the wrong form ({error}).", "Write it anew.") from error
    for name, low in specs.minima.items():
        high = specs.maxima.get(name, math.nan)
        if not (math.isfinite(low) and math.isfinite(high) and low <= high):
            raise UsageError(f"{origin}: {name} lies between {low} and {high}.", "Correct minv and maxv.")
    if wrong := [name for name, size in specs.multiplicities.items() if size < 0]:
        raise UsageError(f"{origin}: jdim of {wrong[0]} is negative.", "Correct it.")
    return specs


def read_specs(path: Path) -> Specs:
    """Read a specs file; see `from_specs`."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"The specs {path} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise UsageError(f"{path} is not valid JSON: {error}.") from error
    return from_specs(data, str(path))


def write_specs(
    sources: Sequence[Source],
    folder: Path,
    *,
    nevts: int = -1,
    selected: Sequence[str] = (),
    excluded: Sequence[str] = (),
    identifiers: Sequence[str] = (),
    watch: Watch | None = None,
) -> list[Path]:
    """Read files once and write `specs-FILE.json` for each and `global-specs.json` for all; returns what was written.

    Args:
        sources: the files.
        folder: where to write; made when it is not there.
        nevts: number of events to read from all files together, -1 for all.
        selected, excluded, identifiers: the choice of inputs, see `schema.select`.
        watch: told the number of events read so far, and of all.

    Raises MlaasError or UsageError for files that cannot be read and for inputs that there are not.
    """
    # here, so that reading a specs file needs no reader of data files
    from mlaas4hep.data.formats import load_clients
    from mlaas4hep.data.ingest import scan, share_events

    load_clients(sources)
    files, branches, notes = scan(sources)
    selection = select(branches, selected=selected, excluded=excluded, identifiers=identifiers, notes=notes)
    flat = [column.name for column in selection.flat]
    shares = share_events([file.entries for file in files], nevts)
    whole = RunningStatistics(len(flat) + len(selection.jagged))
    names = _file_names(files)
    documents: dict[str, dict[str, Any]] = {}
    done = 0
    for file, share, name in zip(files, shares, names, strict=True):
        own = RunningStatistics(len(flat) + len(selection.jagged))
        for events in _measured(file, share, selection, [own, whole]):
            done += events
            if watch:
                watch(done, sum(shares))
        results = own.results((*flat, *selection.jagged))
        documents[name] = to_specs(flat, selection.jagged, results, {file.source.path: share})
    total = {file.source.path: share for file, share in zip(files, shares, strict=True)}
    results = whole.results((*flat, *selection.jagged))
    documents[GLOBAL_SPECS] = to_specs(flat, selection.jagged, results, total)
    return [_written(folder / name, document) for name, document in documents.items()]


def _measured(
    file: ScannedFile, share: int, selection: Selection, statistics: Sequence[RunningStatistics]
) -> Iterator[int]:
    """Add the entries of a file to statistics; gives the number of entries of each block."""
    from mlaas4hep.data.formats import open_source

    with open_source(file.source) as reader:
        for block in reader.blocks(selection.branches, share):
            events = block.stop - block.start
            inputs = inputs_of(block.columns, events, selection.flat, selection.jagged, selection.missing)
            counts = pack(inputs).counts
            for running in statistics:
                running.add(inputs, counts)
            yield events


def _file_names(files: Sequence[ScannedFile]) -> list[str]:
    """`specs-FILE.json` for each file, numbered where two files have the same name."""
    stems = [PurePosixPath(file.source.path).name for file in files]
    stems = [stem.partition(".")[0] or stem for stem in stems]
    return [
        f"specs-{stem}.json" if stems.count(stem) == 1 else f"specs-{stem}-{number}.json"
        for number, stem in enumerate(stems)
    ]


def _scaled_zero(feature: FeatureStatistics) -> float:
    width = feature.maximum - feature.minimum
    return (0.0 - feature.minimum) / width if width > 0 else 0.0


def _written(path: Path, document: Mapping[str, Any]) -> Path:
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(document, indent=1), encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise MlaasError(f"The specs {path} cannot be written: {error.strerror or error}.") from error
    return path
