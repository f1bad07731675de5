"""Times of reading one ROOT file locally, over root:// and over http://, from servers on loopback.

    python benchmarks/remote.py [EVENTS] [ROUNDS]

Makes a zlib-compressed file with 40 jagged branches, reads all its blocks each way in turn, and prints a Markdown table
of medians. The servers and the reader share this computer's cores.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import uproot

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mlaas4hep.data.formats import open_source
from mlaas4hep.data.sources import Source
from tests.debian import lacking
from tests.integration.data_servers import PROGRAMS, nginx_server, xrootd_server

COLLECTIONS, MEMBERS, CLUSTER = 8, 5, 20_000


def write(path: Path, events: int) -> None:
    """A file of `events` events in clusters, as an experiment's software writes it."""
    generator = np.random.default_rng(1)
    with uproot.recreate(path, compression=uproot.ZLIB(1)) as file:
        for _ in range(0, events, CLUSTER):
            columns: dict[str, Any] = {"MET": generator.normal(size=CLUSTER).astype(np.float32)}
            for collection in range(COLLECTIONS):
                counts = generator.poisson(3.0, CLUSTER)
                members = {}
                for member in range(MEMBERS):
                    values = generator.exponential(size=int(counts.sum())).astype(np.float32)
                    # detectors measure about this precisely, which is what makes real files compressible
                    members[f"m{member}"] = ak.unflatten((values.view(np.uint32) & 0xFFFFF000).view(np.float32), counts)
                columns[f"C{collection}"] = ak.zip(members)
            if "Events" not in file:
                file.mktree(
                    "Events", {name: getattr(column, "dtype", None) or column.type for name, column in columns.items()}
                )
            file["Events"].extend(columns)


def read(path: str) -> tuple[float, float, int, int]:
    """Wall and CPU seconds of one pass over all branches, its events, and the file's bytes."""
    wall, cpu = time.perf_counter(), time.process_time()
    with open_source(Source(path, "Events")) as tree:
        names = [branch.name for branch in tree.branches]
        events = sum(block.stop - block.start for block in tree.blocks(names, tree.entries))
        size = tree.facts.size
    return time.perf_counter() - wall, time.process_time() - cpu, events, size


def main() -> None:
    """Measure and print."""
    events = int(sys.argv[1]) if len(sys.argv) > 1 else 200_000
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    if reason := lacking(PROGRAMS):
        sys.exit(reason)
    with xrootd_server() as xrootd, nginx_server() as nginx:
        local = nginx.files / "events.root"
        write(local, events)
        (xrootd.files / "store" / "events.root").write_bytes(local.read_bytes())
        ways = {
            "local": str(local),
            "root://": xrootd.url("events.root", "root"),
            "http://, several ranges": nginx.url("events.root"),
            "http://, single ranges": nginx.url("events.root", "single"),
        }
        times: dict[str, list[tuple[float, float, int, int]]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, path in ways.items():
                times[way].append(read(path))
    base = statistics.median(wall for wall, *_ in times["local"])
    size = times["local"][0][3]
    print(
        f"{events} events, {COLLECTIONS * MEMBERS} jagged branches, {size / 1e6:.0f} MB (zlib), medians of {rounds}\n"
    )
    print("| way | wall s | times local | CPU s | MB/s in the file |\n|---|---|---|---|---|")
    for way, taken in times.items():
        wall, cpu = (statistics.median(values) for values in list(zip(*taken, strict=True))[:2])
        print(f"| {way} | {wall:.2f} | {wall / base:.2f} | {cpu:.2f} | {size / wall / 1e6:.0f} |")


if __name__ == "__main__":
    main()
