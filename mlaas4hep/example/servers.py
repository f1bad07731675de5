"""Servers on this computer for examples: a web server of data that sends ranges, and the service itself."""

from __future__ import annotations

import atexit
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import uuid
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from mlaas4hep.client import Client
from mlaas4hep.errors import MlaasError

_HOST = "127.0.0.1"
_PATIENCE = 300.0  # seconds for the service to start
_LOOK = 0.1
_MOST_RANGES = 1000
_SETTINGS = """data = {data}
listen = "{host}:{port}"

[authentication]
token_file = {token}

[jobs]
interval = 0.3

[executor.local]
supervisor = "process"
limits = "where possible"
"""


class DataServer:
    """A web server for the files of a folder, on a free port of this computer only, until the program ends.

    Attributes:
        url: its address, with a / at the end.
        sent: bytes of files that it has sent.
    """

    def __init__(self, folder: Path) -> None:
        self.sent = 0
        self._lock = threading.Lock()
        handler = partial(_Ranges, directory=str(folder), server_of_data=self)
        self._server = _Server((_HOST, 0), handler)
        self.url = f"http://{_HOST}:{self._server.server_port}/"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def count(self, sent: int) -> None:
        """Add bytes that were sent."""
        with self._lock:
            self.sent += sent

    def close(self) -> None:
        """End the server."""
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing when whoever asked has had enough of an answer."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Ranges(SimpleHTTPRequestHandler):
    """Answers with whole files, or with the ranges of one (RFC 9110)."""

    protocol_version = "HTTP/1.1"

    def __init__(self, *words: Any, server_of_data: DataServer, **named: Any) -> None:
        self._data = server_of_data
        super().__init__(*words, **named)

    def do_GET(self) -> None:
        """Send a file, or what is asked for of it."""
        path = Path(self.translate_path(self.path))
        asked = self.headers.get("Range", "")
        if not path.is_file():
            self.send_error(404)
            return
        size = path.stat().st_size
        ranges = _parsed(asked, size)
        if ranges is None:
            self.send_response(416)
            self._finish([("Content-Range", f"bytes */{size}")], b"")
            return
        with path.open("rb") as stream:
            pieces = []
            for start, stop in ranges or [(0, size)]:
                stream.seek(start)
                pieces.append(stream.read(stop - start))
        changed = ("Last-Modified", self.date_time_string(int(path.stat().st_mtime)))
        if not ranges:
            self.send_response(200)
            self._finish([("Accept-Ranges", "bytes"), changed], pieces[0])
        elif len(ranges) == 1:
            self.send_response(206)
            self._finish([("Content-Range", _content_range(*ranges[0], size)), changed], pieces[0])
        else:
            self.send_response(206)
            mark = uuid.uuid4().hex
            body = b"".join(
                f"\r\n--{mark}\r\nContent-Range: {_content_range(*place, size)}\r\n\r\n".encode() + piece
                for place, piece in zip(ranges, pieces, strict=True)
            )
            kind = ("Content-Type", f"multipart/byteranges; boundary={mark}")
            self._finish([kind, changed], body + f"\r\n--{mark}--\r\n".encode())

    def _finish(self, headers: list[tuple[str, str]], body: bytes) -> None:
        for name, value in [*headers, ("Content-Length", str(len(body)))]:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self._data.count(len(body))

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def _parsed(asked: str, size: int) -> list[tuple[int, int]] | None:
    """The half-open ranges of a request, none for the whole file; None for those that the file does not have."""
    if not re.fullmatch(r"bytes=\d+-\d+(,\d+-\d+)*", asked):
        return []
    found = [(int(first), min(int(last) + 1, size)) for first, last in re.findall(r"(\d+)-(\d+)", asked)]
    if len(found) > _MOST_RANGES:
        return []
    return found if all(start < stop for start, stop in found) else None


def _content_range(start: int, stop: int, size: int) -> str:
    return f"bytes {start}-{stop - 1}/{size}"


def service(folder: Path) -> Client:
    """A client of the service that MLAAS4HEP_URL names, or else of one that is started here and ends with the program.

    Args:
        folder: for the data of a service that is started.

    Raises MlaasError for a service that does not start; UsageError for an address that is none.
    """
    if os.environ.get("MLAAS4HEP_URL"):
        return Client()
    folder = folder.absolute()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with socket.create_server((_HOST, 0)) as probe:
        port = probe.getsockname()[1]
    settings, log = folder / "service.toml", folder / "service.log"
    data, token = (json.dumps(str(folder / name)) for name in ("data", "token"))  # texts of TOML are those of JSON
    settings.write_text(_SETTINGS.format(data=data, token=token, host=_HOST, port=port), encoding="utf-8")
    words = [sys.executable, "-m", "mlaas4hep.cli", "serve", "--config", str(settings), "--part", "control"]
    with log.open("ab") as stream:
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream)
    atexit.register(process.terminate)
    end = time.monotonic() + _PATIENCE
    while not _listens(port):
        if process.poll() is not None or time.monotonic() > end:
            process.terminate()
            raise MlaasError("The service does not start.", f"{log} has what it says.")
        time.sleep(_LOOK)
    return Client(f"http://{_HOST}:{port}", lambda: (folder / "token").read_text(encoding="ascii").strip())


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((_HOST, port)) == 0
