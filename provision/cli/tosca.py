"""`provision tosca render, check`: templates for INFN-Cloud's portfolio."""

from __future__ import annotations

from pathlib import Path

import typer

from provision.cli.context import console, home
from provision.errors import ProvisionError

tosca = typer.Typer(
    name="tosca", help="TOSCA templates for INDIGO's PaaS orchestrator and its dashboard.", no_args_is_help=True
)


@tosca.command()
def render(
    spec: Path = typer.Argument(help="YAML file with the fields of `provision create --help`."),
    types: str = typer.Option(
        ...,
        metavar="URL",
        help="Where the portfolio's types will be, at a tag: tosca_types and artifacts are below it.",
    ),
    role: str = typer.Option(..., metavar="URL", help="Git repository that the role will be in."),
    tag: str = typer.Option(..., help="Tag of that repository."),
    guide: str = typer.Option(..., metavar="URL", help="The guide for users, as the catalogue names it."),
    icon: str = typer.Option(..., metavar="URL", help="The picture of the catalogue."),
    group: list[str] | None = typer.Option(None, help="Group that sees the service; may be repeated.  [everybody]"),
    folder: Path | None = typer.Option(None, help="New folder for the files.  [NAME-tosca]"),
) -> None:
    """Write types, templates, forms and the role of a platform for the portfolio."""
    from provision.framework import find_framework
    from provision.spec import make_specs, read_spec
    from provision.tosca.render import Portfolio, render

    wanted = make_specs(read_spec(spec))[0]
    portfolio = Portfolio(types, role, tag, guide, icon, tuple(group or ()))
    target = folder or Path(f"{wanted.name}-tosca")
    templates = render(wanted, find_framework(wanted.mlaas4hep, home().cache), portfolio, target)
    for template in templates:
        console().data(str(template))
    if len(templates) == 1:
        console().say(
            "No template for private networks: a public CA has to reach the machine. With tls: internal it is made."
        )
    console().say(f"`provision tosca check {target}` checks them.")


@tosca.command()
def check(
    target: Path = typer.Argument(metavar="FOLDER|FILE", help="What was rendered, or one template of it."),
    inputs: Path | None = typer.Option(None, help="YAML file with the values of the inputs for a deployment."),
    as_json: bool = typer.Option(False, "--json", help="Print the findings as JSON on standard output."),
) -> None:
    """Check templates, types, forms and values, offline; each problem is shown with file and line."""
    from provision.tosca.check import check

    out = console()
    templates, problems = check(target, inputs)
    if as_json:
        found = [{"file": str(one.file), "line": one.line, "problem": one.text} for one in problems]
        out.emit({"templates": [str(path) for path in templates], "problems": found})
    else:
        for problem in problems:
            out.data(str(problem))
    if problems:
        what = "problem" if len(problems) == 1 else "problems"
        raise ProvisionError(
            f"{len(problems)} {what} in {target}.", "Nothing should be submitted before they are gone."
        )
    out.say(f"{len(templates)} templates are in order." if len(templates) > 1 else "The template is in order.")


def register(app: typer.Typer) -> None:
    """Add the group of commands."""
    app.add_typer(tosca)
