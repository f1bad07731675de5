"""One pass over the files: statistics of every input, and the packed store that training gathers from.

The store is named by a content key of everything that it depends on, so that a changed file or parameter never meets a
stale store. It is written beside its final place under a lock and renamed when it is complete: a killed run leaves
nothing that is taken for a store, and concurrent runs of the same data make it once.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

import mlaas4hep
from mlaas4hep.data.blocks import Block, Column, FileFacts, Reader
from mlaas4hep.data.formats import open_source
from mlaas4hep.data.packing import flat_values, inputs_of, pack
from mlaas4hep.data.preprocessing import Preprocessing
from mlaas4hep.data.schema import Branch, Selection, common_branches
from mlaas4hep.data.sources import Source
from mlaas4hep.data.split import positions
from mlaas4hep.data.statistics import FeatureStatistics, RunningStatistics, sampled
from mlaas4hep.data.store import (
    STORE_FORMAT,
    Cut,
    PackedStore,
    StoredFile,
    StoreFacts,
    StoreWriter,
    read_array,
    write_facts,
)
from mlaas4hep.errors import MlaasError, UsageError
from mlaas4hep.names import listing

Watch = Callable[[int, int], None]
_EXACT_INTEGER = 2**24
_ALWAYS_EXACT = ("bool", "int8", "uint8", "int16", "uint16")
# stretches, so that few pages of the store are touched
_SAMPLED_STRETCHES, _SAMPLED_STRETCH = 80, 50


@dataclass(frozen=True)
class ScannedFile:
    """A file before its values are read."""

    source: Source
    facts: FileFacts
    entries: int
    branches: tuple[Branch, ...]


def cache_folder() -> Path:
    """Where stores are kept: MLAAS4HEP_CACHE, or `store` in MLAAS4HEP_HOME, or ~/.cache/mlaas4hep."""
    if cache := os.environ.get("MLAAS4HEP_CACHE"):
        return Path(cache)
    if home := os.environ.get("MLAAS4HEP_HOME"):
        return Path(home) / "store"
    return Path.home() / ".cache" / "mlaas4hep"


def scan(
    sources: Sequence[Source], differing: Literal["common", "error"] = "common"
) -> tuple[list[ScannedFile], dict[str, Branch], list[str]]:
    """Open every file once for its entries and branches.

    Args:
        sources: the files.
        differing: what to do where the files' branches differ: go on with those in common, or refuse.

    Returns the files that have entries, the branches that they have in common, and notes worth telling.
    Raises MlaasError for a file that cannot be read, and when no file has entries.
    """
    files = []
    for source in sources:
        with open_source(source) as tree:
            files.append(ScannedFile(source, tree.facts, tree.entries, tree.branches))
    filled = [file for file in files if file.entries]
    if not filled:
        raise MlaasError(
            f"{listing([str(file.source) for file in files])}: no entries.", "Name files with events in them."
        )
    notes = [f"{file.source} has no entries and is left out." for file in files if not file.entries]
    common, differences = common_branches({str(file.source): file.branches for file in filled}, differing)
    return filled, common, notes + differences


def share_events(entries: Sequence[int], nevts: int) -> list[int]:
    """How many of the first entries of each file to read: all with nevts = -1, else `nevts` in proportion to the files.

    The shares are rounded by largest remainders, so that their sum is exactly `nevts`.
    """
    total = sum(entries)
    if nevts < 0 or nevts >= total:
        return list(entries)
    exact = [nevts * count / total for count in entries]
    shares = [int(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda file: shares[file] - exact[file])
    for file in by_remainder[: nevts - sum(shares)]:
        shares[file] += 1
    return shares


def ingest(
    files: Sequence[ScannedFile],
    selection: Selection,
    *,
    split: float,
    nevts: int = -1,
    preprocessing: Preprocessing | None = None,
    needed: Sequence[str] = (),
    cache: Path | None = None,
    watch: Watch | None = None,
) -> PackedStore:
    """The packed store of the files: an existing one with the same content key, or a new one.

    Args:
        files: what `scan` found.
        selection: the inputs.
        split: fraction of the events kept away from training; the store itself does not depend on it.
        nevts: number of events to read from all files together, -1 for all.
        preprocessing: what is done to the branches before they become inputs.
        needed: the branches to read; by default those of the selection.
        cache: folder of the stores, by default `cache_folder()`.
        watch: told the number of events read so far, and of all.

    Raises MlaasError for damaged data, for a file that changes meanwhile, and for integers that float32 cannot hold.
    """
    shares = share_events([file.entries for file in files], nevts)
    key = content_key(files, selection, shares, preprocessing)
    cache = cache or cache_folder()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(cache / f"{key}.lock"):
            final = cache / key
            if not (final / "store.json").is_file():
                _build(
                    final,
                    _Job(key, files, selection, shares, preprocessing, tuple(needed) or selection.branches, watch),
                )
            return PackedStore(final, split)
    except OSError as error:
        raise MlaasError(
            f"The store in {cache} cannot be written: {error.strerror or error}.",
            "Free some space, or set MLAAS4HEP_CACHE to another folder.",
        ) from error


def content_key(
    files: Sequence[ScannedFile],
    selection: Selection,
    shares: Sequence[int],
    preprocessing: Preprocessing | None = None,
) -> str:
    """Name of a store: a digest of the files' state, the inputs, preprocessing, the store's format and this version."""
    content = {
        "format": STORE_FORMAT,
        "version": mlaas4hep.__version__,
        "files": [
            [
                file.source.path,
                file.source.tree,
                file.source.number,
                file.facts.identity,
                file.facts.size,
                file.facts.state,
                share,
            ]
            for file, share in zip(files, shares, strict=True)
        ],
        "flat": [asdict(column) for column in selection.flat],
        "jagged": selection.jagged,
        "label": selection.label,
        "weight": selection.weight,
        "missing": selection.missing,
        "preprocessing": preprocessing.digest if preprocessing else "",
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock; the system releases it when the process dies."""
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True)
class _Job:
    """What goes into a store."""

    key: str
    files: Sequence[ScannedFile]
    selection: Selection
    shares: Sequence[int]
    preprocessing: Preprocessing | None
    needed: tuple[str, ...]
    watch: Watch | None

    @property
    def features(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.selection.flat) + self.selection.jagged

    @property
    def optional(self) -> tuple[str, ...]:
        """The arrays that not every store has."""
        wanted = {
            "entries": bool(self.preprocessing and self.preprocessing.cuts),
            "labels": bool(self.selection.label),
            "weights": bool(self.selection.weight),
        }
        return tuple(name for name, chosen in wanted.items() if chosen)


def _build(final: Path, job: _Job) -> None:
    partial = final.with_name(f"{final.name}.partial")
    for left_over in (partial, final):
        shutil.rmtree(left_over, ignore_errors=True)
    partial.mkdir()
    with ExitStack() as undo:
        undo.callback(shutil.rmtree, partial, ignore_errors=True)
        _fill(partial, job)
        partial.rename(final)
        undo.pop_all()


def _fill(folder: Path, job: _Job) -> None:
    statistics = RunningStatistics(len(job.features))
    stored: list[StoredFile] = []
    cuts = job.preprocessing.cuts if job.preprocessing else ()
    passed = np.zeros(len(cuts), dtype=np.int64)
    done, total, row = 0, sum(job.shares), 0
    with StoreWriter(folder, job.optional) as writer:
        for file, share in zip(job.files, job.shares, strict=True):
            start = row
            with open_source(file.source) as reader:
                _refuse_change(file, reader)
                for block in reader.blocks(job.needed, share):
                    events, cut = _add_block(writer, statistics, block, job, file)
                    row += events
                    passed += cut
                    if job.watch:
                        job.watch(done + block.stop, total)
                _refuse_change(file, reader)
            stored.append(_stored(file, start, row, share))
            done += share
    if not row:
        raise MlaasError("No event is left after the cuts.", "Loosen the cuts of the preprocessing.")
    flow = (Cut("all", total), *(Cut(name, int(count)) for name, count in zip(cuts, passed, strict=True)))
    facts = StoreFacts(
        key=job.key,
        flat=job.selection.flat,
        jagged=job.selection.jagged,
        label=job.selection.label,
        weight=job.selection.weight,
        missing=job.selection.missing,
        files=tuple(stored),
        statistics=statistics.results(job.features),
        cut_flow=flow if job.preprocessing else (),
        count_bits=writer.count_bits,
    )
    write_facts(folder, replace(facts, statistics=_with_samples(folder, facts)))


def _with_samples(folder: Path, facts: StoreFacts) -> tuple[FeatureStatistics, ...]:
    """The statistics of a store, with what a sample of its events tells: stretches of them at equal distances."""
    values, begin, counts = _sample(folder, facts)
    flat, found = len(facts.flat), []
    for number, feature in enumerate(facts.statistics):
        if number < flat:
            chosen = values[begin + number]
        else:
            lengths = counts[:, number - flat]
            first = begin + flat + counts[:, : number - flat].sum(axis=1)
            within = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            chosen = values[np.repeat(first, lengths) + within]
        found.append(sampled(feature, chosen))
    return tuple(found)


def _sample(folder: Path, facts: StoreFacts) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """Some events of a store: their values, where each begins in them, and their counts, shape (n, jagged).

    They are read, not mapped: the pages of a mapping would count as memory of this process.
    """
    size, jagged = _SAMPLED_STRETCH, len(facts.jagged)
    stretches = [(0, facts.events)]
    if facts.events > size * _SAMPLED_STRETCHES:
        stretches = [(int(start), size) for start in np.linspace(0, facts.events - size, _SAMPLED_STRETCHES)]
    values, begin, counts, end = [], [], [], 0
    for start, events in stretches:
        offsets = read_array(folder, facts, "offsets", start, events + 1)
        values.append(read_array(folder, facts, "values", int(offsets[0]), int(offsets[-1] - offsets[0])))
        counts.append(read_array(folder, facts, "counts", start * jagged, events * jagged).reshape(events, jagged))
        begin.append(offsets[:-1] - offsets[0] + end)
        end += values[-1].size
    return np.concatenate(values), np.concatenate(begin), np.concatenate(counts).astype(np.int64)


def _stored(file: ScannedFile, start: int, stop: int, read: int) -> StoredFile:
    source, facts = file.source, file.facts
    return StoredFile(
        source.path, source.tree, source.number, start, stop, file.entries, read, facts.size, facts.uuid, facts.identity
    )


def _refuse_change(file: ScannedFile, reader: Reader) -> None:
    now = Path(file.source.path).stat() if not file.source.remote else None
    state = f"{now.st_mtime_ns} {now.st_ctime_ns}" if now else file.facts.state
    if state != file.facts.state or reader.facts != file.facts:
        raise MlaasError(f"{file.source.path} changed while it was read.", "Start again when it is complete.")


def _add_block(
    writer: StoreWriter, statistics: RunningStatistics, block: Block, job: _Job, file: ScannedFile
) -> tuple[int, NDArray[np.int64] | int]:
    """Cut, check, count and pack the entries of one block; returns the events that are left, also after each cut."""
    selection, columns = job.selection, block.columns
    optional: dict[str, NDArray[Any]] = {}
    numbers = positions(file.facts.identity, block.start, block.stop)
    passed: NDArray[np.int64] | int = 0
    if job.preprocessing:
        processed = job.preprocessing.apply(block, str(file.source))
        columns, passed, numbers = processed.columns, processed.passed, numbers[processed.kept]
        if "entries" in job.optional:
            optional["entries"] = block.start + np.flatnonzero(processed.kept)
    _refuse_inexact(columns, selection, file.source)
    inputs = inputs_of(columns, numbers.size, selection.flat, selection.jagged, selection.missing)
    packed = pack(inputs)
    statistics.add(inputs, packed.counts)
    if selection.label:
        optional["labels"] = _numbers(columns, selection.label, "label", file.source)
    if selection.weight:
        optional["weights"] = _numbers(columns, selection.weight, "weight", file.source)
    writer.add(packed, positions=numbers, **optional)
    return numbers.size, passed


def _refuse_inexact(columns: Mapping[str, Column], selection: Selection, source: Source) -> None:
    """Refuse integers that float32 would round: neighbouring event numbers would become the same input."""
    pairs = [(column.branch, flat_values(columns, column)) for column in selection.flat]
    pairs += [(name, columns[name].values) for name in selection.jagged]
    inexact = sorted({branch for branch, values in pairs if not _exact(values)})
    if inexact:
        raise UsageError(
            f"{source} has integers that 32-bit floating point would round in {listing(inexact, 20)}.",
            "Add them to identifier, if they only tell events apart, or to exclude_branches.",
        )


def _exact(values: NDArray[Any]) -> bool:
    """Whether float32 holds each of these numbers exactly, if they are integers."""
    if values.dtype.kind not in "iu" or values.dtype.name in _ALWAYS_EXACT or not values.size:
        return True
    if int(values.min()) >= -_EXACT_INTEGER and int(values.max()) <= _EXACT_INTEGER:
        return True
    return bool((values.astype(np.float32).astype(np.longdouble) == values.astype(np.longdouble)).all())


def _numbers(columns: Mapping[str, Column], name: str, use: str, source: Source) -> NDArray[np.float64]:
    """The finite numbers of a label or weight branch, one an event."""
    numbers: NDArray[np.float64] = columns[name].values.astype(np.float64)
    if not np.isfinite(numbers).all():
        raise MlaasError(f"The {use} branch {name} of {source} has NaN or infinite values.")
    return numbers
