"""The commands `mlaas4hep client ...`: a service, from anywhere."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlaas4hep.errors import UsageError

if TYPE_CHECKING:
    from mlaas4hep.client import Client

_OPTIONS: dict[str, Any] = {"no_args_is_help": True, "rich_markup_mode": None, "pretty_exceptions_enable": False}
client_app = typer.Typer(help="A service: workspaces, jobs, models, predictions.", **_OPTIONS)
workspaces_app = typer.Typer(help="Workspaces.", **_OPTIONS)
models_app = typer.Typer(help="Models.", **_OPTIONS)
client_app.add_typer(workspaces_app, name="workspaces")
client_app.add_typer(models_app, name="models")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Source = Annotated[str, typer.Argument(help="A folder, which is uploaded first, or the name of a workspace.")]
Parameters = Annotated[list[str], typer.Option("--parameter", "-p", help="NAME=VALUE, instead of the file's.")]
JobName = Annotated[str, typer.Argument(help="The job: its id, or NAME_1.")]
_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_connection: dict[str, str] = {}


@client_app.callback()
def _root(
    url: Annotated[str, typer.Option(envvar="MLAAS4HEP_URL", help="The service's address.")] = "",
    inference: Annotated[
        str, typer.Option(envvar="MLAAS4HEP_INFERENCE_URL", help="That of its inference server, if it has one.")
    ] = "",
    ca_file: Annotated[str, typer.Option(help="Certificates to trust, PEM.")] = "",
) -> None:
    """Tokens are taken from MLAAS4HEP_TOKEN_FILE, MLAAS4HEP_TOKEN, or from oidc-agent's account OIDC_ACCOUNT."""
    _connection.update(url=url, inference=inference, ca_file=ca_file)


def _client() -> Client:
    from mlaas4hep.client import Client

    return Client(_connection["url"], inference=_connection["inference"], ca_file=_connection["ca_file"] or None)


@client_app.command()
def me(as_json: AsJson = False) -> None:
    """Show who you are and what you may do."""
    with _client() as client:
        facts = client.me()
    _show(facts, as_json, [f"{name:<8} {_text(value)}" for name, value in facts.items()])


@client_app.command()
def check(source: Source, parameter: Parameters = [], as_json: AsJson = False) -> None:  # noqa: B006
    """Look at what a training would read, without submitting it."""
    parameters = dict(_parameter(text) for text in parameter)
    with _client() as client:
        found = client.check(_workspace(client, source), parameters=parameters)
    files = f"{found['looked']} of {found['number']} looked at, {found['entries']} entries"
    shown = {"files": files, "servers": found["servers"]} | found["inputs"]
    shown |= {name: found[name] for name in ("width", "label", "classes", "weight")}
    lines = [f"{name:<12} {_text(value)}" for name, value in shown.items() if value]
    _show(found, as_json, [*lines, *found["notes"]])


@client_app.command()
def submit(
    source: Source,
    name: Annotated[str, typer.Option(help="Of the job and its model; by default the workspace's.")] = "",
    parameter: Parameters = [],  # noqa: B006
    cpus: Annotated[int, typer.Option(help="Processor cores.")] = 1,
    memory: Annotated[str, typer.Option(help="Memory, like 3GB.")] = "2GB",
    gpus: Annotated[int, typer.Option(help="GPUs.")] = 0,
    hours: Annotated[float, typer.Option(help="Longest time.")] = 24.0,
    as_json: AsJson = False,
) -> None:
    """Submit a training."""
    resources = {"cpus": cpus, "memory": _bytes(memory), "gpus": gpus, "seconds": int(hours * 3600)}
    parameters = dict(_parameter(text) for text in parameter)
    with _client() as client:
        workspace = _workspace(client, source)
        _show_job(client.submit(workspace, name=name, parameters=parameters, resources=resources), as_json)


@client_app.command()
def jobs(as_json: AsJson = False) -> None:
    """List your jobs, the newest first."""
    with _client() as client:
        found = list(client.jobs())
    _show(found, as_json, map(_job_line, found))


@client_app.command()
def status(job: JobName, as_json: AsJson = False) -> None:
    """Show where a job stands."""
    with _client() as client:
        _show_job(client.job(client.job(job)["id"]), as_json)


@client_app.command()
def logs(
    job: JobName, follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until it has ended.")] = False
) -> None:
    """Print what a job has printed."""
    with _client() as client:
        key = client.job(job)["id"]
        for piece in client.follow_log(key) if follow else [client.log(key)]:
            print(piece, end="", flush=True)


@client_app.command()
def cancel(job: JobName, as_json: AsJson = False) -> None:
    """Stop a job."""
    with _client() as client:
        _show_job(client.cancel(client.job(job)["id"]), as_json)


@client_app.command()
def resubmit(job: JobName, as_json: AsJson = False) -> None:
    """Submit the same inputs again."""
    with _client() as client:
        _show_job(client.resubmit(client.job(job)["id"]), as_json)


@client_app.command()
def delete(job: JobName) -> None:
    """Delete a job that has ended; its model stays."""
    with _client() as client:
        client.delete_job(client.job(job)["id"])


@client_app.command()
def fetch(
    job: JobName, folder: Annotated[Path, typer.Argument(help="Folder to make; by default NAME_1.")] = Path()
) -> None:
    """Get the model folder of a finished job."""
    with _client() as client:
        found = client.job(job)
        target = folder if folder != Path() else Path(found["process_name"])
        client.fetch(found["id"], target)
    print(target)


@client_app.command()
def predict(
    model: Annotated[str, typer.Argument(help="A model of yours, or NAMESPACE.NAME.")],
    events: Annotated[
        str, typer.Argument(help="JSON file with one event, a list of them, or columns; - reads standard input.")
    ],
    version: Annotated[int | None, typer.Option(help="By default the one that its owner has chosen.")] = None,
) -> None:
    """Predict events."""
    try:
        text = sys.stdin.read() if events == "-" else Path(events).read_text(encoding="utf-8")
        data = json.loads(text)
    except OSError as error:
        raise UsageError(f"The events {events} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise UsageError(f"{events} is not valid JSON: {error}.") from error
    with _client() as client:
        print(json.dumps(client.predict(model, data, version), indent=1))


@workspaces_app.command("list")
def list_workspaces(as_json: AsJson = False) -> None:
    """List your workspaces."""
    with _client() as client:
        found = client.workspaces()
    _show(found, as_json, [f"{item['name']:<24} {item['bytes']:>14} bytes {item['files']:>6} files" for item in found])


@workspaces_app.command("upload")
def upload_workspace(
    source: Annotated[Path, typer.Argument(help="A folder, a tar.gz, or with --into a file.")],
    name: Annotated[str, typer.Option(help="Of the workspace; by default the source's.")] = "",
    into: Annotated[str, typer.Option(help="Put one file into this workspace instead.")] = "",
    as_json: AsJson = False,
) -> None:
    """Upload a folder as a workspace, replacing what it has."""
    with _client() as client:
        if into:
            done = client.upload_file(into, source)
            line = f"{done['path']}  {done['bytes']} bytes"
        else:
            done = client.upload(name or source.absolute().name.removesuffix(".tar.gz").removesuffix(".tgz"), source)
            line = f"{done['name']}  {done['bytes']} bytes  {done['files']} files"
    _show(done, as_json, [line])


@workspaces_app.command("files")
def list_files(name: str, as_json: AsJson = False) -> None:
    """List the files of a workspace."""
    with _client() as client:
        found = client.files(name)
    _show(found, as_json, [f"{item['bytes']:>14} {item['path']}" for item in found])


@workspaces_app.command("delete")
def delete_workspace(name: str) -> None:
    """Delete a workspace."""
    with _client() as client:
        client.delete_workspace(name)


@models_app.command("list")
def list_models(as_json: AsJson = False) -> None:
    """List the models that you may use."""
    with _client() as client:
        found = client.models()
    lines = [f"{item['name']:<32} {len(item['versions'])} versions, default {_default(item)}" for item in found]
    _show(found, as_json, lines)


@models_app.command("card")
def show_card(model: str, version: int, as_json: AsJson = False) -> None:
    """Show what a version is."""
    with _client() as client:
        card = client.card(model, version)
    _show(card, as_json, [card["card"]])


@models_app.command("fetch")
def fetch_model(model: str, version: int, folder: Path) -> None:
    """Get the folder of a version."""
    with _client() as client:
        client.fetch_model(model, version, folder)


@models_app.command("share")
def share_model(
    model: str, groups: Annotated[list[str] | None, typer.Argument(help="Exactly these; none to end it.")] = None
) -> None:
    """Let the members of groups use a model."""
    with _client() as client:
        client.share(model, groups or [])


@models_app.command("promote")
def promote_model(
    model: str, version: Annotated[int | None, typer.Argument(help="None for always the newest.")] = None
) -> None:
    """Choose the version that is used when none is named."""
    with _client() as client:
        client.promote(model, version)


@models_app.command("delete")
def delete_model(model: str, version: Annotated[int | None, typer.Argument(help="Only this version.")] = None) -> None:
    """Delete a model or a version."""
    with _client() as client:
        client.delete_model(model, version)


def _workspace(client: Client, source: str) -> str:
    """The workspace that is meant; a folder becomes one of its own name."""
    if "/" not in source and not Path(source).is_dir():
        return source
    name = Path(source).absolute().name
    client.upload(name, Path(source))
    return name


def _show(data: Any, as_json: bool, lines: Any) -> None:
    if as_json:
        print(json.dumps(data, indent=1))
    else:
        for line in lines:
            print(line)


def _show_job(job: dict[str, Any], as_json: bool) -> None:
    _show(job, as_json, [_job_line(job)])


def _job_line(job: dict[str, Any]) -> str:
    when = job["ended"] or job["started"] or job["submitted"]
    reason = f"  {job['reason']}" if job["reason"] else ""
    return f"{job['process_name']:<24} {job['id']} {job['state']:<14} {when[:19]}{reason}"


def _default(model: dict[str, Any]) -> Any:
    return model["default"] or model["versions"][-1]


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{name} {item}" for name, item in value.items())
    return str(value)


def _parameter(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"{text!r} is no parameter.", "Write it like epochs=5.")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _bytes(text: str) -> int:
    matched = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)i?b?", text.strip(), re.IGNORECASE)
    if matched is None:
        raise UsageError(f"{text!r} is no amount of memory.", "Write it like 3GB.")
    return int(float(matched[1]) * _UNITS[matched[2].lower()])
