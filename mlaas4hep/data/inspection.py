"""How the contents of a file are shown: a table for people, JSON for programs."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from mlaas4hep.data.root import FileReport, TreeReport
from mlaas4hep.data.schema import Branch, Kind

_COLUMNS = ("branch", "kind", "type", "bytes", "in file")


def report_as_json(report: FileReport) -> dict[str, Any]:
    """The report as JSON's types; each tree has the number of branches of each kind under `kinds`."""
    data = asdict(report)
    for tree, facts in zip(report.trees, data["trees"], strict=True):
        facts["kinds"] = kinds(tree)
    return data


def kinds(tree: TreeReport) -> dict[str, int]:
    """Number of branches of each kind that the tree has."""
    counts = Counter(branch.kind for branch in tree.branches)
    return {kind.value: counts[kind] for kind in Kind if counts[kind]}


def print_report(report: FileReport) -> None:
    """Print the report: tables on a terminal, plain columns elsewhere."""
    print(f"{report.path}  {_size(report.size)}")
    if report.problem:
        print(f"warning: the file is {report.problem}")
    for tree in report.trees:
        print()
        _print_tree(tree)


def _print_tree(tree: TreeReport) -> None:
    if tree.problem:
        print(f"{_title(tree)} cannot be read: {tree.problem}")
        return
    sizes = f", {_size(tree.uncompressed)}, {_size(tree.compressed)} in the file" if tree.uncompressed else ""
    print(f"{_title(tree)}: {_number(tree.entries, 'entry', 'entries')}{sizes}")
    found = ", ".join(f"{count} {kind}" for kind, count in kinds(tree).items())
    print(f"  {_number(len(tree.branches), 'branch', 'branches')}: {found}")
    rows = [_row(branch) for branch in tree.branches]
    if sys.stdout.isatty():
        _print_table(rows)
    else:
        _print_columns(rows)


def _number(count: int, one: str, several: str) -> str:
    return f"{count} {one if count == 1 else several}"


def _title(tree: TreeReport) -> str:
    """Name and class of a tree, or the format of a file without trees."""
    return f"{tree.name} ({tree.type})" if tree.name else tree.type


def _row(branch: Branch) -> tuple[str, ...]:
    members = f" {{{', '.join(f'{name}: {dtype}' for name, dtype in branch.members)}}}" if branch.members else ""
    known = branch.uncompressed > 0
    return (
        branch.name,
        branch.kind.value,
        f"{branch.type}{members}",
        _size(branch.uncompressed) if known else "",
        _size(branch.compressed) if known else "",
    )


def _print_table(rows: Sequence[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for number, title in enumerate(_COLUMNS):
        table.add_column(title, justify="right" if number > 2 else "left", overflow="fold")
    for row in rows:
        table.add_row(*(cell.replace("[", r"\[") for cell in row))
    Console(highlight=False).print(table)


def _print_columns(rows: Sequence[tuple[str, ...]]) -> None:
    rows = [_COLUMNS, *rows]
    widths = [max(len(row[number]) for row in rows) for number in range(len(_COLUMNS))]
    for row in rows:
        texts = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        print("  " + "  ".join(texts).rstrip())


def _size(size: int) -> str:
    """Bytes in a unit that keeps the number short."""
    if size < 1000:
        return f"{size} B"
    for power, unit in enumerate(("kB", "MB"), 1):
        if size < 999_950 * 1000 ** (power - 1):
            return f"{size / 1000**power:.1f} {unit}"
    return f"{size / 1000**3:.1f} GB"
