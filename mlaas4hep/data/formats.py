"""File formats: the one place where a source finds its reader.

A format is a module with a function that opens a source and gives a `Reader`. They are loaded when they are needed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

from mlaas4hep.data.blocks import Reader
from mlaas4hep.data.remote import is_xrootd, load_xrootd
from mlaas4hep.data.root import FileReport, TreeReport, inspect_file
from mlaas4hep.data.sources import ROOT, Source, format_of
from mlaas4hep.errors import UsageError

Opener = Callable[[Source], AbstractContextManager[Reader]]

_OPENERS = {
    ROOT: ("root", "open_tree"),
    "csv": ("separated", "open_csv"),
    "json": ("jsonlines", "open_json"),
    "parquet": ("parquet", "open_parquet"),
    "avro": ("avro", "open_avro"),
}
_NAMES = {"csv": "CSV", "json": "JSON", "parquet": "Parquet", "avro": "Avro"}


def open_source(source: Source) -> AbstractContextManager[Reader]:
    """Open a source for training, by its format. Raises MlaasError for whatever cannot be read."""
    module, function = _OPENERS[source.format]
    opener: Opener = getattr(importlib.import_module(f"mlaas4hep.data.{module}"), function)
    return opener(source)


def inspect_source(path: str, tree: str = "", dtype: str = "") -> FileReport:
    """Describe a file of any format; of a ROOT file only `tree`, when it is given.

    Args:
        path: a local path or URL.
        tree: a tree of a ROOT file.
        dtype: the format, "" to go by the suffix.

    Raises MlaasError for a file that cannot be read, UsageError for a tree of a format without trees.
    """
    kind = format_of(path, dtype)
    if kind == ROOT:
        return inspect_file(path, tree)
    if tree:
        raise UsageError(f"{path} is read as {kind}, which has no trees.", "Leave out --tree.")
    with open_source(Source(path, "", format=kind)) as reader:
        branches = reader.branches
        compressed = sum(branch.compressed for branch in branches)
        uncompressed = sum(branch.uncompressed for branch in branches)
        report = TreeReport("", _NAMES[kind], reader.entries, compressed, uncompressed, branches)
        return FileReport(path, reader.facts.size, "", (report,))


def load_clients(sources: Iterable[Source]) -> None:
    """Load the clients of remote protocols that must be loaded before a framework is."""
    if any(is_xrootd(source.path) for source in sources):
        load_xrootd()
