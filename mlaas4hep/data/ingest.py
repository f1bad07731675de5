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
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import mlaas4hep
from mlaas4hep.data.blocks import Block, FileFacts, FlatValues, JaggedValues, Reader
from mlaas4hep.data.formats import open_source
from mlaas4hep.data.schema import Branch, FlatColumn, Selection, common_branches
from mlaas4hep.data.sources import Source
from mlaas4hep.data.split import Part, split_parts
from mlaas4hep.data.statistics import RunningStatistics
from mlaas4hep.data.store import STORE_FORMAT, PackedStore, StoredFile, StoreFacts, StoreWriter
from mlaas4hep.errors import MlaasError, UsageError
from mlaas4hep.names import listing

Watch = Callable[[int, int], None]
_EXACT_INTEGER = 2**24
_ALWAYS_EXACT = ("bool", "int8", "uint8", "int16", "uint16")


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


def scan(sources: Sequence[Source]) -> tuple[list[ScannedFile], dict[str, Branch], list[str]]:
    """Open every file once for its entries and branches.

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
    common, differences = common_branches({str(file.source): file.branches for file in filled})
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
    cache: Path | None = None,
    watch: Watch | None = None,
) -> PackedStore:
    """The packed store of the files: an existing one with the same content key, or a new one.

    Args:
        files: what `scan` found.
        selection: the inputs.
        split: fraction of the events kept away from training; the statistics cover the training events.
        nevts: number of events to read from all files together, -1 for all.
        cache: folder of the stores, by default `cache_folder()`.
        watch: told the number of events read so far, and of all.

    Raises MlaasError for damaged data, for a file that changes meanwhile, and for integers that float32 cannot hold.
    """
    shares = share_events([file.entries for file in files], nevts)
    key = content_key(files, selection, shares, split)
    cache = cache or cache_folder()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(cache / f"{key}.lock"):
            final = cache / key
            if not (final / "store.json").is_file():
                _build(final, key, files, selection, shares, split, watch)
            return PackedStore(final)
    except OSError as error:
        raise MlaasError(
            f"The store in {cache} cannot be written: {error.strerror or error}.",
            "Free some space, or set MLAAS4HEP_CACHE to another folder.",
        ) from error


def content_key(files: Sequence[ScannedFile], selection: Selection, shares: Sequence[int], split: float) -> str:
    """Name of a store: a digest of the files' state, the inputs, the split, the store's format and this version."""
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
        "split": split,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock; the system releases it when the process dies."""
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _build(
    final: Path,
    key: str,
    files: Sequence[ScannedFile],
    selection: Selection,
    shares: Sequence[int],
    split: float,
    watch: Watch | None,
) -> None:
    partial = final.with_name(f"{final.name}.partial")
    for left_over in (partial, final):
        shutil.rmtree(left_over, ignore_errors=True)
    partial.mkdir()
    with ExitStack() as undo:
        undo.callback(shutil.rmtree, partial, ignore_errors=True)
        _fill(partial, key, files, selection, shares, split, watch)
        partial.rename(final)
        undo.pop_all()


def _fill(
    folder: Path,
    key: str,
    files: Sequence[ScannedFile],
    selection: Selection,
    shares: Sequence[int],
    split: float,
    watch: Watch | None,
) -> None:
    features = tuple(column.name for column in selection.flat) + selection.jagged
    statistics = RunningStatistics(len(features))
    stored: list[StoredFile] = []
    row, total = 0, sum(shares)
    with StoreWriter(folder, len(selection.jagged), bool(selection.label)) as writer:
        for file, share in zip(files, shares, strict=True):
            with open_source(file.source) as tree:
                _refuse_change(file, tree)
                for block in tree.blocks(selection.branches, share):
                    parts = split_parts(file.facts.identity, block.start, block.stop, split)
                    _add_block(writer, statistics, block, selection, parts, file)
                    if watch:
                        watch(row + block.stop, total)
                _refuse_change(file, tree)
            stored.append(_stored(file, row, row + share))
            row += share
        facts = StoreFacts(
            key, selection.flat, selection.jagged, selection.label, tuple(stored), statistics.results(features)
        )
    writer.finish(facts)


def _stored(file: ScannedFile, start: int, stop: int) -> StoredFile:
    source, facts = file.source, file.facts
    return StoredFile(
        source.path, source.tree, source.number, start, stop, file.entries, facts.size, facts.uuid, facts.identity
    )


def _refuse_change(file: ScannedFile, tree: Reader) -> None:
    now = Path(file.source.path).stat() if not file.source.remote else None
    state = f"{now.st_mtime_ns} {now.st_ctime_ns}" if now else file.facts.state
    if state != file.facts.state or tree.facts != file.facts:
        raise MlaasError(f"{file.source.path} changed while it was read.", "Start again when it is complete.")


def _add_block(
    writer: StoreWriter,
    statistics: RunningStatistics,
    block: Block,
    selection: Selection,
    parts: NDArray[np.uint8],
    file: ScannedFile,
) -> None:
    """Check, count and pack the entries of one block."""
    _refuse_inexact(block, selection, file.source)
    training = parts == Part.TRAIN
    events, width = block.stop - block.start, len(selection.flat)
    flat = np.empty((events, width), dtype=np.float32)
    for number, column in enumerate(selection.flat):
        flat[:, number] = _float32(_flat_column(block, column))
        statistics.add(number, flat[:, number], training)
    if width:
        statistics.multiplicity[:width] = 1
    jagged = [_jagged_column(block, name) for name in selection.jagged]
    counts = np.empty((events, len(jagged)), dtype=np.int64)
    for number, values in enumerate(jagged):
        counts[:, number] = np.diff(values.offsets)
        feature = width + number
        statistics.multiplicity[feature] = max(
            int(statistics.multiplicity[feature]), int(counts[:, number].max(initial=0))
        )
        statistics.add(feature, values.values, np.repeat(training, counts[:, number]))
    sizes = width + counts.sum(axis=1)
    labels = _labels(block, selection, file.source) if selection.label else None
    writer.add(_packed(flat, jagged, counts, sizes), sizes, counts.astype(np.uint32), parts, labels)


def _packed(
    flat: NDArray[np.float32], jagged: Sequence[JaggedValues], counts: NDArray[np.int64], sizes: NDArray[np.int64]
) -> NDArray[np.float32]:
    """One event after another: its flat columns, then each jagged branch's values; shape (sizes.sum(),)."""
    packed = np.empty(int(sizes.sum()), dtype=np.float32)
    begin = np.cumsum(sizes) - sizes
    width = flat.shape[1]
    packed[(begin[:, None] + np.arange(width)).ravel()] = flat.ravel()
    begin = begin + width
    for number, column in enumerate(jagged):
        place = np.arange(column.values.size) + np.repeat(begin - column.offsets[:-1], counts[:, number])
        packed[place] = column.values
        begin = begin + counts[:, number]
    return packed


def _flat_column(block: Block, column: FlatColumn) -> NDArray[Any]:
    """One flat column of a block, shape (n,)."""
    values = block.columns[column.branch].values
    if column.member:
        return np.asarray(values[column.member])
    if column.index >= 0:
        return values.reshape(values.shape[0], -1)[:, column.index]
    return values


def _jagged_column(block: Block, name: str) -> JaggedValues:
    column = block.columns[name]
    if not isinstance(column, JaggedValues):
        raise MlaasError(f"The branch {name} is not jagged in its data.", "Add it to exclude_branches.")
    return JaggedValues(column.offsets, _float32(column.values))


def _float32(values: NDArray[Any]) -> NDArray[np.float32]:
    """As float32; a double beyond its range becomes infinite, and is counted as such."""
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(np.float32)


def _refuse_inexact(block: Block, selection: Selection, source: Source) -> None:
    """Refuse integers that float32 would round: neighbouring event numbers would become the same input."""
    columns = [(column.branch, _flat_column(block, column)) for column in selection.flat]
    columns += [(name, block.columns[name].values) for name in selection.jagged]
    inexact = sorted({branch for branch, values in columns if not _exact(values)})
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


def _labels(block: Block, selection: Selection, source: Source) -> NDArray[np.float64]:
    column = block.columns[selection.label]
    if not isinstance(column, FlatValues) or column.values.ndim != 1 or column.values.dtype.kind not in "biuf":
        raise UsageError(f"The label branch {selection.label} of {source} is not one number an event.")
    labels: NDArray[np.float64] = column.values.astype(np.float64)
    if not np.isfinite(labels).all():
        raise MlaasError(f"The label branch {selection.label} of {source} has NaN or infinite values.")
    return labels
