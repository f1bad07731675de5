"""File formats: the one place where a source finds its reader."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager

from mlaas4hep.data.blocks import Reader
from mlaas4hep.data.root import load_xrootd, open_tree
from mlaas4hep.data.sources import Source


def open_source(source: Source) -> AbstractContextManager[Reader]:
    """Open a source for training, by its format. Raises MlaasError for whatever cannot be read."""
    return open_tree(source)


def load_clients(sources: Iterable[Source]) -> None:
    """Load the clients of remote protocols that must be loaded before a framework is."""
    if any(source.remote for source in sources):
        load_xrootd()
