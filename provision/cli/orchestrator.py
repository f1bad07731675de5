"""`provision orchestrator submit, list, show, logs, update, delete`: platforms that the PaaS orchestrator deploys."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from provision.cli import platforms
from provision.cli.completion import platform_names
from provision.cli.context import console, home, open_platform
from provision.errors import UsageError

if TYPE_CHECKING:
    from provision.plan import Plan
    from provision.tosca.orchestrator import Deployment, Orchestrator
    from provision.tosca.submission import Rendering, Submission

orchestrator = typer.Typer(
    name="orchestrator", help="Platforms that INDIGO's PaaS orchestrator deploys.", no_args_is_help=True
)

_URL = typer.Option("", "--url", envvar="ORCHENT_URL", help="Address of the orchestrator.", show_default=False)
_ACCOUNT = typer.Option(
    "", "--account", envvar="OIDC_ACCOUNT", help="Account of oidc-agent, by its short name.", show_default=False
)
_GROUP = typer.Option("", "--group", help="Group of users that it is for.")
_WHICH = typer.Argument(
    metavar="NAME|ID", help="Name of a platform, or id of a deployment.", autocompletion=platform_names
)
_INPUTS = typer.Option(None, "--inputs", help="YAML file with the values of the template's inputs.")
_PRIVATE = typer.Option(False, "--private", help="Of a folder or a spec, the template for private networks.")
_YES = typer.Option(False, "--yes", "-y", help="Do not ask.")
_DRY = typer.Option(False, "--dry-run", help="Show what would be sent and end.")
_JSON = typer.Option(False, "--json", help="Print JSON on standard output.")


@orchestrator.command()
def submit(
    source: Path = typer.Argument(
        metavar="SPEC|FOLDER|FILE", help="A spec, what `provision tosca render` made of one, or one template of it."
    ),
    name: str = typer.Option("", help="Name of the platform.  [the template's]"),
    inputs: Path | None = _INPUTS,
    private: bool = _PRIVATE,
    group: str = _GROUP,
    user: str = typer.Option("", help="Your account on the machine.  [your name on this computer]"),
    jump: str | None = typer.Option(
        None, metavar="USER@HOST[:PORT]", help="Jump host through which the machine is reached."
    ),
    timeout: int = typer.Option(0, min=0, max=10_000, help="Minutes that the orchestrator may try.  [its own rule]"),
    types: str = typer.Option("", metavar="URL", help="Of a spec: where the portfolio's types are, at a tag."),
    role: str = typer.Option("", metavar="URL", help="Of a spec: git repository of the role."),
    tag: str = typer.Option("", help="Of a spec: tag of that repository."),
    url: str = _URL,
    account: str = _ACCOUNT,
    yes: bool = _YES,
    dry_run: bool = _DRY,
    as_json: bool = _JSON,
) -> None:
    """Submit a platform, or go on with one whose submission was interrupted.

    Everything is checked first, as by `provision tosca check`; what will be sent is shown, and asked for. The machine
    is a platform like others once its host key is known.
    """
    from provision.tosca import deployed, submission

    out = console()
    wanted = submission.read(source, inputs, private, _rendering(types, role, tag))
    wanted = wanted.named(name) if name else wanted
    with home().folder(wanted.spec(f"{deployed.PREFIX}{url}", jump).name).lock():
        planned = deployed.plan(wanted, url, account, group, user, jump, timeout, home())
        if dry_run or not planned.resumed:
            _show_plan(planned, wanted, as_json)
        if dry_run:
            return
        if not planned.resumed and not yes and not out.confirm("Submit this?"):
            raise UsageError("Nothing was submitted.", "Answer y, or give --yes where there is no terminal.")
        out.say(f"{'Going on with' if planned.resumed else 'Submitting'} {planned.record.name}")
        record = deployed.execute(planned, out)
    if as_json:
        out.emit(record.model_dump(mode="json"))
    where = record.access.host if record.access else ""
    out.say(f"\n{record.name} is {record.state} at {where}; `provision delete {record.name}` deletes the deployment.")


def _rendering(types: str, role: str, tag: str) -> Rendering | None:
    from provision.tosca.render import Portfolio
    from provision.tosca.submission import Rendering

    if not (types and role and tag):
        return None
    # of a catalogue nothing is sent
    return Rendering(Portfolio(types, role, tag, guide="https://localhost/", icon="https://localhost/"), home().cache)


def _show_plan(planned: Plan, wanted: Submission, as_json: bool) -> None:
    from provision.tosca import deployed

    out, values = console(), planned.record.values
    if as_json:
        out.emit({"platform": wanted.name, "orchestrator": planned.record.spec.cloud, **_body(planned)})
        return
    out.data(f"Platform {wanted.name} by {planned.record.spec.cloud.removeprefix(deployed.PREFIX)}")
    out.data(f"  account of oidc-agent: {values['account']}; group: {values['group'] or 'none'}")
    out.data(f"  template: {wanted.document.get('description', '')}")
    rows = [(name, value, "chosen" if name in wanted.values else "default") for name, value in wanted.inputs.items()]
    if deployed.fills_users(planned.record):
        rows = [row for row in rows if row[0] != "users"]
        rows.append(("users", values["user"], "with the platform's own SSH key, and sudo"))
    out.table(["input", "value", ""], rows)


def _body(planned: Plan) -> dict[str, Any]:
    """What would be sent; the platform's key is made when it is."""
    from dataclasses import replace

    from provision.tosca import deployed

    key = planned.platform.folder.key.with_suffix(".pub")
    public = key.read_text().strip() if key.exists() else "(made at the submission)"
    return deployed.order(replace(planned.platform, public_key=public)).body()


@orchestrator.command("list")
def list_deployments(
    group: str = _GROUP,
    everybody: bool = typer.Option(False, "--all", help="Those of others as well, as far as they are shown."),
    url: str = _URL,
    account: str = _ACCOUNT,
    as_json: bool = _JSON,
) -> None:
    """List the deployments that one has made."""
    from provision.tosca.orchestrator import Orchestrator

    names = _names()
    with Orchestrator(url, account) as client:
        rows = [
            {
                "id": one.uuid,
                "platform": names.get(one.uuid, ""),
                "status": one.status,
                "task": one.task if one.in_progress else "",
                "provider": one.cloud_provider_name,
                "group": one.user_group,
                "created": one.creation_time,
            }
            for one in client.deployments(group, mine=not everybody)
        ]
    if as_json:
        console().emit(rows)
    elif rows:
        console().table([*rows[0]], [list(row.values()) for row in rows])
    else:
        console().say("There is no deployment; `provision orchestrator submit` makes one.")


@orchestrator.command()
def show(which: str = _WHICH, url: str = _URL, account: str = _ACCOUNT, as_json: bool = _JSON) -> None:
    """Show a deployment: state, outputs, what it consists of, and why it failed."""
    from provision.tosca.orchestrator import cause_of, plain

    out = console()
    client, uuid, name = _target(which, url, account)
    with client:
        found = client.deployment(uuid)
        nodes = client.nodes(uuid)
        cause = cause_of(found.status_reason, client.log(uuid)) if found.failed else ""
    if as_json:
        told = found.model_dump(mode="json") | {"platform": name, "cause": cause}
        out.emit({**told, "resources": [node.model_dump(mode="json") for node in nodes]})
        return
    facts = _facts(found, name) | {"cause": cause} | {key: plain(str(value)) for key, value in found.outputs.items()}
    facts = {key: word for key, word in facts.items() if word}
    for key, word in facts.items():
        out.data(f"{key:<{max(map(len, facts))}}  {word}")
    if nodes:
        out.data("")
        rows = [(node.tosca_node_name, node.tosca_node_type, node.state) for node in nodes]
        out.table(["resource", "type", "state"], rows)


def _facts(found: Deployment, name: str) -> dict[str, str]:
    return {
        "deployment": found.uuid,
        "platform": name,
        "status": found.status,
        "task": found.task if found.in_progress else "",
        "provider": found.cloud_provider_name,
        "group": found.user_group,
        "created": found.creation_time,
        "updated": found.update_time,
    }


@orchestrator.command()
def logs(which: str = _WHICH, url: str = _URL, account: str = _ACCOUNT) -> None:
    """Print the orchestrator's log of a deployment."""
    client, uuid, _ = _target(which, url, account)
    with client:
        console().data(client.log(uuid).rstrip("\n"))


@orchestrator.command()
def update(
    name: str = typer.Argument(help="Name of a platform that was submitted here.", autocompletion=platform_names),
    template: Path | None = typer.Option(
        None, "--template", help="A template, or the folder that `provision tosca render` made.  [the same]"
    ),
    inputs: Path | None = _INPUTS,
    private: bool = _PRIVATE,
    yes: bool = _YES,
    dry_run: bool = _DRY,
    as_json: bool = _JSON,
) -> None:
    """Send another template, or other values of inputs, for a platform that is there.

    Values that are not named stay. What can be changed is the orchestrator's to decide.
    """
    from provision.tosca import deployed, submission

    out = console()
    with home().folder(name).lock():
        opened = open_platform(name)
        cloud = opened.cloud
        if not isinstance(cloud, deployed.DeployedHost) or not deployed.deployment_of(opened.record):
            raise UsageError(f"The platform {name} has no deployment.", "`provision orchestrator list` shows them.")
        if opened.record.state == "deleting":
            raise UsageError(f"The platform {name} is half deleted.", f"End that first: `provision delete {name}`.")
        before = deployed.recorded(opened.record)
        wanted = submission.changed(before, template, inputs, private)
        rows = [
            (key, before.inputs.get(key), value)
            for key, value in wanted.inputs.items()
            if before.inputs.get(key) != value
        ]
        if as_json:
            out.emit(
                {"platform": name, "changes": [dict(zip(("input", "old", "new"), row, strict=True)) for row in rows]}
            )
        else:
            out.table(["input", "old", "new"], rows)
            out.data(f"The template is {'the same' if before.document == wanted.document else 'another'}.")
        if dry_run:
            return
        if not yes and not out.confirm(f"Update {name}?"):
            raise UsageError("Nothing was sent.", "Answer y, or give --yes where there is no terminal.")
        record = deployed.update(cloud, opened.platform, wanted, out)
    out.say(f"{name} is updated, and {record.state} at {record.access.host if record.access else ''}.")


@orchestrator.command()
def delete(
    which: str = _WHICH,
    stuck: bool = typer.Option(False, "--stuck", help="Begin again with a deletion that does not come to its end."),
    url: str = _URL,
    account: str = _ACCOUNT,
    yes: bool = _YES,
    dry_run: bool = typer.Option(False, "--dry-run", help="Show what would be deleted and end."),
    as_json: bool = _JSON,
) -> None:
    """Delete a deployment, with its machine and the record of its platform.

    Models that were not fetched are lost. `provision delete NAME` does the same.
    """
    from provision.tosca import deployed

    out = console()
    client, uuid, name = _target(which, url, account)
    with client:
        found, nodes = client.deployment(uuid), client.nodes(uuid)
        if as_json:
            out.emit({**found.model_dump(mode="json"), "resources": [node.model_dump(mode="json") for node in nodes]})
        else:
            for key, word in _facts(found, name).items():
                out.data(f"  {key}: {word or '-'}")
            out.data(f"  resources: {', '.join(node.tosca_node_name for node in nodes) or 'none'}")
        if dry_run:
            return
        if not yes and not out.confirm("Delete all this?"):
            raise UsageError("Nothing was deleted.", "Answer y, or give --yes where there is no terminal.")
        if stuck and found.status == "DELETE_IN_PROGRESS":
            client.give_up(uuid)
        if not name:
            with out.stage(f"deleting the deployment {uuid}") as stage:
                deployed.remove(client, uuid, stage.note)
            return
    platforms.delete(name, yes=True, uninstall=False, dry_run=False, as_json=False)


def _names() -> dict[str, str]:
    """The platforms of this computer by the ids of their deployments."""
    from provision.tosca.deployed import deployment_of

    records = [folder.load() for folder in home().folders()]
    return {uuid: record.name for record in records if (uuid := deployment_of(record))}


def _target(which: str, url: str, account: str) -> tuple[Orchestrator, str, str]:
    """Who is asked, the deployment's id, and the name of its platform if this computer has one.

    Raises UsageError for a name that no platform has, and for a platform that was not submitted.
    """
    from provision.tosca.deployed import DeployedHost
    from provision.tosca.orchestrator import ID_PATTERN, Orchestrator

    name = _names().get(which, which)
    if re.fullmatch(ID_PATTERN, name):
        return Orchestrator(url, account), name, ""
    opened = open_platform(name)
    if not isinstance(opened.cloud, DeployedHost):
        raise UsageError(f"The platform {name} was not made by an orchestrator.", f"`provision show {name}` shows it.")
    found = opened.cloud.discover(opened.platform)
    if not found:
        raise UsageError(f"The platform {name} has no deployment (any more).", f"`provision delete {name}` forgets it.")
    return opened.cloud.client(opened.platform), found[0].id, name


def register(app: typer.Typer) -> None:
    """Add the group of commands."""
    app.add_typer(orchestrator)
