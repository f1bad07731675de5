"""`provision admin VERB NAME...`: the commands are made of the verbs' registry."""

from __future__ import annotations

import contextlib
from inspect import Parameter, Signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from provision.admin import VERBS, Verb
from provision.cli.completion import platform_names
from provision.cli.context import alone, console, home
from provision.errors import ProvisionError, UsageError

if TYPE_CHECKING:
    from provision.admin import Outcome

admin = typer.Typer(
    name="admin", help="Look after platforms, one or many: health, updates, backups, ...", no_args_is_help=True
)

_NAMES = typer.Argument(None, metavar="NAME...", help="Names of platforms.", autocompletion=platform_names)
_SHARED: dict[str, tuple[Any, Any]] = {
    "names": (list[str], _NAMES),
    "every": (bool, typer.Option(False, "--all", help="All platforms that are ready.")),
    "limit": (str, typer.Option("", metavar="PATTERNS", help="Of those only what matches, for instance 'web*,!web7'.")),
    "serial": (int, typer.Option(0, min=0, help="Platforms at once.  [all]")),
    "max_failures": (
        int | None,
        typer.Option(None, "--max-failures", min=0, help="Begin no further batch when more than so many have failed."),
    ),
    "check": (bool, typer.Option(False, "--check", help="Show what would be changed, and change nothing.")),
    "yes": (bool, typer.Option(False, "--yes", "-y", help="Do not ask.")),
    "as_json": (bool, typer.Option(False, "--json", help="Print the outcome as JSON on standard output.")),
}
_KINDS: dict[type, Any] = {
    bool: bool | None,
    int: int | None,
    str: str | None,
    Path: Path | None,
    list: list[str] | None,
}


@admin.command()
def inventory(
    listing: bool = typer.Option(True, "--list", help="All platforms, as Ansible asks an inventory script."),
    host: str | None = typer.Option(None, "--host", help="The variables of one platform."),
) -> None:
    """Print the inventory of all ready platforms, for `ansible-playbook -i playbooks/admin/inventory.sh`."""
    from provision.admin import inventory_json

    console().data(inventory_json(home(), host))


def _perform(verb: Verb, shared: dict[str, Any], given: dict[str, Any]) -> None:
    """Run a verb; exit status 1 when it failed on a platform, or found something bad there."""
    from provision.admin import chosen, run_verb, variables_of

    out = console()
    if bool(shared["names"]) == shared["every"]:
        raise UsageError("Name the platforms, or give --all.")
    folders = chosen(home(), shared["names"] or (), shared["limit"], verb.unready)
    variables = variables_of(verb, given)
    check, names = shared["check"] or verb.predicts, ", ".join(folder.name for folder in folders)
    if verb.asks and not check and not shared["yes"] and not out.confirm(f"{names}: {verb.asks} Go on?"):
        raise UsageError("Nothing was changed.", "Answer y, or give --yes where there is no terminal.")
    with contextlib.ExitStack() as stack:
        if verb.changes and not check:
            for folder in folders:
                stack.enter_context(alone(folder.name))
        stage = stack.enter_context(_live(f"{verb.name} on {names}"))
        outcomes = run_verb(
            home(),
            verb,
            folders,
            variables,
            stage.note,
            lambda outcome: out.say(_line(verb, outcome, check)),
            check=check,
            serial=shared["serial"],
            max_failures=shared["max_failures"],
        )
    if shared["as_json"]:
        out.emit({"verb": verb.name, "check": check, "platforms": [outcome.as_data() for outcome in outcomes]})
    else:
        for outcome in outcomes:
            _show(outcome, check)
    if failed := [outcome for outcome in outcomes if not outcome.good]:
        raise _failure(verb, failed, len(outcomes))


@contextlib.contextmanager
def _live(title: str) -> Any:
    """A live line for as long as it lasts, and no line of its own afterwards: each platform gets one."""
    from provision.console import Stage

    if not console().terminal:
        yield Stage(None, title)
        return
    from rich.console import Console as Rich
    from rich.markup import escape

    with Rich(stderr=True).status(escape(title)) as status:
        yield Stage(status, title)


def _line(verb: Verb, outcome: Outcome, check: bool) -> str:
    word = "done   " if outcome.state == "ok" else "FAILED "
    changes = f"{len(outcome.changed)} {'would change' if check else 'changed'}"
    return (
        f"  {word} {verb.name} on {outcome.name}: {outcome.failure or outcome.state}, {changes} ({outcome.seconds} s)"
    )


def _show(outcome: Outcome, check: bool) -> None:
    """The report of one platform, as text."""
    out = console()
    if check:
        for task in outcome.changed:
            out.data(f"{outcome.name}: would change: {task}")
    findings = outcome.report.get("findings", [])
    for name, value in outcome.report.items():
        if name != "findings":
            out.data(f"{outcome.name}: {name}: {value}")
    if findings:
        rows = [
            [outcome.name, "ok" if finding.get("good", True) else "BAD", finding["check"], finding.get("words", "")]
            for finding in findings
        ]
        out.table(["platform", "", "check", "finding"], rows)


def _failure(verb: Verb, failed: list[Outcome], tried: int) -> ProvisionError:
    first = failed[0]
    if first.bad_findings:
        bad = first.bad_findings[0]
        message = f"{bad['check']}: {bad.get('words', '')}"
        remedy = bad.get("remedy", "")
    else:
        message, remedy = first.failure or first.state, f"The log is {first.log}."
    return ProvisionError(
        f"{verb.name} failed on {len(failed)} of {tried} platforms; on {first.name}: {message.rstrip('.')}.", remedy
    )


def _command(verb: Verb) -> Any:
    """The command of a verb: a function with the signature that Typer reads."""

    def command(**words: Any) -> None:
        _perform(verb, {name: words.pop(name) for name in _SHARED}, words)

    parameters = {
        **_SHARED,
        **{
            option.variable: (
                _KINDS[option.kind],
                typer.Option(None, _flag(option.name, option.kind), help=_help(option)),
            )
            for option in verb.options
        },
    }
    command.__doc__ = verb.help
    command.__signature__ = Signature(  # type: ignore[attr-defined]
        [
            Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=kind)
            for name, (kind, default) in parameters.items()
        ]
    )
    command.__annotations__ = {name: kind for name, (kind, _) in parameters.items()}
    return command


def _flag(name: str, kind: type) -> str:
    return f"--{name}/--no-{name}" if kind is bool else f"--{name}"


def _help(option: Any) -> str:
    return f"{option.help}  [{'|'.join(option.choices)}]" if option.choices else str(option.help)


def register(app: typer.Typer) -> None:
    """Add the group of commands."""
    for verb in VERBS:
        admin.command(verb.name)(_command(verb))
    app.add_typer(admin)
