"""`provision resize, rebuild, scale`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from provision.cli.completion import platform_names
from provision.cli.context import console, home, open_platform
from provision.cli.create import show_offer
from provision.errors import UsageError

if TYPE_CHECKING:
    from provision.change import Change
    from provision.cli.context import Opened
    from provision.rebuild import Rebuild
    from provision.resize import Resize
    from provision.scale import Scale

_NAME = typer.Argument(help="Name of the platform.", autocompletion=platform_names)
_YES = typer.Option(False, "--yes", "-y", help="Do not ask.")
_DRY_RUN = typer.Option(False, "--dry-run", help="Show the plan and end.")
_JSON = typer.Option(False, "--json", help="Print plan or record as JSON on standard output.")


def resize(
    name: str = _NAME,
    cpus: int | None = typer.Option(None, help="CPUs at least.  [as now]"),
    memory: str | None = typer.Option(None, help="Memory at least, for instance 8GB.  [as now]"),
    disk: str | None = typer.Option(None, help="Disk at least; it cannot shrink.  [as now]"),
    gpu: str | None = typer.Option(None, metavar="[MODEL][:N]|none", help="GPUs: T4, A100:2, any, none.  [as now]"),
    yes: bool = _YES,
    dry_run: bool = _DRY_RUN,
    as_json: bool = _JSON,
) -> None:
    """Give a platform's machine another size, or finish a resize that was interrupted.

    The machine is restarted. When it does not answer by SSH with its new size, it gets its former one back.
    """
    from provision.resize import plan_resize

    given = {"cpus": cpus, "memory": memory, "disk": disk, "gpu": gpu}
    changes = {field: value for field, value in given.items() if value is not None}
    with home().folder(name).lock():
        opened = open_platform(name)
        plan = plan_resize(opened.cloud, opened.record, opened.folder, home().cache, changes)
        warning = "The machine is restarted: what runs on it now is interrupted. Its disk and its address are kept."
        _execute(opened, plan, "Resize", warning, yes, dry_run, as_json)


def rebuild(
    name: str = _NAME,
    image: str | None = typer.Option(
        None, help="Name or id of an image.  [as at the creation: the one asked for, a baked one, or the newest]"
    ),
    yes: bool = _YES,
    dry_run: bool = _DRY_RUN,
    as_json: bool = _JSON,
) -> None:
    """Make a platform's system anew on the same address, or finish a rebuild that was interrupted.

    Everything on its disk is lost: jobs, models and workspaces that were not fetched.
    """
    from provision.rebuild import plan_rebuild

    with home().folder(name).lock():
        opened = open_platform(name)
        plan = plan_rebuild(opened.cloud, opened.record, opened.folder, home().cache, image)
        warning = "Everything on its disk is lost: jobs, models and workspaces that were not fetched."
        _execute(opened, plan, "Rebuild", warning, yes, dry_run, as_json)


def scale(
    name: str = _NAME,
    workers: int | None = typer.Argument(None, help="How many workers there are to be."),
    now: bool = typer.Option(False, "--now", help="Of workers that go, end the jobs instead of waiting for them."),
    yes: bool = _YES,
    dry_run: bool = _DRY_RUN,
    as_json: bool = _JSON,
) -> None:
    """Give a platform more workers, or fewer, or finish a change that was interrupted.

    Workers that go get no more jobs, end those that they have, and are removed. It also makes a cluster of a platform
    that has none.
    """
    from provision.scale import plan_scale

    with home().folder(name).lock():
        opened = open_platform(name)
        plan = plan_scale(opened.cloud, opened.record, opened.folder, home().cache, workers)
        plan.impatient = now
        ended = "ended" if now else "waited for"
        warning = f"Jobs on the workers that go are {ended}." if plan.fewer else "Jobs that run go on."
        _execute(opened, plan, "Scale", warning, yes, dry_run, as_json)


def _execute(
    opened: Opened, plan: Resize | Rebuild | Scale, verb: str, warning: str, yes: bool, dry_run: bool, as_json: bool
) -> None:
    """Show the plan, ask once, do it."""
    out, name = console(), opened.record.name
    if dry_run and as_json:
        out.emit(_as_data(plan))
        return
    if not plan.resumed and not (as_json and yes):
        _show(plan, verb, warning)
    if dry_run:
        return
    if not plan.resumed and not yes and not out.confirm(f"{verb} {name}?"):
        raise UsageError("Nothing was changed.", "Answer y, or give --yes where there is no terminal.")
    out.say(f"Going on with the {verb.lower()} of {name}" if plan.resumed else f"{verb} of {name}")
    with opened.cloud.exclusively(opened.platform, out.say):
        record = plan.execute(out)
    if as_json:
        out.emit(record.model_dump(mode="json"))
        return
    for fact, words in plan.offer.facts.items():
        out.say(f"{name} has {fact}: {words}")


def _show(plan: Resize | Rebuild | Scale, verb: str, warning: str) -> None:
    out, record = console(), plan.platform.record
    out.data(f"{verb} of {record.name} on {record.spec.cloud}")
    for name, words in plan.offer.facts.items():
        out.data(f"  {name}: {words}  (now: {record.facts.get(name, 'none')})")
    show_offer(plan.offer)
    out.data("\nSteps:")
    for number, step in enumerate(plan.steps(lambda _: None), start=1):
        out.data(f"  {number:>2}. {step.title}")
    out.data(f"\n{warning}")


def _as_data(plan: Resize | Rebuild | Scale) -> dict[str, Any]:
    return {
        "spec": plan.spec.model_dump(mode="json"),
        "facts": plan.offer.facts,
        "before": _before(plan),
        "considered": [vars(choice) for choice in plan.offer.choices],
        "quota": [vars(quota) for quota in plan.offer.quotas],
        "steps": [{"title": step.title, "seconds": step.seconds} for step in plan.steps(lambda _: None)],
        "resumed": plan.resumed,
    }


def _before(plan: Change) -> dict[str, str]:
    facts = plan.platform.record.facts
    return {name: facts[name] for name in plan.offer.facts if name in facts}


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (resize, rebuild, scale):
        app.command()(command)
