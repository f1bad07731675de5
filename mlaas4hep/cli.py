"""The command `mlaas4hep`: inspect ROOT files, train, predict, and look after jobs on a platform."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from mlaas4hep import __version__
from mlaas4hep.client_commands import client_app
from mlaas4hep.errors import MlaasError, UsageError
from mlaas4hep.service.commands import jobs_app

app = typer.Typer(
    name="mlaas4hep",
    help="Train machine-learning models straight from ROOT files, and predict with them.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(jobs_app, name="job")
app.add_typer(client_app, name="client")


class ProgressMode(StrEnum):
    """How progress is shown."""

    AUTO = "auto"
    PLAIN = "plain"
    JSON = "json"
    NONE = "none"


class ServicePart(StrEnum):
    """What `serve` runs."""

    ALL = "all"
    CONTROL = "control"
    INFERENCE = "inference"


def main() -> None:
    """Entry point: every failure becomes one sentence on standard error and the exit status 1 or 2."""
    try:
        app()
    except MlaasError as error:
        print(f"mlaas4hep: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except Exception as error:
        print(
            f"mlaas4hep: an error of mlaas4hep itself, {type(error).__name__}: {error}. "
            f"Please report it with {_write_log()}",
            file=sys.stderr,
        )
        sys.exit(1)


def _write_log() -> str:
    """Keep the traceback of the present exception; returns where."""
    with tempfile.NamedTemporaryFile("w", prefix="mlaas4hep-", suffix=".log", delete=False) as stream:
        stream.write(f"mlaas4hep {__version__}\n{' '.join(sys.argv)}\n{traceback.format_exc()}")
        return stream.name


def _version(wanted: bool) -> None:
    if wanted:
        print(f"mlaas4hep {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Train machine-learning models straight from ROOT files, and predict with them."""


@app.command()
def inspect(
    file: Annotated[str, typer.Argument(help="A data file: a path, or root:// or https:// URL.")],
    tree: Annotated[str, typer.Option(help="Show only this tree.")] = "",
    dtype: Annotated[str, typer.Option(help="The format, where the suffix does not tell.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a data file holds (ROOT, Parquet, CSV, JSON, Avro): entries, sizes, and branches by kind."""
    from mlaas4hep.data.formats import inspect_source
    from mlaas4hep.data.inspection import print_report, report_as_json

    report = inspect_source(file, tree, dtype)
    if as_json:
        print(json.dumps(report_as_json(report), indent=1))
    else:
        print_report(report)


@app.command()
def train(
    files: Annotated[
        str, typer.Option(help="Text file with one ROOT file a line, a comma-separated list, or a pattern.")
    ] = "",
    labels: Annotated[
        str, typer.Option(help="Text file with one label a line, a comma-separated list, or the label's branch.")
    ] = "",
    model: Annotated[str, typer.Option(help="Python file with model(idim) or model(schema).")] = "",
    params: Annotated[str, typer.Option(help="JSON file with the parameters.")] = "",
    folder: Annotated[
        str, typer.Option(help="Folder with files.txt, labels.txt, model.py and params.json, instead of those four.")
    ] = "",
    fout: Annotated[str, typer.Option(help="Folder to write the model to.")] = "model",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an older model folder.")] = False,
    seed: Annotated[int | None, typer.Option(help="Start of all random numbers.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the events, instead of the parameter's.")] = None,
    progress: Annotated[ProgressMode, typer.Option(help="How progress is shown.")] = ProgressMode.AUTO,
    specs: Annotated[
        str, typer.Option(help="Specs file with ranges and multiplicities, instead of those of the files.")
    ] = "",
    preproc: Annotated[str, typer.Option(help="JSON or Python file with the preprocessing.")] = "",
    dtype: Annotated[
        str, typer.Option(help="Format of all files: root, csv, json, parquet or avro; by their suffixes without it.")
    ] = "",
) -> None:
    """Train a model on ROOT files and write it with its input layout, measures and provenance."""
    from mlaas4hep.training.experiment import train as run
    from mlaas4hep.training.launch import Workers, launch
    from mlaas4hep.training.preparation import prepare
    from mlaas4hep.training.progress import Finished, Note, shown
    from mlaas4hep.training.workflow import load_folder, load_workflow

    if folder and (files or labels or model or params or preproc):
        raise UsageError("--folder already names files, labels, model and parameters.", "Leave the others out.")
    if folder:
        workflow = load_folder(Path(folder), dtype=dtype, specs=specs, seed=seed, epochs=epochs)
    else:
        given = {"--files": files, "--labels": labels, "--model": model}
        if missing := [name for name, value in given.items() if not value]:
            raise UsageError(f"{' and '.join(missing)} missing.", "Give --files, --labels and --model, or --folder.")
        workflow = load_workflow(
            files, labels, model, params, preproc=preproc, dtype=dtype, specs=specs, seed=seed, epochs=epochs
        )
    workers = Workers.here()
    if workflow.parameters.workers > workers.world:
        # the store is made before they start, so that they do not wait for one of them in the middle
        with shown(progress.value) as tell:
            prepare(workflow, tell)
        raise typer.Exit(launch(workflow.parameters.workers, [sys.executable, "-m", "mlaas4hep.cli", *sys.argv[1:]]))
    with shown("none" if workers.rank else progress.value) as tell:
        quiet = workflow.parameters.verbose == 0
        run(
            workflow,
            Path(fout),
            (lambda event: tell(event) if isinstance(event, Note | Finished) else None) if quiet else tell,
            overwrite=overwrite,
        )


@app.command()
def predict(
    bundle: Annotated[Path, typer.Argument(help="The model folder that train wrote.")],
    files: Annotated[
        list[str],
        typer.Argument(
            help="Data files, patterns or URLs, or a text file with one a line; or a JSON file with one event or a "
            "list of them, where - reads standard input."
        ),
    ],
    out: Annotated[Path, typer.Option(help="File for the scores of data files, .root or .parquet.")] = Path(
        "scores.root"
    ),
    tree: Annotated[str, typer.Option(help="The tree to read where a file names none.")] = "",
    dtype: Annotated[str, typer.Option(help="Format of the data files, where their suffixes do not tell.")] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an older file.")] = False,
    progress: Annotated[ProgressMode, typer.Option(help="How progress is shown.")] = ProgressMode.AUTO,
) -> None:
    """Predict: write the scores of data files to a file, or answer for events that are given as JSON."""
    if not dtype and len(files) == 1 and (files[0] == "-" or files[0].endswith(".json")):
        _answer(bundle, files[0])
        return
    from mlaas4hep.data.sources import resolve_files
    from mlaas4hep.training.bundle import read_bundle
    from mlaas4hep.training.progress import shown
    from mlaas4hep.training.scoring import score_files

    opened = read_bundle(bundle)
    sources = resolve_files(",".join(files), tree or opened.tree, opened.redirector, dtype)
    with shown(progress.value) as tell:
        score_files(opened, sources, out, tell, overwrite=overwrite)


@app.command()
def specs(
    files: Annotated[
        str, typer.Option(help="Text file with one data file a line, a comma-separated list, or a pattern.")
    ],
    params: Annotated[str, typer.Option(help="JSON file with the parameters.")] = "",
    fout: Annotated[Path, typer.Option(help="Folder to write to.")] = Path(),
    dtype: Annotated[str, typer.Option(help="Format of the data files, where their suffixes do not tell.")] = "",
    progress: Annotated[ProgressMode, typer.Option(help="How progress is shown.")] = ProgressMode.AUTO,
) -> None:
    """Write dimensions, minima and maxima as MLaaS4HEP does: specs-FILE.json for each file and global-specs.json."""
    from mlaas4hep.data.sources import resolve_files
    from mlaas4hep.data.specs import write_specs
    from mlaas4hep.training.parameters import load_parameters, parse_parameters
    from mlaas4hep.training.progress import Reading, shown

    parameters = load_parameters(Path(params)) if params else parse_parameters({}, "the command line")
    sources = resolve_files(files, parameters.branch, parameters.redirector, dtype)
    with shown(progress.value) as tell:
        written = write_specs(
            sources,
            fout,
            nevts=parameters.nevts,
            selected=parameters.selected_branches,
            excluded=parameters.exclude_branches,
            identifiers=parameters.identifier,
            watch=lambda done, total: tell(Reading(done, total)),
        )
    for path in written:
        print(path)


def _answer(bundle: Path, events: str) -> None:
    """Print what a model says of events given as JSON."""
    with _numpy_kernels():
        from mlaas4hep.training.bundle import read_bundle
        from mlaas4hep.training.prediction import predict_events

    opened = read_bundle(bundle)
    data = _read_events(events)
    answers = predict_events(opened, data if isinstance(data, list) else [data])
    print(json.dumps(answers if isinstance(data, list) else answers[0], indent=1))


@contextmanager
def _numpy_kernels() -> Iterator[None]:
    """Do without numba, unless it is asked for: a few events are predicted sooner than it is loaded."""
    name = "MLAAS4HEP_KERNELS"
    asked = name in os.environ
    os.environ.setdefault(name, "numpy")
    try:
        yield
    finally:
        if not asked:
            del os.environ[name]


def _read_events(path: str) -> Any:
    try:
        return json.loads(sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"The event {path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise UsageError(f"{'The event' if path == '-' else path} is not valid JSON: {error}.") from error


@app.command()
def serve(
    config: Annotated[
        Path | None, typer.Option(help="Settings; by default MLAAS4HEP_CONFIG or /etc/mlaas4hep/service.toml.")
    ] = None,
    part: Annotated[ServicePart, typer.Option(help="Only one part of the service.")] = ServicePart.ALL,
) -> None:
    """Run the service: users, jobs, models and inference over HTTP."""
    from mlaas4hep.service.serve import serve as run

    run(config, part.value)


@app.command("example-data")
def example_data(
    folder: Annotated[Path, typer.Argument(help="Folder to make.")],
    events: Annotated[int, typer.Option(min=100, help="Number of events, signal and background together.")] = 20_000,
    seed: Annotated[int, typer.Option(min=0, help="Start of the random numbers.")] = 1,
) -> None:
    """Make an example to train on: simulated signal and background ROOT files with everything that train needs."""
    from mlaas4hep.example.generate import write_example

    write_example(folder, events, seed)
    print(f"Made {events} events in {folder}. Train on them with")
    print(f"  mlaas4hep train --folder {folder} --fout MODEL")


@app.command()
def notebooks(folder: Annotated[Path, typer.Argument(help="Folder to copy them to; it is made.")]) -> None:
    """Copy the example notebooks, for Jupyter, into a folder; those that it has already stay as they are."""
    from mlaas4hep.example.notebooks import copy_notebooks

    copied, there = copy_notebooks(folder)
    for path in copied:
        print(path)
    for path in there:
        print(f"{path} is there already.")


if __name__ == "__main__":
    main()
