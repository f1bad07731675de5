"""The command lines as the code has them: for the reference, for man pages, and to check what the pages write."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from typer.main import get_command

from mlaas4hep.cli import app as mlaas4hep_app
from provision.cli import app as provision_app

ROOTS: dict[str, Any] = {"provision": get_command(provision_app), "mlaas4hep": get_command(mlaas4hep_app)}
_FENCE = re.compile(r"^ *```(\w*)(.*)$")
_SPAN = re.compile(r"`((?:provision|mlaas4hep) [^`]+)`")
_ENDS = {"|", ">", ">>", "<", "&&", "||", ";", "&"}


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        words: what one types to call it, as `("provision", "image", "build")`.
        usage: what may follow.
        text: what it does, in paragraphs.
        arguments: name and meaning of each.
        options: the same.
        group: whether it only holds other commands.
    """

    words: tuple[str, ...]
    usage: str
    text: str
    arguments: tuple[tuple[str, str], ...]
    options: tuple[tuple[str, str], ...]
    group: bool

    @property
    def name(self) -> str:
        """As one types it."""
        return " ".join(self.words)


def commands(root: str) -> Iterator[Command]:
    """All commands of `provision` or `mlaas4hep`, each group before what it holds."""
    yield from _below(ROOTS[root], (root,))


def _below(command: Any, words: tuple[str, ...]) -> Iterator[Command]:
    context = typer.Context(command, info_name=" ".join(words))
    arguments: list[tuple[str, str]] = []
    options: list[tuple[str, str]] = []
    for parameter in command.get_params(context):
        if (record := parameter.get_help_record(context)) is not None:
            (arguments if parameter.param_type_name == "argument" else options).append(record)
    usage = " ".join(command.collect_usage_pieces(context))
    children = getattr(command, "commands", {})
    yield Command(words, usage, (command.help or "").strip(), tuple(arguments), tuple(options), bool(children))
    for name, child in children.items():
        if not child.hidden:
            yield from _below(child, (*words, name))


@dataclass(frozen=True)
class Line:
    """A command line that a page shows.

    Attributes:
        whole: whether it is a line of a block, with all its arguments, and no mention in a sentence.
    """

    where: str
    text: str
    whole: bool

    @property
    def command(self) -> str:
        """What one types of it: without a remark, and without brackets around what may be left out."""
        return re.sub(r" {2,}.*|\s#.*|[\[\]]", "", self.text)


def written(page: Path) -> Iterator[Line]:
    """The lines of both commands in a page: those of blocks, and those between backquotes."""
    block: str | None = None
    unfinished = ""
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        if fence := _FENCE.match(line):
            block = None if block is not None else fence[1]
        elif block in ("", "sh", "console") or line.startswith("    "):
            unfinished += line.strip().removeprefix("$ ")
            if unfinished.endswith("\\"):
                unfinished = unfinished[:-1]
                continue
            if re.match(r"(\S+=\S+ )*(sudo )?(provision|mlaas4hep) ", unfinished):
                yield Line(f"{page.name}:{number}", unfinished, whole=True)
            unfinished = ""
        elif block is None:
            for span in _SPAN.finditer(line):
                yield Line(f"{page.name}:{number}", span[1], whole=False)


def mistake(line: Line) -> str:
    """What the command line would refuse of a line, or nothing; it is parsed and not run."""
    words = _words(line.command)
    while words and (words[0] == "sudo" or "=" in words[0]):
        del words[0]
    return _mistake(ROOTS[words[0]], words[0], words[1:], line.whole)


def _words(text: str) -> list[str]:
    """The words of the first of the commands of a line."""
    words = []
    for word in shlex.split(text, comments=True):
        if word in _ENDS:
            break
        words.append(word)
    return words


def _mistake(command: Any, name: str, words: list[str], whole: bool) -> str:
    context = typer.Context(command, info_name=name, **command.context_settings)
    parameters = command.get_params(context)
    try:
        values, rest, _ = command.make_parser(context).parse_args(list(words))
        for parameter in parameters:
            if (value := values.get(parameter.name)) is not None and parameter.callback is None:
                parameter.process_value(context, value)
    except Exception as error:  # the parser's classes have no public name
        return f"{name}: {getattr(error, 'message', error)}"
    if children := getattr(command, "commands", {}):
        if not rest or rest[0].isupper() or rest[0] == "...":  # VERB stands for each
            return ""
        if rest[0] not in children:
            return f"{name} has no command {rest[0]}"
        return _mistake(children[rest[0]], f"{name} {rest[0]}", rest[1:], whole)
    if rest and name == "provision client":
        return _mistake(ROOTS["mlaas4hep"].commands["client"], "mlaas4hep client", rest, whole)
    if rest and rest[0] != "...":
        return f"{name} does not take {rest[0]}"
    lacking = [p.name for p in parameters if p.required and values.get(p.name) is None]
    return f"{name} lacks {lacking[0]}" if whole and lacking else ""
