"""What a notebook needs, in one import.

    from mlaas4hep import notebook as ml

    ml.inspect("signal.root")
    model = ml.train(["signal.root", "background.root"], [1, 0], "model.py", "model", epochs=5)
    ml.report(model)
    ml.predict(model, [{"MET_pt": 31.5, "Muon_pt": [20.1, 17.3]}])

    client = ml.Client("https://ml.example.org")
    ml.watch(client, client.submit("higgs"))

Everything is shown by the notebook itself: put it at the end of a cell.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlaas4hep.client import Client, Job
from mlaas4hep.data.blocks import Block, JaggedValues, joined
from mlaas4hep.data.formats import load_clients, open_source
from mlaas4hep.data.preprocessing import Preprocessing
from mlaas4hep.data.sources import Source, format_of, resolve_files
from mlaas4hep.display import Picture, histograms, report_of
from mlaas4hep.errors import MlaasError, UsageError
from mlaas4hep.example.servers import DataServer
from mlaas4hep.example.servers import service as start_service
from mlaas4hep.names import did_you_mean
from mlaas4hep.service.inspection import FileContents, contents
from mlaas4hep.training.bundle import Bundle, read_bundle
from mlaas4hep.training.prediction import predict_events
from mlaas4hep.training.progress import Tell, plain
from mlaas4hep.training.workflow import Workflow, load_folder, load_workflow

if TYPE_CHECKING:
    import awkward as ak
    from numpy.typing import NDArray

__all__ = [
    "Client",
    "example",
    "histograms",
    "inspect",
    "load",
    "predict",
    "read",
    "report",
    "score",
    "serve_files",
    "service",
    "train",
    "train_folder",
    "watch",
]
Files = str | Path | Sequence[str | Path]


def example(folder: str | Path, events: int = 6_000) -> Path:
    """Make the example's simulated collisions, as `mlaas4hep example-data` does, unless the folder is there already."""
    from mlaas4hep.example.generate import write_example

    folder = Path(folder)
    if not folder.exists():
        write_example(folder, events, seed=1)
    return folder


def serve_files(folder: str | Path) -> DataServer:
    """Serve a folder over HTTP, on this computer only; `url` and `sent` tell its address and the bytes it has sent."""
    return DataServer(Path(folder))


def service(folder: str | Path = "service") -> Client:
    """A client of the service that MLAAS4HEP_URL names, or else of one that is started here and ends with the notebook.

    Args:
        folder: for the data of a service that is started.

    Raises MlaasError for a service that does not start.
    """
    return start_service(Path(folder))


def inspect(path: str | Path, dtype: str = "") -> FileContents:
    """What a file holds: trees, branches, and histograms of the first entries.

    Args:
        path: a local path, or URL.
        dtype: the format, "" to go by the suffix.

    Raises MlaasError for a file that cannot be read.
    """
    return contents(str(path), format_of(str(path), dtype))


def read(
    files: Files, branches: Sequence[str], *, tree: str = "Events", entries: int = 100_000, dtype: str = ""
) -> dict[str, NDArray[Any] | ak.Array]:
    """Values of some branches; only these are read, also over a network.

    Args:
        files: paths, patterns or URLs; see `resolve_files`.
        branches: their names.
        tree: the tree to read where a file names none.
        entries: most entries of each file.
        dtype: the format, "" to go by the suffixes.

    Returns for each branch an array of shape (n, ...), of a jagged branch an awkward array of n lists.

    Raises UsageError for a branch that a file does not have (with near misses), MlaasError for what cannot be read.
    """
    import awkward as ak

    sources = resolve_files(_listed(files), tree, dtype=dtype)
    load_clients(sources)
    blocks = [block for source in sources for block in _blocks(source, branches, entries)]
    if not blocks:
        raise MlaasError(f"{_listed(files)} has no entries.")
    found: dict[str, Any] = {}
    for name in branches:
        column = joined([block.columns[name] for block in blocks])
        if isinstance(column, JaggedValues):
            content = ak.contents.NumpyArray(column.values)
            found[name] = ak.Array(ak.contents.ListOffsetArray(ak.index.Index64(column.offsets), content))
        else:
            found[name] = column.values
    return found


def _blocks(source: Source, branches: Sequence[str], entries: int) -> list[Block]:
    with open_source(source) as reader:
        known = [branch.name for branch in reader.branches]
        for name in branches:
            if name not in known:
                raise UsageError(f"{source} has no branch {name}.", did_you_mean(name, known, "branches"))
        return list(reader.blocks(branches, min(entries, reader.entries)))


def train(
    files: Files,
    labels: Sequence[object] | str,
    model: str | Path,
    out: str | Path,
    *,
    preprocessing: Mapping[str, Any] | None = None,
    tell: Tell | None = None,
    overwrite: bool = True,
    **parameters: Any,
) -> Bundle:
    """Train a model and write its folder.

    Args:
        files: paths, patterns or URLs; see `resolve_files`.
        labels: one a file, or the name of the branch that has them.
        model: the Python file with `model()`; `%%writefile model.py` makes one of a cell.
        out: the folder to write; it replaces an older model of this name.
        preprocessing: what is in a preproc.json.
        tell: listener of the progress; by default it is printed.
        overwrite: whether an older model is replaced.
        parameters: those of params.json, by name.

    Raises MlaasError or UsageError for anything that one can mend.
    """
    text = labels if isinstance(labels, str) else ",".join(map(str, labels))
    workflow = load_workflow(_listed(files), text, str(model), "", **parameters)
    if preprocessing is not None:
        workflow = replace(workflow, preprocessing=Preprocessing.from_json(preprocessing, "the preprocessing"))
    return _trained(workflow, out, tell, overwrite)


def train_folder(
    folder: str | Path, out: str | Path, *, tell: Tell | None = None, overwrite: bool = True, **parameters: Any
) -> Bundle:
    """Train the workflow of a folder, with these parameters instead of those of its params.json; see `train`."""
    return _trained(load_folder(Path(folder), **parameters), out, tell, overwrite)


def _trained(workflow: Workflow, out: str | Path, tell: Tell | None, overwrite: bool) -> Bundle:
    from mlaas4hep.training.experiment import train as run

    bundle = run(workflow, Path(out), tell or plain(sys.stdout), overwrite=overwrite)
    if bundle is None:
        raise MlaasError("This process is not the first of those that train together, and has no model.")
    return bundle


def load(folder: str | Path) -> Bundle:
    """Open a model folder. Raises MlaasError for one that is damaged or was changed."""
    return read_bundle(Path(folder))


def report(model: Bundle) -> Picture:
    """The report of a training: ROC, scores, confusion, inputs by class, importance. Raises MlaasError without one."""
    return report_of(model)


def predict(model: Bundle, events: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What a model says of events that are given by branch names and raw values; see `predict_events`."""
    return predict_events(model, events)


def score(model: Bundle, files: Files, out: str | Path, *, tell: Tell | None = None) -> Path:
    """Write the scores of files to a .root or .parquet file, replacing an older one; see `scoring`.

    Raises MlaasError or UsageError for what cannot be read or written.
    """
    from mlaas4hep.training.scoring import score_files

    sources = resolve_files(_listed(files), model.tree, model.redirector)
    score_files(model, sources, Path(out), tell or plain(sys.stdout), overwrite=True)
    return Path(out)


def watch(client: Client, job: str | Job, *, seconds: float = 3600.0, interval: float = 2.0) -> Job:
    """Show where a job stands until it has ended; returns it.

    Args:
        client: of its service.
        job: the job, or its id.
        seconds: for how long at most; the job itself goes on.
        interval: seconds between two looks.

    Raises MlaasError when the service does not answer.
    """
    key = job if isinstance(job, str) else job["id"]
    show = _live()
    end = time.monotonic() + seconds
    while True:
        found = client.job(key)
        show(found)
        if found["ended"] or time.monotonic() >= end:
            return found
        time.sleep(interval)


def _live() -> Callable[[Job], None]:
    """Shows a job in one place of a notebook, or elsewhere as a line for each state."""
    if "IPython" in sys.modules and sys.modules["IPython"].get_ipython() is not None:
        from IPython.display import display

        handle: Any = None

        def show(job: Job) -> None:
            nonlocal handle
            if handle is None:
                handle = display(job, display_id=True)
            else:
                handle.update(job)

        return show
    last = ""

    def tell(job: Job) -> None:
        nonlocal last
        line = f"{job['process_name']} {job['state']} {job['reason']}".strip()
        if line != last:
            print(line)
        last = line

    return tell


def _listed(files: Files) -> str:
    return ",".join(map(str, [files] if isinstance(files, str | Path) else files))
