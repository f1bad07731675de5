"""`provision connect`."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import typer

from provision.cli.completion import platform_names
from provision.cli.context import console, open_platform
from provision.errors import ProvisionError, UsageError

SERVICE_SECONDS = 60

if TYPE_CHECKING:
    from pathlib import Path

    from provision.record import Record


def connect(
    name: str = typer.Argument(help="Name of the platform.", autocompletion=platform_names),
    ports: list[int] | None = typer.Option(
        None, "--port", min=1, max=65535, help="A further port of the machine's loopback; may be repeated."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print the addresses as JSON on standard output."),
) -> None:
    """Open tunnels to what a platform serves, and print its addresses on this computer.

    Service, inference, web pages and a notebook on port 8888 are found by themselves. Ends with Ctrl-C.
    """
    from provision import service
    from provision.remote import Remote

    opened = open_platform(name)
    if opened.record.access is None:
        raise UsageError(f"The platform {name} has no address yet.", f"Run `provision create {name}` again.")
    # ended from outside, it closes its tunnels as with Ctrl-C
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, signal.default_int_handler)
    try:
        with Remote(opened.folder) as remote, ExitStack() as stack:
            spec, ready = opened.record.spec, opened.record.state == "ready"
            notebook = ready and spec.jupyter and not spec.domain
            if ready:
                with console().stage("waiting for the service"):
                    further = [service.NOTEBOOK] if notebook else []
                    listening = service.await_service(remote, SERVICE_SECONDS, further)
            else:
                listening = service.listening(remote)
            served = (listening & set(service.SERVED)) | set(ports or ())
            if not served:
                raise ProvisionError(
                    f"Nothing that {name} could serve listens there.",
                    f"`provision doctor {name}` looks for the cause; --port names a port of yours.",
                )
            tokens: dict[int, Path] = {}
            if service.PORT in served and ready and not spec.domain:
                tokens[service.PORT] = stack.enter_context(service.token_file(remote))
            if service.NOTEBOOK in served and notebook:
                there = service.NOTEBOOK_TOKEN
                tokens[service.NOTEBOOK] = stack.enter_context(service.token_file(remote, there))
            tunnels = stack.enter_context(remote.tunnels(sorted(served)))
            _show(opened.record, tunnels.here, tokens, as_json)
            tunnels.wait()
    except KeyboardInterrupt:
        console().say(f"The tunnels to {name} are closed.")


def _show(record: Record, here: dict[int, int], tokens: dict[int, Path], as_json: bool) -> None:
    from provision.service import NOTEBOOK, PORT, SERVED

    out = console()
    rows: list[dict[str, Any]] = []
    for there, mine in here.items():
        what, scheme = SERVED.get(there, (f"port {there}", "http"))
        rows.append({"name": what, "port": there, "url": f"{scheme}://127.0.0.1:{mine}"})
    if as_json:
        named = {"token_file": PORT, "notebook_token_file": NOTEBOOK}
        files = {name: str(tokens[port]) if port in tokens else None for name, port in named.items()}
        out.emit({"platform": record.name, "tunnels": rows, **files})
    else:
        out.table(["what", "port there", "address here"], [list(row.values()) for row in rows])
        for port, token in tokens.items():
            out.data(f"The {SERVED[port][0]}'s token is in {token} for as long as this command runs.")
        if record.spec.domain:
            out.data(f"Without a tunnel: https://{record.spec.domain}")
            if record.spec.jupyter:
                out.data(f"Notebooks: https://{record.spec.domain}/jupyter/")
    out.say("The tunnels are open until Ctrl-C.")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(connect)
