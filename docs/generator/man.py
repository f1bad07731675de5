"""Manual pages of both commands, in roff (man(7)); `python -m docs.generator.man FOLDER` writes them for a wheel."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

from docs.generator.commands import ROOTS, Command, commands
from mlaas4hep import __version__


def write_man_pages(folder: Path) -> list[Path]:
    """Write one page for each command into a folder, which is made; returns the pages."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for root in ROOTS:
        for command in (found := list(commands(root))):
            page = folder / f"{'-'.join(command.words)}.1"
            page.write_text(_page(command, found), encoding="utf-8")
            written.append(page)
    return written


def _page(command: Command, all_of_them: list[Command]) -> str:
    name = "-".join(command.words)
    summary, *more = command.text.split("\n\n")
    lines = [f'.TH {_escaped(name.upper())} 1 "" "mlaas4hep {__version__}" "User Commands"', ".SH NAME"]
    lines += [rf"{_escaped(name)} \- {_escaped(_flowing(summary).rstrip('.'))}", ".SH SYNOPSIS"]
    lines += [f".B {_escaped(command.name)}", _escaped(command.usage)]
    lines += [".SH DESCRIPTION", *_paragraphs([summary, *more])]
    for title, rows in (("ARGUMENTS", command.arguments), ("OPTIONS", command.options)):
        if rows:
            lines.append(f".SH {title}")
        for left, meaning in rows:
            lines += [".TP", f".B {_escaped(left)}", _escaped(_flowing(meaning))]
    depth = len(command.words)
    below = [other for other in all_of_them if len(other.words) == depth + 1 and other.words[:depth] == command.words]
    if below:
        lines.append(".SH COMMANDS")
    for other in below:
        lines += [".TP", f".BR {_escaped('-'.join(other.words))} (1)", _escaped(_flowing(other.text.split("\n\n")[0]))]
    return "\n".join(lines) + "\n"


def _paragraphs(texts: list[str]) -> list[str]:
    return [line for text in texts for line in (".PP", *textwrap.wrap(_escaped(_flowing(text)), 100))]


def _flowing(text: str) -> str:
    return " ".join(text.split())


def _escaped(text: str) -> str:
    """Text that roff takes as it is: no escapes, no requests."""
    text = text.replace("\\", r"\e").replace("-", r"\-")
    return rf"\&{text}" if text.startswith((".", "'")) else text


if __name__ == "__main__":
    write_man_pages(Path(sys.argv[1]))
