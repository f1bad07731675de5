"""YAML files of which every key's line is known, so that a problem is shown where it stands."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from provision.errors import UsageError

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_MOST_BYTES = 1_000_000
_MOST_ENTRIES = 100_000  # aliases can make more of a small file
_QUOTED = re.compile(r'"([^"]+)"|\'([^\']+)\'')


@dataclass(frozen=True)
class Problem:
    """What is wrong, and where."""

    file: Path
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.text}"


@dataclass
class Source:
    """One YAML file.

    Attributes:
        data: what it holds; None where it cannot be read.
        lines: of each key and entry, by its way from the top.
        problems: that keep it from being read, and keys that stand twice.
    """

    path: Path
    data: Any = None
    lines: dict[tuple[Any, ...], int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def problem(self, way: tuple[Any, ...], text: str) -> Problem:
        """A problem at that key, or at the nearest one above it that there is."""
        while way not in self.lines and way:
            way = way[:-1]
        return Problem(self.path, self.lines.get(way, 1), text)

    def about(self, message: str) -> tuple[float, Problem]:
        """The problem that a message without a line tells of, and how well the place fits what the message quotes."""
        subject = re.split(r"[.] |missing required field", message)[0]
        words = {word for found in _QUOTED.findall(subject) for word in found if word}
        best, place = 0.0, tuple[Any, ...]()
        for way, value in self.ways():
            above = len(words.intersection(map(str, way)))
            if way and str(way[-1]) in words:
                fit = float(above)
            elif isinstance(value, str | int | float):
                fit = above + (
                    1.0 if str(value) in words else 0.5 if words.intersection(str(value).split()) else -above
                )
            else:
                continue
            if (fit, -len(way)) > (best, -len(place)):
                best, place = fit, way
        return best, self.problem(place, message)

    def ways(self) -> Iterator[tuple[tuple[Any, ...], Any]]:
        """Each key and entry with what it holds; what `<<` brings is passed over."""
        for way in self.lines:
            yield way, _at(self.data, way)


def read_source(path: Path) -> Source:
    """Read a YAML file; raises UsageError when there is none, or it is too large."""
    try:
        with path.open("rb") as handle:
            raw = handle.read(_MOST_BYTES + 1)
    except OSError as error:
        raise UsageError(f"The file {path} cannot be read: {error.strerror}.") from None
    if len(raw) > _MOST_BYTES:
        raise UsageError(f"The file {path} has more than {_MOST_BYTES} bytes.")
    source = Source(path)
    try:
        text = raw.decode()
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is not None:
            _walk(source, loader, root, ())
            source.data = loader.construct_document(root)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        source.problems.append(Problem(path, line, f"it is no valid YAML: {error.problem}"))
        return source
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        source.problems.append(Problem(path, 1, f"it is no valid YAML: {' '.join(str(error).split())}"))
        return source
    if not isinstance(source.data, dict):
        source.problems.append(Problem(path, 1, "it holds no mapping"))
        source.data = None
    return source


def _walk(source: Source, loader: Any, node: yaml.Node, way: tuple[Any, ...]) -> None:
    if len(source.lines) > _MOST_ENTRIES:
        raise ValueError(f"it has more than {_MOST_ENTRIES} entries")
    source.lines.setdefault(way, node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        for number, entry in enumerate(node.value):
            _walk(source, loader, entry, (*way, number))
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            below = (*way, loader.construct_object(key) if isinstance(key, yaml.ScalarNode) else str(key))
            line = key.start_mark.line + 1
            if below in source.lines:
                source.problems.append(Problem(source.path, line, f"the key {below[-1]!r} stands there twice"))
            source.lines[below] = line
            _walk(source, loader, value, below)


def _at(data: Any, way: tuple[Any, ...]) -> Any:
    for step in way:
        data = data[step]
    return data
