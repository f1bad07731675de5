"""The command `provision`: one module a verb group; a command parses, calls one function, displays."""

from __future__ import annotations

import sys

import typer

from provision.cli import (
    admin,
    adoption,
    change,
    connect,
    create,
    images,
    jobs,
    login,
    monitoring,
    orchestrator,
    platforms,
    service,
    tosca,
    volumes,
)
from provision.cli.context import console
from provision.errors import ProvisionError

app = typer.Typer(
    name="provision",
    help="Make a personal machine-learning platform on a cloud or on this computer, and train on it.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
create.register(app)
platforms.register(app)
change.register(app)
adoption.register(app)
images.register(app)
volumes.register(app)
jobs.register(app)
service.register(app)
monitoring.register(app)
connect.register(app)
login.register(app)
tosca.register(app)
orchestrator.register(app)
admin.register(app)


@app.callback(invoke_without_command=True)
def version_option(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and end."),
) -> None:
    """Make a personal machine-learning platform on a cloud or on this computer, and train on it."""
    if version:
        from provision import __version__

        print(f"provision {__version__}")
        context.exit()


def main() -> None:
    """Entry point; every failure ends as one or two sentences and an exit status."""
    try:
        app()
    except ProvisionError as error:
        console().fail(error)
    except KeyboardInterrupt:
        print("\nprovision: interrupted; the same command again goes on from here.", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:
        sys.stderr.close()
        raise SystemExit(141) from None
    except Exception as error:  # the last resort: a user never sees a traceback
        console().crash(error)
