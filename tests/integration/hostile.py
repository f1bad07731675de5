"""Reads damaged copies of files, many in one process: `python hostile.py FOLDER FIRST STEP LAST`.

FOLDER/seeds has the sound files, and FOLDER/places.json for each of them the ranges of bytes that a checksum protects.
Prints one JSON object a copy: its number, what was done to it, and what came of it (`same` or `changed` data,
`refused`, or an exception that is not ours).
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import signal
import sys
import traceback
from pathlib import Path

import numpy as np

from mlaas4hep.data.ingest import ingest, scan
from mlaas4hep.data.root import inspect_file
from mlaas4hep.data.schema import INPUT_KINDS, Branch, select
from mlaas4hep.data.sources import Source
from mlaas4hep.errors import MlaasError, UsageError

MEMORY = 1536 * 2**20
PATIENCE = 60
EXTREMES = [b"\0\0\0\0", b"\0\0\0\1", b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\xff\xff\xff\xff", b"\0\0\xff\xff"]


def damage(data: bytes, places: list[list[int]], number: int) -> tuple[str, bytes]:
    """One of the ways in which a file can be damaged, chosen by the number."""
    generator = np.random.default_rng(number)
    kind = ("cut", "overwrite", "zeros", "copy", "extreme", "protected")[number // 16 % 6]
    size = len(data)
    place = int(
        generator.choice(
            [generator.integers(size), generator.integers(min(400, size)), size - 1 - generator.integers(size // 3)]
        )
    )
    length = int(generator.choice([1, 2, 4, 8, 64, 512]))
    if kind == "cut":
        return kind, data[:place]
    if kind == "protected" and places:
        first, last = places[int(generator.integers(len(places)))]
        place = int(generator.integers(first, last))
        length = min(int(generator.integers(1, 65)), last - place)
        return kind, data[:place] + generator.bytes(length) + data[place + length :]
    new = generator.bytes(int(generator.integers(1, 65)))
    if kind == "zeros":
        new = bytes(length)
    elif kind == "copy":
        begin = int(generator.integers(size))
        new = data[begin : begin + length]
    elif kind == "extreme":
        new = EXTREMES[int(generator.integers(len(EXTREMES)))]
    return kind, (data[:place] + new + data[place + len(new) :])[:size]


def digest(path: Path, cache: Path) -> dict[str, str]:
    """For each tree of a file, a digest of the columns that training would get."""
    digests = {}
    for tree in inspect_file(str(path)).trees:
        if tree.problem or not tree.entries:
            continue
        files, branches, _ = scan([Source(str(path), tree.name)])
        inputs = [branch for branch in branches.values() if branch.kind in INPUT_KINDS]
        if inputs:
            digests[tree.name] = stored(files, branches, cache)
    return digests


def stored(files: list, branches: dict[str, Branch], cache: Path) -> str:
    """A digest of the store; branches with integers too large for an input are taken for identifiers."""
    large = [branch.name for branch in branches.values() if branch.dtype in ("int32", "uint32", "int64", "uint64")]
    try:
        selection = select(branches, excluded=large)
    except UsageError:
        return "nothing to train on"
    store = ingest(files, selection, split=0.3, cache=cache)
    assert store.facts.events == files[0].entries
    assert all(np.isfinite([s.minimum, s.maximum, s.mean, s.deviation]).all() for s in store.facts.statistics)
    content = hashlib.sha256()
    for file in (store.folder / "values.f32", store.folder / "offsets.i64", *store.folder.glob("counts.*")):
        content.update(file.read_bytes())
    return content.hexdigest()


def outcome(path: Path, cache: Path, sound: dict[str, str]) -> str:
    """What comes of reading a damaged file."""
    try:
        found = digest(path, cache)
    except MlaasError as error:
        left = [name.name for name in cache.glob("*") if name.suffix != ".lock"] if cache.exists() else []
        finished = all((cache / name / "store.json").is_file() for name in left)
        sentence = str(path) in str(error) or isinstance(error, UsageError)
        return "refused" if finished and sentence and "\n" not in str(error) else f"badly refused: {error} {left}"
    except Exception:
        return traceback.format_exc()
    return "same" if all(found[tree] == sound.get(tree) for tree in found) else "changed"


def main() -> None:
    """Read the damaged copies FIRST, FIRST + STEP, ... below LAST."""
    folder, (first, step, last) = Path(sys.argv[1]), map(int, sys.argv[2:])
    seeds = sorted((folder / "seeds").iterdir())
    places = json.loads((folder / "places.json").read_text())
    work = folder / f"work{first}"
    work.mkdir()
    sound = {seed.name: digest(seed, work / "sound") for seed in seeds}
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    for number in range(first, last, step):
        seed = seeds[number % len(seeds)]
        kind, data = damage(seed.read_bytes(), places.get(seed.name, []), number)
        path = work / f"{number}.root"
        path.write_bytes(data)
        signal.alarm(PATIENCE)
        result = outcome(path, work / "cache", sound[seed.name])
        signal.alarm(0)
        print(json.dumps({"number": number, "seed": seed.name, "kind": kind, "outcome": result}), flush=True)
        shutil.rmtree(work / "cache", ignore_errors=True)
        path.unlink()


if __name__ == "__main__":
    main()
