"""How uproot reads a remote file: the baskets of one step are fetched together while earlier ones are decompressed."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from uproot.source.chunk import Chunk, Source, notifier
from uproot.source.futures import TrivialFuture

from mlaas4hep.data.remote import Range, open_remote, runs


class RemoteSource(Source):  # type: ignore[misc]
    """The physical layer of uproot over `open_remote`; `uproot.open(..., handler=RemoteSource)`."""

    def __init__(self, file_path: str, **_options: Any) -> None:
        super().__init__()
        self._file_path = file_path
        self._remote = open_remote(file_path)
        self._num_bytes = self._remote.size
        self._executor = ThreadPoolExecutor(1, "remote")
        self._closed = False
        self._held: dict[Range, bytes] = {}

    @property
    def version(self) -> str:
        """What tells the state of the file on the server."""
        return self._remote.version

    @property
    def closed(self) -> bool:
        """Whether the file was closed."""
        return self._closed

    def verify(self) -> None:
        """Raise MlaasError unless the server still has the file that was opened."""
        self._remote.verify()

    def __enter__(self) -> RemoteSource:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._executor.shutdown()
        self._remote.close()
        self._closed = True

    def fetch_together(self, wanted: list[Range]) -> None:
        """Fetch ranges that `chunk` will be asked for, and hold them in place of those held before."""
        self._held.clear()
        inside = [(start, min(stop, self._num_bytes)) for start, stop in wanted if 0 <= start < self._num_bytes]
        if inside:
            self._held.update(self._executor.submit(lambda: dict(self._counted(runs(inside)))).result())

    def chunk(self, start: int, stop: int) -> Chunk:
        """The bytes [start, stop), fewer at the end of the file."""
        stop_there = min(stop, self._num_bytes)
        for (begin, end), held in self._held.items():
            if begin <= start and stop_there <= end:
                return Chunk(self, start, stop, TrivialFuture(memoryview(held)[start - begin : stop_there - begin]))
        data = self._executor.submit(self._fetched, start, stop_there).result()
        return Chunk(self, start, stop, TrivialFuture(data))

    def chunks(self, ranges: list[Range], notifications: queue.Queue[Chunk]) -> list[Chunk]:
        """All the ranges, each put into `notifications` as soon as it is there."""
        futures: dict[Range, Future[bytes | memoryview]] = {}
        chunks = []
        for start, stop in ranges:
            future = futures.setdefault((start, stop), Future())
            chunk = Chunk(self, start, stop, future)
            future.add_done_callback(_telling(notifier(chunk, notifications)))
            chunks.append(chunk)
        self._executor.submit(self._fill, futures)
        return chunks

    def _fetched(self, start: int, stop: int) -> bytes:
        pieces = dict(self._counted([(start, stop)])) if stop > start else {}
        return pieces.get((start, stop), b"")

    def _counted(self, wanted: list[Range]) -> Iterator[tuple[Range, bytes]]:
        self._num_requests += 1
        self._num_requested_chunks += len(wanted)
        self._num_requested_bytes += sum(stop - start for start, stop in wanted)
        return self._remote.ranges(wanted)

    def _fill(self, futures: dict[Range, Future[bytes | memoryview]]) -> None:
        """Fetch the ranges, joined to runs, and hand each its bytes; a failure goes to all that have none."""
        inside = [wanted for wanted in futures if wanted[1] <= self._num_bytes]
        try:
            for (start, stop), data in self._counted(runs(inside)):
                view = memoryview(data)
                for begin, end in [wanted for wanted in inside if start <= wanted[0] and wanted[1] <= stop]:
                    if not futures[begin, end].done():
                        futures[begin, end].set_result(view[begin - start : end - start])
            if len(inside) < len(futures):
                raise EOFError(f"the file ends before {max(stop for _, stop in futures)} bytes")
        except BaseException as error:
            for future in futures.values():
                if not future.done():
                    future.set_exception(error)


def _telling(tell: Callable[[], None]) -> Callable[[Future[bytes | memoryview]], None]:
    """`tell` as what a future calls when it is done."""
    return lambda _future: tell()
