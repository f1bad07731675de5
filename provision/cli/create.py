"""`provision create`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from provision.cli.completion import platform_names
from provision.cli.context import console, home
from provision.cli.platforms import show_slowest
from provision.errors import UsageError

if TYPE_CHECKING:
    from provision.clouds.base import Offer
    from provision.plan import Plan


def create(
    name: str = typer.Argument(
        "", help="Name of the platform; it becomes the host name and the name for ssh.", autocompletion=platform_names
    ),
    spec: Path | None = typer.Option(
        None, "--spec", "-f", help="YAML file with the fields below; options win over it."
    ),
    cloud: str | None = typer.Option(
        None,
        help="local, ssh:USER@HOST[:PORT], or NAME[/REGION] of clouds.yaml; of several, with commas between them, the"
        " first that serves.  [local]",
    ),
    cpus: int | None = typer.Option(None, help="CPUs at least.  [2]"),
    memory: str | None = typer.Option(None, help="Memory at least, for instance 8GB.  [4GB]"),
    disk: str | None = typer.Option(None, help="Disk at least.  [20GB]"),
    data_volume: str | None = typer.Option(
        None,
        metavar="SIZE|NAME",
        help="A volume that outlives the machine, for all data: a new one, or one that was kept.  [none]",
    ),
    gpu: str | None = typer.Option(
        None, metavar="[MODEL][:N][/MIG]", help="GPUs: T4, A100:2, any, 2, A100/2x3g.40gb.  [none]"
    ),
    image: str | None = typer.Option(None, help="Name or id of an image.  [the newest that the roles serve]"),
    network: str | None = typer.Option(None, help="Name or id of a network.  [the project's own, or a new one]"),
    ports: list[int] | None = typer.Option(None, help="TCP port to open beside SSH; may be repeated."),
    ttl: str | None = typer.Option(None, help="Power the machine off after this time: 12h, 7d, 2w.  [never]"),
    idle_stop: str | None = typer.Option(
        None, help="Power the machine off when nobody has used it for this time: 2h, 1d.  [never]"
    ),
    jump: str | None = typer.Option(
        None, metavar="USER@HOST[:PORT]", help="Jump host through which the machine is reached."
    ),
    framework: list[str] | None = typer.Option(
        None, metavar="NAME|WHEEL", help="keras, sklearn and xgboost are always there; torch if named. May be repeated."
    ),
    mlaas4hep: str | None = typer.Option(
        None, metavar="VERSION|WHEEL", help="Released version or wheel of MLaaS4HEP.  [this toolkit's]"
    ),
    monitoring: str | None = typer.Option(
        None,
        metavar="none|exporters|prometheus",
        help="Figures for a Prometheus elsewhere, or one on the machine as well.  [none]",
    ),
    jupyter: bool | None = typer.Option(
        None, "--jupyter/--no-jupyter", help="JupyterLab with the framework; for a shared service JupyterHub.  [no]"
    ),
    cvmfs: list[str] | None = typer.Option(
        None, metavar="REPOSITORY", help="Repository of CVMFS, for instance cms.cern.ch; may be repeated."
    ),
    cvmfs_proxy: str | None = typer.Option(
        None, metavar="URL[|URL]", help="HTTP proxies through which CVMFS is read.  [DIRECT]"
    ),
    service: str | None = typer.Option(
        None, metavar="personal|shared", help="Who uses the platform: you over SSH, or many by HTTPS.  [personal]"
    ),
    domain: str | None = typer.Option(None, help="Shared service: its DNS name, which must lead to the machine."),
    iam: str | None = typer.Option(None, metavar="URL", help="Shared service: OpenID Connect issuer of its users."),
    client_id: str | None = typer.Option(None, help="Shared service: its client, and audience, at the issuer."),
    iam_ca: str | None = typer.Option(
        None, metavar="FILE", help="Shared service: the issuer's CA, PEM.  [the public ones]"
    ),
    executor: str | None = typer.Option(
        None, metavar="local|slurm", help="Shared service: what runs its jobs; slurm needs Debian 12.  [local]"
    ),
    endpoint: list[str] | None = typer.Option(
        None, metavar="HOST:PORT", help="Shared service: a server that its jobs may read from. May be repeated."
    ),
    policy: str | None = typer.Option(
        None, metavar="FILE", help="Shared service: who may do what.  [whoever has a token submits and predicts]"
    ),
    group: list[str] | None = typer.Option(
        None, metavar="/GROUP", help="Shared service: a group of the issuer that may use it. May be repeated.  [all]"
    ),
    admin_group: list[str] | None = typer.Option(
        None, metavar="/GROUP", help="Shared service: a group that may do everything. May be repeated.  [none]"
    ),
    tls: str | None = typer.Option(
        None,
        metavar="acme|acme-staging|internal",
        help="Shared service: its certificate, from Let's Encrypt or a CA of its own.  [acme]",
    ),
    certificate: str | None = typer.Option(None, metavar="FILE", help="Shared service: a certificate of yours, PEM."),
    certificate_key: str | None = typer.Option(None, metavar="FILE", help="Shared service: its private key, PEM."),
    workers: int | None = typer.Option(
        None, help="Machines more, on which Slurm runs the jobs; they share one folder of data.  [0]"
    ),
    worker_flavor: str | None = typer.Option(
        None, metavar="NAME", help="Flavor of the workers.  [chosen by the wishes above]"
    ),
    bare: bool = typer.Option(False, "--bare", help="The machine only: apply no roles."),
    yes: bool = typer.Option(False, "--yes", "-y", help="Do not ask."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Show the plan and end."),
    explain: bool = typer.Option(
        False, "--explain", help="Print the plan as a script of `openstack` commands that makes the same, and end."
    ),
    timing: bool = typer.Option(False, "--timing", help="Name the tasks that took longest, at the end."),
    as_json: bool = typer.Option(False, "--json", help="Print plan or record as JSON on standard output."),
) -> None:
    """Create a platform, or finish one that was interrupted.

    Shows what will be made, which flavor and image were chosen and why, and the quota; asks once.
    """
    from provision.plan import plan_among
    from provision.spec import make_specs, read_spec

    wishes = read_spec(spec) if spec else {}
    given = {
        "name": name or None,
        "cloud": cloud,
        "cpus": cpus,
        "memory": memory,
        "disk": disk,
        "data_volume": data_volume,
        "gpu": gpu,
        "image": image,
        "network": network,
        "ports": ports or None,
        "ttl": ttl,
        "idle_stop": idle_stop,
        "jump": jump,
        "frameworks": framework or None,
        "mlaas4hep": mlaas4hep,
        "monitoring": monitoring,
        "jupyter": jupyter,
        "cvmfs": cvmfs or None,
        "cvmfs_proxy": cvmfs_proxy,
        "service": service,
        "domain": domain,
        "iam": iam,
        "client_id": client_id,
        "iam_ca": iam_ca,
        "executor": executor,
        "endpoints": endpoint or None,
        "policy": policy,
        "groups": group or None,
        "admin_groups": admin_group or None,
        "tls": tls,
        "certificate": certificate,
        "certificate_key": certificate_key,
        "workers": workers,
        "worker_flavor": worker_flavor,
    }
    wishes |= {field: value for field, value in given.items() if value is not None}
    if "name" not in wishes:
        raise UsageError("The platform has no name.", "Write `provision create NAME`, or a name in the spec file.")
    specs = make_specs(wishes)
    wanted = specs[0]
    out = console()
    with home().folder(wanted.name).lock():
        plan = plan_among(specs, home(), bare)
        if explain:
            out.data(plan.explain().rstrip("\n"))
            return
        if dry_run:
            out.emit(as_data(plan)) if as_json else show(plan)
            return
        if not plan.resumed and not (as_json and yes):
            show(plan)
        if not plan.resumed and not yes and not out.confirm("Create this platform?"):
            raise UsageError("Nothing was created.", "Answer y, or give --yes where there is no terminal.")
        out.say(f"{'Going on with' if plan.resumed else 'Creating'} {wanted.name}")
        with plan.cloud.exclusively(plan.platform, out.say):
            record = plan.execute(out)
    if as_json:
        out.emit(record.model_dump(mode="json"))
        return
    where = record.access.host if record.access else ""
    out.say(f"\n{record.name} is {record.state} at {where}.")
    out.say(f"  ssh {record.name}                       log in")
    if record.state == "ready":
        out.say(f"  provision train {record.name} FOLDER    train a model there")
        if wanted.domain:
            out.say(f"  https://{wanted.domain}   the service, once the name leads to {where}")
    out.say(f"  provision delete {record.name}          remove everything that was made")
    if timing and not bare:
        show_slowest(plan.platform.folder)


def show(plan: Plan) -> None:
    """The plan for people: facts, what was considered, quota, steps."""
    out = console()
    spec = plan.platform.spec
    out.data(f"Platform {spec.name} on {spec.cloud}")
    for name, value in plan.offer.facts.items():
        out.data(f"  {name}: {value}")
    show_offer(plan.offer)
    minutes = max(1, round(plan.seconds / 60))
    out.data(f"\nSteps (about {minutes} min in all):")
    for number, step in enumerate(plan.steps(lambda _: None), start=1):
        out.data(f"  {number:>2}. {step.title}")
    if spec.ttl:
        out.data(f"\nIt powers itself off {spec.ttl} after its creation; deleting stays yours.")
    if spec.idle_stop:
        out.data(f"\nIt powers itself off when nobody has used it for {spec.idle_stop}; `provision start` wakes it.")


def show_offer(offer: Offer) -> None:
    """What a cloud has considered and checked, and the quota."""
    out = console()
    if offer.choices:
        out.data("\nConsidered:")
        rows = [("*" if c.chosen else "", c.kind, c.name, c.properties, c.verdict) for c in offer.choices]
        out.table(["", "kind", "name", "what it is", "verdict"], rows)
    if offer.checks:
        out.data("\nChecked:")
        out.table(["", "what", "found"], [("ok" if c.good else "BAD", c.name, c.found) for c in offer.checks])
    if offer.quotas:
        out.data("\nQuota:")
        lines = [(q.name, q.used, q.used + q.needed, "unlimited" if q.limit is None else q.limit) for q in offer.quotas]
        out.table(["", "used now", "afterwards", "limit"], lines)


def as_data(plan: Plan) -> dict[str, Any]:
    """The plan for scripts."""
    return {
        "spec": plan.platform.spec.model_dump(mode="json"),
        "facts": plan.offer.facts,
        "considered": [vars(choice) for choice in plan.offer.choices],
        "checked": [vars(check) for check in plan.offer.checks],
        "quota": [vars(quota) for quota in plan.offer.quotas],
        "steps": [{"key": s.key, "title": s.title, "seconds": s.seconds} for s in plan.steps(lambda _: None)],
        "resumed": plan.resumed,
    }


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(create)
