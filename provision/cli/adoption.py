"""`provision adopt, gc`: platforms that a cloud has and this computer does not know."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from provision.cli.context import console, home
from provision.cli.volumes import rows_of, show_rows
from provision.errors import UsageError

if TYPE_CHECKING:
    from provision.clouds.base import Found

_CLOUD = typer.Option(..., "--cloud", help="An entry of clouds.yaml.")
_JSON = typer.Option(False, "--json", help="Print JSON on standard output.")


def adopt(
    name: str = typer.Argument("", help="Name of the platform; without one, those that could be adopted are listed."),
    cloud: str = _CLOUD,
    uid: str = typer.Option("", "--uid", help="Which one, where several have that name."),
    identity: Path | None = typer.Option(
        None, "--identity", "-i", help="The platform's private key, from the computer that made it."
    ),
    as_json: bool = _JSON,
) -> None:
    """Make the record of a platform again that was lost, or made on another computer.

    The cloud tells what belongs to it. Without its private key it can be stopped, started and deleted, but nobody can
    log in to it from here.
    """
    from provision import adoption
    from provision.clouds import open_cloud

    out = console()
    found = adoption.unrecorded(open_cloud(cloud, home()), home())
    if not name:
        _list(found, as_json)
        return
    chosen = [platform for platform in found if platform.name == name and platform.uid.startswith(uid)]
    if not chosen:
        others = ", ".join(sorted({platform.name for platform in found})) or "none"
        raise UsageError(f"The cloud {cloud!r} has no platform {name!r} without a record here.", f"It has: {others}.")
    if len(chosen) > 1:
        uids = ", ".join(platform.uid for platform in chosen)
        raise UsageError(
            f"The cloud {cloud!r} has {len(chosen)} platforms {name!r}.", f"Choose one with --uid: {uids}."
        )
    record = adoption.adopt(chosen[0], cloud, home(), identity)
    if as_json:
        out.emit(record.model_dump(mode="json"))
        return
    out.say(f"{name} is known here again; `provision create {name}` with its options completes it.")
    if identity is None:
        out.say("Without its private key nobody can log in to it from here (--identity).")


def _list(found: list[Found], as_json: bool) -> None:
    out = console()
    rows = [_row(platform) for platform in found]
    if as_json:
        out.emit(rows)
    elif rows:
        out.table([*rows[0]], [list(row.values()) for row in rows])
    else:
        out.say("Every platform of that cloud is recorded here.")


def _row(platform: Found) -> dict[str, object]:
    return {
        "name": platform.name,
        "uid": platform.uid,
        "owner": platform.owner or "unknown",
        "yours": "yes" if platform.mine else "no",
        "machine": "yes" if platform.machine else "no",
        "resources": platform.resources,
        "newest": f"{platform.newest:%Y-%m-%d %H:%M}" if platform.newest else "unknown",
    }


def collect(
    cloud: str = _CLOUD,
    older_than: str = typer.Option("1h", "--older-than", help="Leave what is younger: it may be in the making."),
    with_machines: bool = typer.Option(False, "--with-machines", help="Remove platforms that have a machine as well."),
    yes: bool = typer.Option(False, "--yes", "-y", help="Do not ask."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Show what would be removed and end."),
    as_json: bool = _JSON,
) -> None:
    """Remove orphans: what platforms without a record on this computer have left in a cloud.

    Only what bears the toolkit's marks and was made by the cloud's present user is ever removed.
    """
    from provision import adoption
    from provision.clouds import open_cloud
    from provision.spec import read_duration

    out = console()
    opened = open_cloud(cloud, home())
    verdicts = adoption.judge(adoption.unrecorded(opened, home()), read_duration(older_than), with_machines)
    rows = [{**_row(verdict.found), "verdict": verdict.words} for verdict in verdicts]
    if as_json:
        out.emit(rows)
    elif rows:
        out.table([*rows[0]], [list(row.values()) for row in rows])
    kept = [volume for volume in opened.volumes() if volume.kept]
    if kept and not as_json:
        out.data("\nKept data volumes, which `provision volume delete` removes:")
        show_rows(rows_of(kept))
    orphans = [verdict.found for verdict in verdicts if verdict.orphan]
    if dry_run or not orphans:
        out.say(f"{len(orphans)} orphans.")
        return
    if not yes and not out.confirm(f"Remove {len(orphans)} orphans?"):
        raise UsageError("Nothing was removed.", "Answer y, or give --yes where there is no terminal.")
    for orphan in orphans:
        adoption.remove(orphan, opened, cloud, home(), out, out.say)
    out.say(f"{len(orphans)} orphans are gone.")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(adopt)
    app.command("gc")(collect)
