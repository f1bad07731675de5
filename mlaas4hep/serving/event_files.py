"""Raw events as a file in the body of a request: Parquet, Arrow or ROOT.

Their libraries can be brought down by damaged files. They read in a process of its own with bounded memory: when it
dies, one request fails and the next one gets a new process.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import resource
import tempfile
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from mlaas4hep.data.blocks import Block, joined
from mlaas4hep.data.schema import Schema
from mlaas4hep.errors import MlaasError, UsageError
from mlaas4hep.names import did_you_mean, listing
from mlaas4hep.serving.runtime import LoadedModel, TooSlowError
from mlaas4hep.serving.settings import ServingSettings
from mlaas4hep.training.prediction import input_branches

FORMS = {
    "application/vnd.apache.parquet": "parquet",
    "application/vnd.apache.arrow.file": "arrow",
    "application/vnd.apache.arrow.stream": "arrow",
    "application/vnd.root": "root",
}
_MEMORY = 4 * 2**30  # address space of the process beyond what it starts with
_SLACK = 30.0  # seconds for the process to begin
_BRANCH_BYTES = 512 * 2**20


class EventFiles:
    """Reads the files of requests, one after another.

    Args:
        settings: bounds of a request.
    """

    def __init__(self, settings: ServingSettings) -> None:
        self._settings = settings
        self._pool: ProcessPoolExecutor | None = None
        self._turn = asyncio.Lock()

    async def block(self, model: LoadedModel, form: str, content: bytes, tree: str) -> Block:
        """The branches that a model reads, of all entries of a file.

        Args:
            model: whose branches.
            form: content type of the body.
            content: the file.
            tree: the tree of a ROOT file; "" for the one of the training.

        Raises UsageError for other forms and missing branches, MlaasError for files that cannot be read.
        """
        if form not in FORMS:
            raise UsageError(
                f"Events cannot be read from {form[:60]!r}.", f"Send application/json, {listing(list(FORMS))}."
            )
        if model.bundle is None:
            raise UsageError("The model takes no raw events.", "Send its own inputs to infer.")
        tree = tree or model.bundle.tree
        arguments = (model.bundle.schema, FORMS[form], content, tree, self._settings.events)
        # one at a time: a process that has to be ended takes nobody else's file with it
        async with self._turn:
            return await self._read(arguments)

    async def _read(self, arguments: tuple[Any, ...]) -> Block:
        pool = self._pool = self._pool or ProcessPoolExecutor(
            1, mp_context=multiprocessing.get_context("spawn"), initializer=_bounded
        )
        try:
            reading = asyncio.get_running_loop().run_in_executor(pool, read_block, *arguments)
            return await asyncio.wait_for(reading, _SLACK + self._settings.seconds)
        except (BrokenProcessPool, TimeoutError) as error:
            self._pool = None
            _end(pool)
            if isinstance(error, TimeoutError):
                raise TooSlowError("Reading the file takes longer than it may.", "Send fewer events.") from error
            raise MlaasError("The file is damaged, or too large to be read.", "Get it again, or send parts.") from error

    def close(self) -> None:
        """End the process."""
        pool, self._pool = self._pool, None
        if pool is not None:
            _end(pool)
            pool.shutdown()
            # its semaphores go with it: uvicorn ends by a signal, after which nothing is tidied up
            del pool
            gc.collect()


def _end(pool: ProcessPoolExecutor) -> None:
    # the pool itself would wait for a reader that does not end
    for process in list((pool._processes or {}).values()):
        process.kill()
    pool.shutdown(wait=False, cancel_futures=True)


def _bounded() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + _MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def read_block(schema: Schema, form: str, content: bytes, tree: str, most: int) -> Block:
    """Read a file; see `EventFiles.block`."""
    if form == "arrow":
        return _arrow(schema, content, most)
    from mlaas4hep.data.formats import open_source
    from mlaas4hep.data.sources import Source

    with tempfile.NamedTemporaryFile(prefix="events-", suffix=f".{form}") as stream:
        stream.write(content)
        stream.flush()
        try:
            with open_source(Source(stream.name, tree if form == "root" else "", format=form)) as reader:
                names = [branch.name for branch in input_branches(schema)]
                _check(names, {branch.name for branch in reader.branches}, reader.entries, most)
                size = sum(branch.uncompressed for branch in reader.branches if branch.name in names)
                if size > _BRANCH_BYTES:
                    raise UsageError(f"The branches have {size} bytes.", "Send the file in parts.")
                blocks = list(reader.blocks(names, reader.entries))
        except MlaasError as error:
            text = str(error).replace(stream.name, "the file")
            raise UsageError(text[:1].upper() + text[1:]) from error
    columns = {name: joined([block.columns[name] for block in blocks]) for name in names} if blocks else {}
    if not columns:
        raise UsageError("The file has no events.")
    return Block(0, reader.entries, columns)


def _arrow(schema: Schema, content: bytes, most: int) -> Block:
    import pyarrow as pa

    from mlaas4hep.data.arrow import branch_of, column_values

    try:
        source = pa.BufferReader(content)
        opened = pa.ipc.open_file(source) if content.startswith(b"ARROW1") else pa.ipc.open_stream(source)
        table = opened.read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UsageError("The body is no Arrow IPC file or stream.") from error
    names = [branch.name for branch in input_branches(schema)]
    _check(names, set(table.column_names), table.num_rows, most)
    if len(set(table.column_names)) < len(table.column_names):
        raise UsageError("The body has two columns of one name.")
    columns = {}
    for name in names:
        array = table.column(name).combine_chunks()
        columns[name] = column_values(array, branch_of(name, array.type), "the body")
    return Block(0, table.num_rows, columns)


def _check(names: list[str], there: set[str], events: int, most: int) -> None:
    for name in names:
        if name not in there:
            raise UsageError(f"The file has no branch {name}.", did_you_mean(name, sorted(there), "branches"))
    if not events:
        raise UsageError("The file has no events.")
    if events > most:
        raise UsageError(f"There are {events} events, more than the {most} of one request.", "Send them in parts.")
