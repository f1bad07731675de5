"""`provision login`: who one is in a cloud, until when, and what is missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from provision.cli.context import console
from provision.errors import ProvisionError

if TYPE_CHECKING:
    from provision.login import Login


def login(
    cloud: str = typer.Argument("", help="An entry of clouds.yaml; without one, all are tried."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON on standard output."),
) -> None:
    """Try the credentials of clouds.yaml: who you are there, until when, and what is missing.

    Nothing is changed. Exit status 1 when something is wrong.
    """
    from provision import login as logins
    from provision.clouds._credentials import clouds

    found = [logins.examine(cloud)] if cloud else logins.examine_all(clouds())
    if as_json:
        values = [logins.as_json(one) for one in found]
        console().emit(values[0] if cloud else values)
    elif cloud:
        _show(found[0])
    else:
        console().table(["", "cloud", "user", "project", "how", "ends", "finding"], [_line(one) for one in found])
    wrong = {one.cloud: one.wrong for one in found if one.wrong}
    if cloud in wrong:
        raise ProvisionError(wrong[cloud].words, wrong[cloud].remedy)
    if wrong:
        raise ProvisionError(
            f"{len(wrong)} of {len(found)} clouds do not serve: {', '.join(wrong)}.",
            f"`provision login {next(iter(wrong))}` tells what to do.",
        )


def _show(one: Login) -> None:
    out = console()
    facts = {"cloud": one.cloud, "auth_url": one.url, "how": one.how, "user": one.user, "project": one.project}
    facts |= {"roles": ", ".join(one.roles), "projects": ", ".join(one.projects)}
    facts |= {f"{what} until": f"{when.astimezone():%Y-%m-%d %H:%M %Z}" for what, when in one.until.items()}
    facts |= {kind: ", ".join(regions) for kind, regions in one.services.items()}
    shown = {key: value for key, value in facts.items() if value}
    for key, value in shown.items():
        out.data(f"{key:<{max(map(len, shown))}}  {value}")
    out.data("")
    out.table(["", "check", "finding"], [("ok" if f.good else "BAD", f.check, f.words) for f in one.findings])


def _line(one: Login) -> tuple[str, ...]:
    wrong = one.wrong
    user, project = (text.partition(" (")[0] for text in (one.user, one.project))
    ends = f"{one.ends:%Y-%m-%d}" if one.ends else ""
    return ("BAD" if wrong else "ok", one.cloud, user, project, one.how, ends, wrong.words if wrong else "")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(login)
