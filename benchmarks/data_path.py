"""The data path against the published algorithm, on one generated file; Markdown tables of CPU seconds.

    python benchmarks/data_path.py [--events 400000] [--repeats 3] [--rounds 3]

The speed of a computer varies from minute to minute: every round measures all figures once, in turns, and the ratios
are those within a round; the tables have the median of the rounds and the least and the greatest.

The file has 18 flat and 48 jagged branches of float32, zlib, whose lists fill 9 % of 1802 columns. Each figure is
measured in a process of its own, so that memory and imports of one do not weigh on another.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

FLAT, JAGGED, LONGEST, MEAN, TREE = 18, 48, 37, 2.95, "Events"
IDIM = FLAT + 40 * LONGEST + 8 * (LONGEST + 1)
REFERENCE_EVENTS = 2_000


def generate(path: Path, events: int) -> None:
    """The benchmark's file."""
    import awkward as ak
    import uproot

    generator = np.random.default_rng(1)
    types = {f"f{i:02}": "float32" for i in range(FLAT)} | {f"j{i:02}": "var * float32" for i in range(JAGGED)}
    with uproot.recreate(path, compression=uproot.ZLIB(1)) as file:
        tree = file.mktree(TREE, types)
        for start in range(0, events, 10_000):
            size = min(10_000, events - start)
            columns: dict[str, Any] = {f"f{i:02}": generator.gamma(2, 20, size).astype("f4") for i in range(FLAT)}
            for i in range(JAGGED):
                longest = LONGEST + (i >= 40)
                counts = np.minimum(generator.poisson(MEAN, size), longest)
                counts[0] = longest
                columns[f"j{i:02}"] = ak.unflatten(generator.gamma(2, 20, int(counts.sum())).astype("f4"), counts)
            tree.extend(columns)


class PerEvent:
    """The published algorithm: arrays by branch, then one event after another, branch by branch, as Python lists.

    Each branch of an event is normalised and padded with NaN to its largest multiplicity; the lists are joined to the
    input vector, whose NaN give the mask.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.flat = [f"f{i:02}" for i in range(FLAT)]
        self.jagged = [f"j{i:02}" for i in range(JAGGED)]
        self.low: dict[str, float] = {}
        self.high: dict[str, float] = {}
        self.longest: dict[str, int] = {}

    def read(self) -> dict[str, np.ndarray]:
        """A chunk of events, branch by branch."""
        import uproot

        with uproot.open({str(self.path): TREE}) as tree:
            found: dict[str, np.ndarray] = tree.arrays(
                self.flat + self.jagged, entry_stop=REFERENCE_EVENTS, library="np"
            )
            return found

    def specs(self) -> None:
        """Largest multiplicity, minimum and maximum of each branch, over all events."""
        columns = self.read()
        for name in self.flat:
            self.low[name], self.high[name] = float(columns[name].min()), float(columns[name].max())
        for name in self.jagged:
            filled = [values for values in columns[name] if len(values)]
            self.low[name] = min(float(np.min(values)) for values in filled)
            self.high[name] = max(float(np.max(values)) for values in filled)
            self.longest[name] = max(len(values) for values in columns[name])

    def rows(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Input vector and mask of each event."""
        columns = self.read()
        for event in range(REFERENCE_EVENTS):
            parts: list[list[float]] = []
            for name in self.flat + self.jagged:
                scaled = (columns[name][event] - self.low[name]) / (self.high[name] - self.low[name])
                if name not in self.longest:
                    parts.append([scaled])
                    continue
                padded = np.full(self.longest[name], np.nan)
                padded[: len(scaled)] = scaled
                parts.append(padded.tolist())
            vector = list(itertools.chain.from_iterable(parts))
            mask = list(np.isnan(vector) * 1)
            yield np.array(vector), np.array(mask)


def sources(path: Path) -> list[Any]:
    from mlaas4hep.data.sources import resolve_files

    return resolve_files(str(path), TREE)


def selected(path: Path) -> tuple[Any, Any]:
    from mlaas4hep.data.ingest import scan
    from mlaas4hep.data.schema import select

    files, branches, _ = scan(sources(path))
    return files, select(branches, excluded=["n*"])


def ingested(path: Path, cache: Path) -> Any:
    from mlaas4hep.data.ingest import ingest

    files, selection = selected(path)
    return ingest(files, selection, split=0.3, cache=cache)


def epochs(store: Any, count: int) -> int:
    """Gather all events `count` times in random order."""
    from mlaas4hep.data.batches import Batches

    rows = [np.arange(store.facts.events)]
    batches = Batches(store, store.schema(), rows, batch_size=256, chunk_size=-1, shuffle=True)
    return sum(chunk.rows.size for epoch in range(count) for chunk in batches.chunks(epoch))


def dense(path: Path) -> int:
    """Read, pack and gather block by block into dense rows, without a store."""
    from mlaas4hep.data.batches import Gatherer, PackedEvents
    from mlaas4hep.data.formats import open_source
    from mlaas4hep.data.packing import inputs_of, pack
    from mlaas4hep.data.schema import JaggedColumn, Schema

    _, selection = selected(path)
    jagged = tuple(JaggedColumn(name, LONGEST + (number >= 40)) for number, name in enumerate(selection.jagged))
    features = FLAT + JAGGED
    schema = Schema(flat=selection.flat, jagged=jagged, shift=(0.0,) * features, width=(400.0,) * features)
    gatherer, size, done = Gatherer(schema), 256, 0
    values, mask = np.empty((size, schema.idim), np.float32), np.empty((size, schema.idim), np.bool_)
    with open_source(sources(path)[0]) as reader:
        for block in reader.blocks(selection.branches, reader.entries):
            packed = pack(inputs_of(block.columns, block.stop - block.start, selection.flat, selection.jagged))
            events = PackedEvents(packed.values, packed.offsets, packed.counts)
            for start in range(0, packed.sizes.size, size):
                rows = np.arange(start, min(start + size, packed.sizes.size))
                gatherer.gather(events, rows, values[: rows.size], mask[: rows.size])
                done += rows.size
    return done


def decompression(path: Path, library: str) -> Callable[[], None]:
    """Nothing but zlib on the baskets of the same branches: by Python's own `zlib`, or by the fastest that there is."""
    import uproot

    from mlaas4hep.data.compression import zlib_decompressor

    decompress = (
        zlib_decompressor()[1] if library == "fastest" else lambda packed, raw: zlib.decompress(packed, bufsize=raw)
    )
    data, blocks = path.read_bytes(), []
    with uproot.open({str(path): TREE}) as tree:
        for branch in tree.branches:
            for number in range(0 if branch.name.startswith("n") else branch.num_baskets):
                key = branch.basket_key(number)
                place, end = key.data_cursor.index, key.data_cursor.index + key.data_compressed_bytes
                while place < end and key.data_compressed_bytes != key.data_uncompressed_bytes:
                    packed, raw = (int.from_bytes(data[place + i : place + i + 3], "little") for i in (3, 6))
                    blocks.append((data[place + 9 : place + 9 + packed], raw))
                    place += 9 + packed

    def run() -> None:
        for packed, raw in blocks:
            decompress(packed, raw)

    return run


def measured(work: Callable[[], object], repeats: int) -> float:
    """Median CPU seconds of several runs, after one to warm up."""
    work()
    found = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return statistics.median(found)


def fresh_ingest(path: Path) -> Any:
    with tempfile.TemporaryDirectory() as cache:
        return ingested(path, Path(cache))


def first_epoch(path: Path) -> None:
    with tempfile.TemporaryDirectory() as cache:
        epochs(ingested(path, Path(cache)), 1)


def peak_memory(path: Path) -> dict[str, float]:
    """MB: the most that reading took, and the anonymous memory after an epoch (mapped pages of the store left out)."""
    with tempfile.TemporaryDirectory() as cache:
        store = ingested(path, Path(cache))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        epochs(store, 1)
        status = Path("/proc/self/status").read_text()
        anonymous = next(line for line in status.splitlines() if line.startswith("RssAnon"))
        return {"ingest": peak, "epoch": int(anonymous.split()[1]) / 1024}


def one(what: str, path: Path, repeats: int) -> Any:
    """One figure, in this process."""
    if what == "memory":
        return peak_memory(path)
    if what == "reference":
        reference = PerEvent(path)
        specs = measured(reference.specs, 3)
        return {"specs": specs, "rows": measured(lambda: sum(1 for _ in reference.rows()), 3)}
    if what == "epochs":
        with tempfile.TemporaryDirectory() as cache:
            store = ingested(path, Path(cache))
            return measured(lambda: epochs(store, 1), repeats)
    if what in ("zlib", "fastest"):
        return measured(decompression(path, what), repeats)
    work: dict[str, Callable[[], object]] = {
        "ingest": lambda: fresh_ingest(path),
        "dense": lambda: dense(path),
        "first epoch": lambda: first_epoch(path),
    }
    return measured(work[what], repeats)


def in_process(what: str, path: Path, repeats: int, engine: str = "numba") -> Any:
    words = [sys.executable, __file__, "--one", what, "--file", str(path), "--repeats", str(repeats)]
    done = subprocess.run(
        words, check=True, capture_output=True, text=True, env=os.environ | {"MLAAS4HEP_KERNELS": engine}
    )
    return json.loads(done.stdout)


def spread(figures: Sequence[float], form: str) -> str:
    """Median, least and greatest of the rounds."""
    return f"{statistics.median(figures):{form}} ({min(figures):{form}} to {max(figures):{form}})"


def report(events: int, repeats: int, rounds: int, folder: Path) -> None:
    path, small, large = folder / "dense.root", folder / "small.root", folder / "large.root"
    generate(path, events)
    measures = [
        (what, "numba") for what in ("reference", "zlib", "fastest", "dense", "ingest", "first epoch", "epochs")
    ]
    measures.append(("dense", "numpy"))
    # found[what, engine] has one figure a round
    found: dict[tuple[str, str], list[Any]] = {measure: [] for measure in measures}
    for _ in range(rounds):
        for what, engine in measures:
            found[what, engine].append(in_process(what, path, repeats, engine))
    references = found.pop(("reference", "numba"))
    rows = [REFERENCE_EVENTS / reference["rows"] for reference in references]
    with_specs = [REFERENCE_EVENTS / (reference["rows"] + reference["specs"]) for reference in references]
    print(f"\n{events} events, {IDIM} columns; CPU seconds; median of {rounds} rounds (least to greatest)\n")
    print("| | kHz | against the published algorithm |\n|---|---:|---:|")
    print(f"| published algorithm, rows | {spread([rate / 1e3 for rate in rows], '.2f')} | 1 |")
    print(f"| published algorithm, specs and rows | {spread([rate / 1e3 for rate in with_specs], '.2f')} | 1 |")
    for name, measure, against in (
        ("dense rows, NumPy only", ("dense", "numpy"), rows),
        ("dense rows, numba", ("dense", "numba"), rows),
        ("statistics, store and first epoch", ("first epoch", "numba"), with_specs),
        ("further epochs from the store", ("epochs", "numba"), rows),
    ):
        rates = [events / seconds for seconds in found[measure]]
        ratios = [rate / base for rate, base in zip(rates, against, strict=True)]
        print(f"| {name} | {spread([rate / 1e3 for rate in rates], '.0f')} | {spread(ratios, '.0f')} |")
    print("\n| | CPU seconds | against decompression by zlib | by libdeflate |\n|---|---:|---:|---:|")
    for name, what in (
        ("pure decompression of the same branches, zlib", "zlib"),
        ("the same by libdeflate, which the data path uses", "fastest"),
        ("packed ingest", "ingest"),
        ("dense rows", "dense"),
    ):
        seconds = found[what, "numba"]
        ratios = [
            spread([one / base for one, base in zip(seconds, found[library, "numba"], strict=True)], ".2f")
            for library in ("zlib", "fastest")
        ]
        print(f"| {name} | {spread(seconds, '.2f')} | {ratios[0]} | {ratios[1]} |")
    generate(small, 100_000)
    generate(large, 1_000_000)
    memory = {name: in_process("memory", file, 1) for name, file in (("100,000", small), ("1,000,000", large))}
    print("\n| events | peak of ingest (MB) | memory of an epoch (MB) |\n|---|---:|---:|")
    for name, megabytes in memory.items():
        print(f"| {name} | {megabytes['ingest']:.0f} | {megabytes['epoch']:.0f} |")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=400_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", default="")
    parser.add_argument("--file", type=Path)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(one(asked.one, asked.file, asked.repeats)))
        return
    with tempfile.TemporaryDirectory(prefix="data-path-") as folder:
        report(asked.events, asked.repeats, asked.rounds, Path(folder))


if __name__ == "__main__":
    main()
