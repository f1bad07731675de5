"""Files on servers: byte ranges over root:// and http(s)://, with finite patience and one check that the file stays.

A request asks for many ranges at once: over HTTP as one request with several ranges (RFC 9110, section 14), over
XRootD as vector reads. Every answer is compared with the state in which the file was opened, so that a file that
changes on the server while it is read is refused, never mixed.
"""

from __future__ import annotations

import http.client
import importlib
import io
import os
import re
import ssl
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import SplitResult, urljoin, urlsplit

from mlaas4hep.errors import MlaasError, UsageError
from mlaas4hep.names import matching

XROOTD_SCHEMES = ("root", "roots", "xroot", "xroots")
HTTP_SCHEMES = ("http", "https")


@dataclass(frozen=True)
class Patience:
    """How long a server may take.

    Attributes:
        connect: seconds until it accepts a connection.
        answer: seconds of silence while it answers.
        rate: bytes a second that an answer has to come with, beyond `answer`.
        tries: requests that may fail in a row for reasons that pass (a connection that breaks, an overloaded server).
        pause: seconds between such requests.
    """

    connect: float = 15
    answer: float = 60
    rate: float = 10_000
    tries: int = 3
    pause: float = 1


PATIENCE = Patience()

# what the XRootD client waits for a server (seconds, tries): its own defaults hang for minutes on an unreachable one
_XROOTD_PATIENCE = {"XRD_CONNECTIONWINDOW": "10", "XRD_CONNECTIONRETRY": "2", "XRD_REQUESTTIMEOUT": "60"}
# limits of a vector read that every XRootD server keeps (the protocol's defaults)
_VECTOR_ELEMENTS, _VECTOR_BYTES, _VECTOR_TOTAL = 1024, 2_000_000, 8 * 2**20
# XRootD: from this size on a plain read is cheaper than an element of a vector read
_LONG_RUN, _PIECE = 512 * 2**10, 4 * 2**20
_NO_SUCH_FILE = 3011
# HTTP: servers limit a header line to 8 KiB, a single-range server is asked for more at once
_RANGE_HEADER_BYTES = 4000
_GAP, _GAP_SINGLE, _LONGEST = 32 * 2**10, 512 * 2**10, 32 * 2**20
_REDIRECTS = 5
_PASSING = (429, 500, 502, 503, 504)
_BUFFER = 4 * 2**20

Range = tuple[int, int]


class RemoteFile(Protocol):
    """An open file on a server.

    Attributes:
        url: its address.
        size: bytes.
        version: changes when the file does (ETag, or time of modification); "" when the server gives none.
    """

    url: str
    size: int
    version: str

    def ranges(self, wanted: Sequence[Range]) -> Iterator[tuple[Range, bytes]]:
        """The bytes of disjoint ranges [start, stop), each given as soon as it is there, in any order.

        Raises MlaasError when the server does not answer, or when the file is no longer the one that was opened.
        """

    def verify(self) -> None:
        """Raise MlaasError unless the server still has the file that was opened."""

    def close(self) -> None:
        """End the connection."""


def is_xrootd(path: str) -> bool:
    """Whether the path is the URL of an XRootD server."""
    return urlsplit(path).scheme.lower() in XROOTD_SCHEMES


def open_remote(url: str) -> RemoteFile:
    """Open a file by its URL.

    Raises MlaasError for a file that is not there, a server that cannot be reached or does not answer in time, and a
    server that sends no parts of files; UsageError for a scheme that is not read.
    """
    scheme = urlsplit(url).scheme.lower()
    if is_xrootd(url):
        return XRootDFile(url)
    if scheme in HTTP_SCHEMES:
        return HTTPFile(url)
    raise UsageError(f"{url}: files are not read over {scheme}://.", "Use root://, https:// or a local path.")


def runs(wanted: Sequence[Range], gap: int = _GAP) -> list[Range]:
    """The ranges in order of place, those no more than `gap` bytes apart joined to runs of bounded length."""
    joined: list[Range] = []
    for start, stop in sorted(wanted):
        if joined and start - joined[-1][1] <= gap and max(stop, joined[-1][1]) - joined[-1][0] <= _LONGEST:
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((start, stop))
    return joined


def load_xrootd() -> Any:
    """Load the XRootD client, with patience for a slow server but not for one that cannot be reached.

    TensorFlow has to be loaded after it: the other way round the client crashes while it opens a file.
    Raises MlaasError when the client is not installed, and when it is too late for it.
    """
    if "XRootD.client" not in sys.modules and "tensorflow" in sys.modules:
        raise MlaasError(
            "root:// cannot be read after TensorFlow was loaded: the XRootD client would end the process.",
            "Import XRootD.client before TensorFlow, or read the file in a process of its own.",
        )
    for name, value in _XROOTD_PATIENCE.items():
        os.environ.setdefault(name, value)
    try:
        return importlib.import_module("XRootD.client")
    except ImportError as error:
        raise MlaasError("root:// needs the XRootD client, which is not there.", "Install mlaas4hep[data].") from error


def list_matching(url: str) -> list[str]:
    """The files of one folder of an XRootD server that match the pattern in the last part of the URL, sorted.

    Raises MlaasError when the server has no such folder or cannot be reached.
    """
    client = load_xrootd()
    folder, _, pattern = url.rpartition("/")
    if "*" in urlsplit(folder).path:
        raise UsageError(f"{url}: only the last part of a root:// path may be a pattern.", "Name the folder.")
    server = client.FileSystem(folder)
    status, entries = server.dirlist(urlsplit(folder).path[1:], timeout=int(PATIENCE.answer))
    if not status.ok:
        raise MlaasError(f"The folder {folder} cannot be listed ({_told(status)}).", "Check the address.")
    return [f"{folder}/{name}" for name in matching(pattern, sorted(entry.name for entry in entries))]


class XRootDFile:
    """A file of an XRootD server."""

    def __init__(self, url: str) -> None:
        client = load_xrootd()
        self.url = url
        self._file = client.File()
        status, _ = self._file.open(url, client.flags.OpenFlags.READ, timeout=_seconds(PATIENCE.answer))
        if not status.ok:
            raise self._failure(status)
        try:
            self.size, self.version = self._stat()
        except MlaasError:
            self.close()
            raise

    def ranges(self, wanted: Sequence[Range]) -> Iterator[tuple[Range, bytes]]:
        """The bytes of the ranges: long ones by plain reads, short ones by vector reads."""
        short: list[Range] = []
        for start, stop in wanted:
            if stop - start >= _LONG_RUN:
                yield (start, stop), self._read(start, stop)
            else:
                short.append((start, stop))
        for group in _vectors(short):
            yield from zip(group, self._vector_read(group), strict=True)

    def verify(self) -> None:
        """Compare size and time of modification with those at the start."""
        client = load_xrootd()
        url = client.URL(self.url)
        server = client.FileSystem(f"{url.protocol}://{url.hostid}")
        status, found = server.stat(url.path_with_params, timeout=_seconds(PATIENCE.answer))
        if not status.ok:
            raise self._failure(status)
        if (int(found.size), str(found.modtime)) != (self.size, self.version):
            raise changed(self.url)

    def close(self) -> None:
        """Close the file on the server."""
        self._file.close(timeout=_seconds(PATIENCE.connect))

    def _stat(self) -> tuple[int, str]:
        status, found = self._file.stat(timeout=_seconds(PATIENCE.answer))
        if not status.ok:
            raise self._failure(status)
        return int(found.size), str(found.modtime)

    def _read(self, start: int, stop: int) -> bytes:
        pieces = []
        for begin in range(start, stop, _PIECE):
            length = min(_PIECE, stop - begin)
            status, data = self._file.read(begin, length, timeout=_seconds(PATIENCE.answer))
            if not status.ok:
                raise self._failure(status)
            if len(data) != length:
                raise changed(self.url)
            pieces.append(data)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _vector_read(self, group: Sequence[Range]) -> list[bytes]:
        chunks = [(start, stop - start) for start, stop in group]
        status, answer = self._file.vector_read(chunks, timeout=_seconds(PATIENCE.answer))
        if not status.ok:
            raise self._failure(status)
        data = {chunk.offset: chunk.buffer for chunk in answer.chunks}
        return [data[start] for start, _ in group]

    def _failure(self, status: Any) -> MlaasError:
        if status.errno == _NO_SUCH_FILE:
            return MlaasError(f"{self.url} does not exist on the server.", "Correct the address.")
        return MlaasError(
            f"{self.url} cannot be read ({_told(status)}).", "Check the address and that the server runs."
        )


def _vectors(ranges: Sequence[Range]) -> Iterator[list[Range]]:
    """Group short ranges into vector reads within the protocol's limits."""
    group: list[Range] = []
    total = 0
    for start, stop in ranges:
        if group and (len(group) == _VECTOR_ELEMENTS or total + stop - start > _VECTOR_TOTAL):
            yield group
            group, total = [], 0
        group.append((start, stop))
        total += stop - start
    if group:
        yield group


def _told(status: Any) -> str:
    """What the XRootD client says, as part of a sentence."""
    return re.sub(r"^\[\w+\]\s*", "", str(status.message).strip()).rstrip(".") or "no reason given"


def _seconds(seconds: float) -> int:
    return max(1, round(seconds))


def changed(path: str) -> MlaasError:
    """The error of a file that is no longer the one that was opened."""
    return MlaasError(f"{path} changed on the server while it was read.", "Start again when it is complete.")


class HTTPFile:
    """A file of a web server that sends parts of files."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.size, self.version = -1, ""
        self._place = urlsplit(url)
        self._connection: http.client.HTTPConnection | None = None
        self._several = True
        try:
            self._find()
        except BaseException:
            self.close()
            raise

    def ranges(self, wanted: Sequence[Range]) -> Iterator[tuple[Range, bytes]]:
        """The bytes of the ranges: in one request as far as a header holds them, one by one where a server wants it."""
        pending = list(wanted)
        failures = 0
        while pending:
            asked = self._batch(pending)
            try:
                for answered, data in self._request(asked):
                    pending.remove(answered)
                    failures = 0
                    yield answered, data
            except (ConnectionError, http.client.HTTPException) as error:
                failures += 1
                self.close()
                if failures == PATIENCE.tries:
                    raise self._broken(error) from error
                time.sleep(PATIENCE.pause if failures > 1 else 0)

    def verify(self) -> None:
        """Compare size and ETag with those at the start."""
        for _ in self.ranges([(0, 1)]):
            pass

    def close(self) -> None:
        """Close the connection."""
        if self._connection:
            self._connection.close()
            self._connection = None

    def _batch(self, pending: Sequence[Range]) -> list[Range]:
        """As many of the ranges as one request may ask for."""
        if not self._several:
            return [pending[0]]
        length = 0
        batch: list[Range] = []
        for start, stop in pending:
            length += len(f"{start}-{stop - 1},")
            if batch and length > _RANGE_HEADER_BYTES:
                break
            batch.append((start, stop))
        return batch

    def _find(self) -> None:
        """Follow redirections to the file, and note its size and version."""
        for _ in range(_REDIRECTS):
            response = self._first_answer()
            location = response.getheader("Location")
            if response.status not in (301, 302, 303, 307, 308) or not location:
                break
            self._drop()
            self._redirect(location)
        else:
            raise MlaasError(f"{self.url} is redirected without end.", "Correct the address.")
        if response.status == 416 or (response.status == 200 and response.length == 0):
            self.size = 0
        elif response.status == 206:
            self.size = _content_range(response.getheader("Content-Range") or "", self.url)[2]
        else:
            self._refuse(response)
        self.version = _version(response)
        self._finish(response)

    def _first_answer(self) -> http.client.HTTPResponse:
        failures = 0
        while True:
            try:
                response = self._send("bytes=0-0")
            except (ConnectionError, http.client.HTTPException) as error:
                failures += 1
                self.close()
                if failures == PATIENCE.tries:
                    raise self._broken(error) from error
                time.sleep(PATIENCE.pause)
                continue
            if response.status not in _PASSING or failures == PATIENCE.tries - 1:
                return response
            failures += 1
            self._drop()
            time.sleep(PATIENCE.pause)

    def _redirect(self, location: str) -> None:
        target = urlsplit(urljoin(self._place.geturl(), location))
        if target.scheme not in HTTP_SCHEMES or (self._place.scheme == "https" and target.scheme == "http"):
            raise MlaasError(f"{self.url} is redirected to {target.scheme}://, which is not followed.")
        self._place = target

    def _request(self, asked: Sequence[Range]) -> Iterator[tuple[Range, bytes]]:
        """One request; its answer may have fewer of the ranges than were asked for, never others."""
        if self.size == 0:
            raise changed(self.url)
        response = self._send("bytes=" + ",".join(f"{start}-{stop - 1}" for start, stop in asked))
        if response.status == 200 and len(asked) > 1:
            # the server does not send several ranges at once; what it began to send instead is the whole file
            self._several = False
            self._drop()
            return
        if response.status in _PASSING:
            self._drop()
            raise http.client.HTTPException(f"it answers {response.status} {response.reason}")
        if response.status in (404, 410, 412, 416):
            raise changed(self.url)
        if response.status != 206:
            self._refuse(response)
        if _version(response) != self.version:
            raise changed(self.url)
        body = _Body(response, self.url, sum(stop - start for start, stop in asked))
        kind = response.getheader("Content-Type") or ""
        if kind.lower().startswith("multipart/byteranges"):
            yield from self._parts(body, asked)
        else:
            yield from self._part(body, response.getheader("Content-Range") or "", asked)
        self._finish(response)

    def _parts(self, body: _Body, asked: Sequence[Range]) -> Iterator[tuple[Range, bytes]]:
        """The parts of a multipart/byteranges answer."""
        missing = set(asked)
        while missing:
            for answered, data in self._part(body, body.part_header(), missing):
                missing.remove(answered)
                yield answered, data

    def _part(self, body: _Body, header: str, asked: Iterable[Range]) -> list[tuple[Range, bytes]]:
        """The ranges that one part holds: a server may join neighbours."""
        start, stop, size = _content_range(header, self.url)
        if size != self.size:
            raise changed(self.url)
        inside = [(begin, end) for begin, end in asked if start <= begin and end <= stop]
        if not inside:
            raise self._odd(f"the bytes {start}-{stop - 1}, which were not asked for")
        data = body.exactly(stop - start)
        return [((begin, end), data[begin - start : end - start]) for begin, end in inside]

    def _send(self, ranges: str) -> http.client.HTTPResponse:
        connection = self._connection or self._connect()
        target = (self._place.path or "/") + (f"?{self._place.query}" if self._place.query else "")
        try:
            connection.request("GET", target, headers={"Range": ranges, "User-Agent": "mlaas4hep"})
            return connection.getresponse()
        except TimeoutError as error:
            raise self._silent(PATIENCE.answer) from error

    def _connect(self) -> http.client.HTTPConnection:
        connection = _connection(self._place, PATIENCE.connect)
        where = f"{self._place.scheme}://{self._place.netloc}"
        try:
            connection.connect()
        except TimeoutError as error:
            raise self._silent(PATIENCE.connect) from error
        except ssl.SSLCertVerificationError as error:
            raise MlaasError(
                f"{self.url}: the certificate of {where} is not trusted ({error.verify_message}).",
                "Have its authority added to this machine's certificates.",
            ) from error
        except OSError as error:
            raise MlaasError(
                f"{self.url}: the server {where} cannot be reached ({error.strerror or error}).", "Check the address."
            ) from error
        connection.sock.settimeout(PATIENCE.answer)
        self._connection = connection
        return connection

    def _finish(self, response: http.client.HTTPResponse) -> None:
        """Leave the connection ready for the next request, or drop it."""
        with suppress(OSError, http.client.HTTPException):
            if (
                response.length is None
                or response.length > _GAP
                or response.read(_GAP) is None
                or not response.isclosed()
            ):
                self._drop()
        if response.will_close:
            self._drop()

    def _drop(self) -> None:
        self.close()

    def _refuse(self, response: http.client.HTTPResponse) -> None:
        """Raise the sentence that an answer deserves which has no data."""
        status = response.status
        self._drop()
        if status in (404, 410):
            raise MlaasError(f"{self.url} does not exist on the server ({status}).", "Correct the address.")
        if status in (401, 403):
            raise MlaasError(f"{self.url}: the server refuses access ({status} {response.reason}).")
        if status == 200:
            raise MlaasError(
                f"{self.url}: the server sends no parts of files (HTTP ranges).", "Copy the file, and name the copy."
            )
        raise MlaasError(f"{self.url}: the server answers {status} {response.reason}.", "Try again later.")

    def _broken(self, error: BaseException) -> MlaasError:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return MlaasError(f"{self.url}: the connection to the server broke ({reason}).", "Try again later.")

    def _silent(self, seconds: float) -> MlaasError:
        return MlaasError(f"{self.url}: the server does not answer within {seconds:g} s.", "Try again later.")

    def _odd(self, what: str) -> MlaasError:
        return MlaasError(f"{self.url}: the server sends {what}.", "Copy the file, and name the copy.")


class _Body:
    """The body of an answer, read against a deadline that its size sets."""

    def __init__(self, response: http.client.HTTPResponse, url: str, size: int) -> None:
        self._response = response
        self._url = url
        self._seconds = PATIENCE.answer + size / PATIENCE.rate
        self._deadline = time.monotonic() + self._seconds
        self._rest = b""

    def exactly(self, size: int) -> bytes:
        """The next `size` bytes."""
        data = bytearray(size)
        view, filled = memoryview(data), min(size, len(self._rest))
        view[:filled], self._rest = self._rest[:filled], self._rest[filled:]
        while filled < size:
            piece = self._piece(size - filled)
            view[filled : filled + len(piece)] = piece
            filled += len(piece)
        return bytes(data)

    def part_header(self) -> str:
        """The Content-Range of the next part, up to the blank line that ends the part's header."""
        while (end := self._rest.find(b"\r\n\r\n", 2 if self._rest.startswith(b"\r\n") else 0)) < 0:
            if len(self._rest) > _RANGE_HEADER_BYTES:
                raise http.client.HTTPException("a part of its answer has no header")
            self._rest += self._piece(512)
        header, self._rest = self._rest[:end].decode("latin-1"), self._rest[end + 4 :]
        found = re.search(r"^content-range:\s*(.+?)\s*$", header, re.IGNORECASE | re.MULTILINE)
        if not found:
            raise http.client.HTTPException("its answer ended before all parts came")
        return found[1]

    def _piece(self, size: int) -> bytes:
        if time.monotonic() > self._deadline:
            raise MlaasError(f"{self._url}: the answer takes longer than {self._seconds:.0f} s.", "Try again later.")
        try:
            piece = self._response.read1(size)
        except TimeoutError as error:
            raise MlaasError(
                f"{self._url}: the server does not answer within {PATIENCE.answer:g} s.", "Try again later."
            ) from error
        if not piece:
            raise http.client.HTTPException("its answer ended early")
        return piece


def _connection(place: SplitResult, timeout: float) -> http.client.HTTPConnection:
    try:
        host, port = place.hostname or "", place.port
    except ValueError as error:
        raise UsageError(f"{place.geturl()} is no address ({error}).") from error
    if place.scheme == "https":
        return http.client.HTTPSConnection(host, port, timeout=timeout, context=ssl.create_default_context())
    return http.client.HTTPConnection(host, port, timeout=timeout)


def _version(response: http.client.HTTPResponse) -> str:
    return response.getheader("ETag") or response.getheader("Last-Modified") or ""


def _content_range(header: str, url: str) -> tuple[int, int, int]:
    """Start, stop and size of the whole file of `bytes START-LAST/SIZE`."""
    found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", header.strip())
    if not found:
        raise MlaasError(f"{url}: the server does not say which part it sends.", "Copy the file, and name the copy.")
    start, last, size = (int(number) for number in found.groups())
    return start, last + 1, size


class RemoteStream(io.RawIOBase):
    """A remote file as Python's binary file, for readers that take one; `open_stream` gives it a buffer."""

    def __init__(self, file: RemoteFile) -> None:
        self._file = file
        self._place = 0

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the place of the next read."""
        self._place = offset + (0, self._place, self._file.size)[whence]
        return self._place

    def tell(self) -> int:
        """The place of the next read."""
        return self._place

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer by one request; returns the number of bytes, 0 at the end."""
        stop = min(self._place + len(buffer), self._file.size)
        if stop <= self._place:
            return 0
        for (start, end), data in self._file.ranges([(self._place, stop)]):
            buffer[: end - start] = data
            self._place = end
        return stop - start

    def close(self) -> None:
        """Close the file on the server."""
        if not self.closed:
            self._file.close()
        super().close()


def open_stream(file: RemoteFile) -> io.BufferedReader:
    """The remote file as a binary stream that reads ahead."""
    return io.BufferedReader(RemoteStream(file), _BUFFER)
