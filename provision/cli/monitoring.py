"""`provision top` and `provision monitoring files`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from provision.cli.completion import platform_names
from provision.cli.context import connected, console
from provision.errors import UsageError

if TYPE_CHECKING:
    from provision.remote import Remote
    from provision.top import View


def top(
    name: str = typer.Argument(help="Name of the platform.", autocompletion=platform_names),
    once: bool = typer.Option(False, "--once", help="Look once and end."),
    interval: float = typer.Option(5.0, "--interval", help="Seconds between two looks."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON on standard output, one line for each look."),
) -> None:
    """Show what a platform does now: CPUs, memory, disks, GPUs, jobs, queue and predictions, again and again."""
    from provision.top import LEAST_INTERVAL, lines

    if not interval >= LEAST_INTERVAL:
        raise UsageError(f"{interval:g} s is no interval.", f"Give --interval of {LEAST_INTERVAL:g} s at least.")
    out = console()
    with connected(name) as remote:
        views = _views(remote, interval)
        if once:
            view = next(views)
            out.emit(view.as_data()) if as_json else out.data("\n".join(lines(name, view)))
        elif as_json:
            for view in views:
                out.data(json.dumps(view.as_data()))
        else:
            _show(name, views)


def _views(remote: Remote, interval: float) -> Iterator[View]:
    """The platform, looked at again and again; the first view comes at once."""
    from provision.top import LEAST_INTERVAL, Looks, look

    before, wait = look(remote), LEAST_INTERVAL
    while True:
        time.sleep(wait)
        after = look(remote)
        yield Looks(before, after).view()
        before, wait = after, interval


def _show(name: str, views: Iterator[View]) -> None:
    """On a terminal one view in the place of the last; elsewhere one below the other. Ends with Ctrl-C."""
    from provision.top import lines

    try:
        if not sys.stdout.isatty():
            for view in views:
                console().data("\n".join([*lines(name, view), ""]))
            return
        from rich.console import Console as Rich
        from rich.live import Live
        from rich.text import Text

        with Live(Text("looking"), console=Rich(), screen=True) as live:
            for view in views:
                live.update(Text("\n".join(lines(name, view)), no_wrap=True, overflow="crop"), refresh=True)
    except KeyboardInterrupt:
        return


def files(
    folder: Path = typer.Argument(help="Folder for the files; it is made, and must not have them yet."),
) -> None:
    """Write the alert rules and the Grafana dashboard, for a Prometheus and a Grafana of your own."""
    from provision.share import share

    source = share() / "roles" / "monitoring" / "files"
    wanted = [source / "platform.rules.yml", source / "platform.dashboard.json"]
    if there := [path.name for path in wanted if (folder / path.name).exists()]:
        raise UsageError(f"{folder} has {' and '.join(there)} already.", "Name another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    for path in wanted:
        (folder / path.name).write_bytes(path.read_bytes())
        console().say(f"Wrote {folder / path.name}.")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(top)
    group = typer.Typer(
        help="Files for monitoring.", no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False
    )
    group.command("files")(files)
    app.add_typer(group, name="monitoring")
