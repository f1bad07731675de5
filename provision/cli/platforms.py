"""`provision list, show, ssh, start, stop, delete, doctor`."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import typer

from provision.cli.completion import platform_names
from provision.cli.context import alone, console, home, open_platform
from provision.errors import ProvisionError, UsageError

if TYPE_CHECKING:
    from provision.cli.context import Opened
    from provision.record import Folder, Record, Resource
    from provision.usage import Prices, Status

_NAME = typer.Argument(help="Name of the platform.", autocompletion=platform_names)
_MINUTE = "%Y-%m-%d %H:%M"
_JSON = typer.Option(False, "--json", help="Print JSON on standard output.")


def list_platforms(as_json: bool = _JSON) -> None:
    """List the platforms of this computer's user.

    The state of each machine is what its cloud tells now; since when it is idle, what the machine tells.
    """
    from provision.usage import read_prices, statuses

    prices = read_prices(home().prices)
    rows = [_row(status, prices) for status in statuses(home(), console().log)]
    if as_json:
        console().emit(rows)
    elif rows:
        columns = [name for name in rows[0] if any(row[name] for row in rows)]
        console().table(columns, [[row[name] for name in columns] for row in rows])
    else:
        console().say("There is no platform yet; `provision create NAME` makes one.")
    if not as_json:
        _show_kept()


def _show_kept() -> None:
    """The data volumes of platforms that were deleted here."""
    from provision.volumes import kept_volumes

    if kept := kept_volumes(home()):
        console().data("\nKept data volumes:")
        rows = [(v.name, v.cloud, v.gigabytes, v.owner, f"{v.kept_at:{_MINUTE}}") for v in kept]
        console().table(["name", "cloud", "GB", "owner", "kept since"], rows)


def _row(status: Status, prices: Prices) -> dict[str, str]:
    hours = status.usage.hours
    idle = f"since {status.idle_since:{_MINUTE}}" if status.idle_since else ""
    return {
        **_summary(status.record),
        "machine": status.machine,
        "since": f"{status.usage.since:{_MINUTE}}" if status.usage.since else "",
        "idle": idle or (f"no: {status.busy}" if status.busy else ""),
        "hours": "" if hours is None else f"{hours:.1f}",
        "workers": _workers([state for state, _ in status.workers]),
        "cost": prices.cost(status.record, status.usage, [usage for _, usage in status.workers]),
    }


def _workers(states: list[str]) -> str:
    """How many are in which state."""
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))


def _summary(record: Record) -> dict[str, str]:
    from provision.record import now

    left = record.expires_at - now() if record.expires_at else None
    return {
        "name": record.name,
        "cloud": record.spec.cloud,
        "state": record.state,
        "address": record.access.host if record.access else "",
        "created": f"{record.created_at:{_MINUTE}}",
        "expires": "never" if left is None else "expired" if left < timedelta() else f"in {left}",
    }


def show(
    name: str = _NAME,
    timing: bool = typer.Option(False, "--timing", help="Name the tasks that took longest."),
    as_json: bool = _JSON,
) -> None:
    """Show a platform: state, address, all that was made for it."""
    from provision.usage import read_prices, status_of

    opened = open_platform(name)
    record = opened.record
    status = status_of(opened.folder, home(), console().log)
    if as_json:
        console().emit({**record.model_dump(mode="json"), "machine": status.machine})
        return
    facts = {name: word for name, word in _row(status, read_prices(home().prices)).items() if word} | record.facts
    for key, value in facts.items():
        console().data(f"{key:<{max(map(len, facts))}}  {value}")
    console().data("")
    rows = [
        (entry.step, entry.state, str(entry.resource or ""), entry.at.strftime("%H:%M:%S"), entry.seconds or "")
        for entry in record.ledger
    ]
    console().table(["step", "state", "resource", "at", "seconds"], rows)
    if timing:
        show_slowest(opened.folder)


def show_slowest(folder: Folder) -> None:
    """The tasks of the roles that took longest."""
    from provision.configure import slowest_tasks

    console().data("")
    console().table(["slowest task", "seconds"], [(task, f"{seconds:.1f}") for task, seconds in slowest_tasks(folder)])


def ssh(
    name: str = _NAME,
    command: list[str] = typer.Argument(None, help="Command to run there; without one, a login shell."),
    print_config: bool = typer.Option(False, "--print-config", help="Print the path of the ssh configuration and end."),
) -> None:
    """Log in to a platform, or run a command there. `ssh NAME` does the same."""
    from provision.remote import Remote

    opened = open_platform(name)
    if opened.record.access is None:
        raise UsageError(f"The platform {name} has no address yet.", f"Run `provision create {name}` again.")
    if print_config:
        console().data(str(opened.folder.ssh_config))
        return
    with Remote(opened.folder) as remote:
        raise SystemExit(remote.interactive(command or []))


def start(name: str = _NAME) -> None:
    """Start a platform's machine and wait until it is reached."""
    from provision.plan import SSH_SECONDS, connect
    from provision.remote import Remote

    with alone(name) as opened:
        for machine in opened.platform.machines:
            with console().stage(f"starting {machine.machine_name}"):
                opened.cloud.start(machine)
        for machine in opened.platform.machines:
            with console().stage(f"verified SSH connection to {machine.machine_name}"):
                connect(opened.cloud, machine)
                with Remote(machine.machine_folder) as remote:
                    remote.wait(SSH_SECONDS)


def stop(
    name: str = _NAME,
    release: bool = typer.Option(
        False, "--release", help="Give the host's CPUs and memory back, too; starting takes longer then."
    ),
) -> None:
    """Stop a platform's machine. Its disk and its address are kept.

    With --release, its disk becomes an image of the cloud (shelving) and no host keeps anything for it.
    """
    with alone(name) as opened:
        change = opened.cloud.release if release else opened.cloud.stop
        # the folder that they share goes last
        for machine in reversed(opened.platform.machines):
            with console().stage(f"{'releasing' if release else 'stopping'} {machine.machine_name}"):
                change(machine)


def delete(
    name: str = _NAME,
    yes: bool = typer.Option(False, "--yes", "-y", help="Do not ask."),
    uninstall: bool = typer.Option(
        False, "--uninstall", help="Of a host that existed before: remove what the roles installed there, too."
    ),
    delete_data: bool = typer.Option(
        False,
        "--delete-data/--keep-data",
        help="Remove the data volume as well, or keep it for another platform.  [keep]",
    ),
    dry_run: bool = typer.Option(False, "--dry-run", help="Show what would be removed and end."),
    as_json: bool = typer.Option(False, "--json", help="Print what is (or would be) removed as JSON."),
) -> None:
    """Remove what was made for a platform, and nothing else.

    The cloud has to confirm each removal. A data volume is kept. Without one, models that were not fetched are lost.
    """
    from provision.plan import to_remove, undo
    from provision.record import DATA_VOLUME

    out = console()
    with home().folder(name).lock():
        opened = open_platform(name)
        resources = _installed(opened) if uninstall else []
        resources += to_remove(opened.cloud, opened.platform)
        kept = [resource for resource in resources if resource.kind == DATA_VOLUME and not delete_data]
        resources = [resource for resource in resources if resource not in kept]
        if as_json:
            out.emit([resource.model_dump(mode="json") for resource in resources])
        else:
            for resource in resources:
                out.data(f"  {resource}")
            if not resources:
                out.data(f"  nothing but the record of {name} on this computer")
            for resource in kept:
                out.data(f"  kept: {resource} ({resource.details.get('gigabytes', '?')} GB); --delete-data removes it")
        if dry_run:
            return
        if not yes and not out.confirm(f"Remove all this and forget {name}?"):
            raise UsageError("Nothing was removed.", "Answer y, or give --yes where there is no terminal.")
        if uninstall:
            _uninstall(opened)
        with opened.cloud.exclusively(opened.platform, out.say):
            undo(opened.cloud, opened.platform, out, keep_data=not delete_data)
    out.say(f"{name} is gone.")
    for resource in kept:
        out.say(f"Its data are kept: `create ... --data-volume {resource.name}` takes them again.")


def _installed(opened: Opened) -> list[Resource]:
    from provision.remote import Remote
    from provision.uninstall import installed

    if opened.cloud.kind != "existing":
        raise UsageError(
            f"The machine of {opened.record.name} was made by the toolkit; it is deleted whole.",
            "Leave out --uninstall.",
        )
    with Remote(opened.folder) as remote:
        return installed(remote)


def _uninstall(opened: Opened) -> None:
    from provision.uninstall import uninstall

    with console().stage("removing what was installed") as stage:
        uninstall(opened.folder, stage.note)
    console().say("The Debian packages that were installed stay, with the settings in their own folders.")


def doctor(
    name: str = typer.Argument(
        "", help="Name of a platform; without one, this computer is examined.", autocompletion=platform_names
    ),
) -> None:
    """Examine this computer, or a platform.

    From the cloud to the services on the machine; exit status 1 when something is wrong.
    """
    from provision.doctor import examine_computer, examine_platform

    findings = examine_computer(home())
    if name:
        opened = open_platform(name)
        findings += examine_platform(opened.cloud, opened.platform)
    console().table(["", "check", "finding"], [("ok" if f.good else "BAD", f.check, f.words) for f in findings])
    if bad := [finding for finding in findings if not finding.good]:
        raise ProvisionError(
            f"{len(bad)} of {len(findings)} checks found something wrong: {bad[0].check}.", bad[0].remedy
        )


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("list")(list_platforms)
    for command in (show, ssh, start, stop, delete, doctor):
        app.command()(command)
