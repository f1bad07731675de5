"""What a file of a workspace holds: trees, branches, and a histogram of each branch.

`python -m mlaas4hep.service.inspection FORMAT PATH` is the process that finds it, see `bounded`.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel

from mlaas4hep.errors import MlaasError, UsageError
from mlaas4hep.service.bounded import NoAnswerError, answer, ask

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mlaas4hep.data.blocks import Reader
    from mlaas4hep.data.root import TreeReport
    from mlaas4hep.data.schema import Branch

BINS = 24
_ENTRIES = 5000  # of which histograms are made
_BRANCHES = 500  # of all trees; of more there are no histograms
_TREES = 20


class Histogram(BaseModel):
    """Values of a branch in the first entries.

    Attributes:
        low, high: where the first bin begins and the last one ends.
        counts: values in each bin, all of the same width.
        values: finite values.
        others: values that are NaN or infinite.
        mean: of the finite values.
    """

    low: float
    high: float
    counts: list[int]
    values: int
    others: int
    mean: float


class BranchContents(BaseModel):
    """A branch; it has no histogram where its values are no numbers, or cannot be read."""

    name: str
    kind: str
    type: str
    histogram: Histogram | None = None


class TreeContents(BaseModel):
    """A tree, or the reason why it cannot be read (`problem`); `sampled` entries are in the histograms."""

    name: str
    type: str
    entries: int
    sampled: int
    branches: list[BranchContents]
    problem: str


class FileContents(BaseModel):
    """What a file holds."""

    path: str
    bytes: int
    trees: list[TreeContents]
    problem: str

    def _repr_html_(self) -> str:
        from mlaas4hep.display import contents_html

        return contents_html(self)


def inspect_in_process(file: Path, path: str) -> FileContents:
    """Inspect a file in a process of its own.

    Args:
        file: where it is.
        path: what its user calls it.

    Raises UsageError for a file that cannot be read in bounded time and memory, MlaasError when too many ask.
    """
    from mlaas4hep.data.sources import format_of

    try:
        found = ask([sys.executable, "-I", "-m", __name__, format_of(path), str(file)])
    except NoAnswerError as error:
        raise UsageError(f"{path} is damaged, or too large to be shown.", "Get it again, or upload a part.") from error
    if "error" in found:
        raise UsageError(str(found["error"]).replace(str(file), path), str(found["remedy"]).replace(str(file), path))
    return FileContents.model_validate({**found, "path": path})


def contents(path: str, kind: str) -> FileContents:
    """Inspect a file in this process. Raises MlaasError for one that cannot be read."""
    from mlaas4hep.data.formats import inspect_source

    report = inspect_source(path, dtype=kind)
    trees = [_tree(path, kind, tree) for tree in report.trees[:_TREES]]
    return FileContents(path=path, bytes=report.size, trees=trees, problem=report.problem)


def _tree(path: str, kind: str, tree: TreeReport) -> TreeContents:
    found = {} if tree.problem or len(tree.branches) > _BRANCHES else _histograms(path, kind, tree)
    branches = [
        BranchContents(name=branch.name, kind=branch.kind.value, type=branch.type, histogram=found.get(branch.name))
        for branch in tree.branches
    ]
    return TreeContents(
        name=tree.name,
        type=tree.type,
        entries=tree.entries,
        sampled=min(tree.entries, _ENTRIES) if found else 0,
        branches=branches,
        problem=tree.problem,
    )


def _histograms(path: str, kind: str, tree: TreeReport) -> dict[str, Histogram]:
    from mlaas4hep.data.formats import open_source
    from mlaas4hep.data.schema import Kind
    from mlaas4hep.data.sources import Source

    found: dict[str, Histogram] = {}
    wanted = [b for b in tree.branches if b.kind in (Kind.FLAT, Kind.BOOL, Kind.FIXED, Kind.JAGGED)]
    if not wanted or not tree.entries:
        return found
    try:
        with open_source(Source(path, tree.name, format=kind)) as reader:
            for branch in wanted:
                values = _values(reader, branch)
                if values is not None:
                    found[branch.name] = histogram(values)
    except MlaasError:
        return found
    return found


def _values(reader: Reader, branch: Branch) -> NDArray[np.float64] | None:
    """The first values of a branch; None when it is damaged or holds no numbers."""
    import numpy as np

    pieces = []
    left = min(reader.entries, _ENTRIES)
    try:
        for block in reader.blocks([branch.name], left):
            column = block.columns[branch.name].values
            pieces.append(np.asarray(column, dtype=np.float64).ravel())
    except (MlaasError, ValueError, TypeError):
        return None
    return np.concatenate(pieces) if pieces else None


def histogram(values: NDArray[np.float64]) -> Histogram:
    """The histogram of some values, shape (n,), between the smallest and the largest finite one."""
    import numpy as np

    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if not math.isfinite(high - low) or high == low:
        low, high = low - 0.5, low + 0.5
    counts, _ = np.histogram(finite, BINS, (low, high))
    return Histogram(
        low=low,
        high=high,
        counts=counts.tolist(),
        values=int(finite.size),
        others=int(values.size - finite.size),
        mean=float(finite.mean()) if finite.size else 0.0,
    )


def main() -> None:
    """Answer the command line."""
    kind, path = sys.argv[1:]
    answer(lambda: contents(path, kind))


if __name__ == "__main__":
    main()
