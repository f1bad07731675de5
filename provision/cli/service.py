"""`provision client`."""

from __future__ import annotations

import typer

from provision.cli.completion import platform_names
from provision.cli.context import open_platform


def client(
    context: typer.Context,
    name: str = typer.Argument(help="Name of the platform.", autocompletion=platform_names),
) -> None:
    """Use a platform's service: what follows the name goes to `mlaas4hep client`.

    A personal platform is reached through SSH; a shared one by its address, with your own token.
    """
    from provision.remote import Remote
    from provision.service import reached, run_client

    opened = open_platform(name)
    with Remote(opened.folder) as remote, reached(opened.record, remote) as environment:
        status = run_client(context.args, environment)
    raise typer.Exit(status)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(client)
