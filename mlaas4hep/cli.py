"""The command `mlaas4hep`: inspect ROOT files, train, predict, and look after jobs on a platform."""

from __future__ import annotations

import json
import sys
import tempfile
import traceback
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from mlaas4hep import __version__
from mlaas4hep.errors import MlaasError, UsageError
from mlaas4hep.service.commands import jobs_app

app = typer.Typer(
    name="mlaas4hep",
    help="Train machine-learning models straight from ROOT files, and predict with them.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(jobs_app, name="job")


class ProgressMode(StrEnum):
    """How progress is shown."""

    AUTO = "auto"
    PLAIN = "plain"
    JSON = "json"
    NONE = "none"


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
    file: Annotated[str, typer.Argument(help="A ROOT file: a path, or root://host//path.")],
    tree: Annotated[str, typer.Option(help="Show only this tree.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the trees of a ROOT file: entries, sizes, and branches by kind."""
    from mlaas4hep.data.inspection import print_report, report_as_json
    from mlaas4hep.data.root import inspect_file

    report = inspect_file(file, tree)
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
    specs: Annotated[str, typer.Option(hidden=True)] = "",
    preproc: Annotated[str, typer.Option(hidden=True)] = "",
    dtype: Annotated[str, typer.Option(hidden=True)] = "root",
) -> None:
    """Train a Keras model on ROOT files and write it with its input layout, measures and provenance."""
    _refuse_later(specs, preproc, dtype)
    from mlaas4hep.training.experiment import train as run
    from mlaas4hep.training.progress import Finished, Note, shown
    from mlaas4hep.training.workflow import load_folder, load_workflow

    if folder and (files or labels or model or params):
        raise UsageError("--folder already names files, labels, model and parameters.", "Leave the others out.")
    if folder:
        workflow = load_folder(Path(folder), seed=seed, epochs=epochs)
    else:
        given = {"--files": files, "--labels": labels, "--model": model}
        if missing := [name for name, value in given.items() if not value]:
            raise UsageError(f"{' and '.join(missing)} missing.", "Give --files, --labels and --model, or --folder.")
        workflow = load_workflow(files, labels, model, params, seed=seed, epochs=epochs)
    with shown(progress.value) as tell:
        quiet = workflow.parameters.verbose == 0
        run(
            workflow,
            Path(fout),
            (lambda event: tell(event) if isinstance(event, Note | Finished) else None) if quiet else tell,
            overwrite=overwrite,
        )


def _refuse_later(specs: str, preproc: str, dtype: str) -> None:
    if specs:
        raise UsageError(
            "--specs is not supported by this version.", "Leave it out: the layout is found while the files are read."
        )
    if preproc:
        raise UsageError("--preproc is not supported by this version.")
    if dtype != "root":
        raise UsageError(f"--dtype {dtype} is not supported by this version.", "It reads ROOT files.")


@app.command()
def predict(
    bundle: Annotated[Path, typer.Argument(help="The model folder that train wrote.")],
    events: Annotated[str, typer.Argument(help="JSON file with one event or a list of them; - reads standard input.")],
) -> None:
    """Predict events that are given as JSON, with branch names and raw values; jagged branches are lists."""
    from mlaas4hep.training.bundle import read_bundle
    from mlaas4hep.training.prediction import predict_events

    opened = read_bundle(bundle)
    data = _read_events(events)
    answers = predict_events(opened, data if isinstance(data, list) else [data])
    print(json.dumps(answers if isinstance(data, list) else answers[0], indent=1))


def _read_events(path: str) -> Any:
    try:
        return json.loads(sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"The event {path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise UsageError(f"{'The event' if path == '-' else path} is not valid JSON: {error}.") from error


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
