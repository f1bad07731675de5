"""`provision volume list, delete`: data that outlive their platforms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from provision.cli.context import console, home
from provision.errors import UsageError

if TYPE_CHECKING:
    from provision.clouds.base import DataVolume

_CLOUD = typer.Option("local", "--cloud", help="local, or NAME[/REGION] of clouds.yaml.")

app = typer.Typer(name="volume", help="Data volumes, which outlive their platforms.")


@app.command("list")
def list_volumes(cloud: str = _CLOUD, as_json: bool = typer.Option(False, "--json", help="Print JSON.")) -> None:
    """List the data volumes of a cloud: which platform has each, or since when none has."""
    from provision.clouds import open_cloud

    rows = rows_of(open_cloud(cloud, home()).volumes())
    if as_json:
        console().emit(rows)
    elif rows:
        show_rows(rows)
    else:
        console().say("There is no data volume; `provision create NAME --data-volume 100GB` makes one.")


@app.command()
def delete(
    name: str = typer.Argument(help="Name or id of the volume."),
    cloud: str = _CLOUD,
    yes: bool = typer.Option(False, "--yes", "-y", help="Do not ask."),
) -> None:
    """Remove a data volume that no platform has, with all that is on it."""
    from provision.clouds import open_cloud
    from provision.volumes import find_unused, forget_kept

    out, opened = console(), open_cloud(cloud, home())
    volume = find_unused(opened, home(), name)
    out.data(f"  {volume.name} ({volume.gigabytes} GB), of the platform {volume.platform}")
    if not yes and not out.confirm("Remove it with all data?"):
        raise UsageError("Nothing was removed.", "Answer y, or give --yes where there is no terminal.")
    with out.stage(f"removing data volume {volume.name}"):
        opened.remove_volume(volume)
    forget_kept(home(), volume.id)


def rows_of(volumes: Sequence[DataVolume]) -> list[dict[str, str]]:
    """What is told of volumes."""
    return [
        {
            "name": volume.name,
            "id": volume.id,
            "GB": str(volume.gigabytes),
            "platform": f"{'none, before ' if volume.kept else ''}{volume.platform}",
            "owner": volume.owner or "unknown",
            "created": f"{volume.created:%Y-%m-%d %H:%M}" if volume.created else "unknown",
        }
        for volume in volumes
    ]


def show_rows(rows: Sequence[dict[str, str]]) -> None:
    """Print them as a table."""
    console().table([*rows[0]], [list(row.values()) for row in rows])


def register(typer_app: typer.Typer) -> None:
    """Add the commands."""
    typer_app.add_typer(app)
