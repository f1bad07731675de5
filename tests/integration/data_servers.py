"""Real servers of data on loopback: XRootD and nginx, each with a folder of its own that it runs from."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

PROGRAMS = {"nginx": "nginx-light", "xrootd": "xrootd-server"}
_USER = "nobody"
_XROOTD = """xrd.port {port}
all.adminpath {folder}/admin
all.pidpath {folder}/run
oss.localroot {folder}/files
all.export /store r/o
xrootd.redirect 192.0.2.7:1094 /store/moved
"""
_NGINX = """daemon off;
pid {folder}/pid;
error_log {folder}/error.log;
events {{ worker_connections 64; }}
http {{
  log_format ranges '$status $body_bytes_sent $request_method $uri "$http_range" $server_port';
  access_log {folder}/access.log ranges;
  client_body_temp_path {folder}/tmp; proxy_temp_path {folder}/tmp; fastcgi_temp_path {folder}/tmp;
  uwsgi_temp_path {folder}/tmp; scgi_temp_path {folder}/tmp;
  root {folder}/files;
  server {{
    listen 127.0.0.1:{ports[several]};
    location /elsewhere/ {{ return 302 http://elsewhere.example:8000$request_uri; }}
    location ~ ^/moved/(.*)$ {{ return 302 /$1; }}
    location /secret/ {{ return 403; }}
    location /busy/ {{ return 503; }}
  }}
  server {{ listen 127.0.0.1:{ports[single]}; max_ranges 1; }}
  server {{ listen 127.0.0.1:{ports[whole]}; max_ranges 0; }}
  server {{
    listen 127.0.0.1:{ports[tls]} ssl;
    ssl_certificate {folder}/cert.pem;
    ssl_certificate_key {folder}/key.pem;
  }}
}}
"""


@dataclass
class DataServer:
    """A running server and the folder of the files that it sends."""

    folder: Path
    ports: dict[str, int]
    process: subprocess.Popen[bytes]
    _seen: int = field(default=0)

    @property
    def files(self) -> Path:
        """What is put here is sent."""
        return self.folder / "files"

    def url(self, name: str, kind: str = "several") -> str:
        """The address of a file, on one of the servers."""
        scheme = {"root": "root", "tls": "https"}.get(kind, "http")
        place = f"{scheme}://127.0.0.1:{self.ports[kind]}/"
        return f"{place}/store/{name}" if kind == "root" else f"{place}{name}"

    def requests(self) -> list[str]:
        """What nginx's server for several ranges was asked since the last call: status, bytes, method, path, ranges."""
        # the log line follows the answer; a request of our own marks where it has got to
        with socket.create_connection(("127.0.0.1", self.ports["several"])) as probe:
            probe.sendall(b"GET /mark HTTP/1.0\r\n\r\n")
            while probe.recv(4096):
                pass
        lines: list[str] = []
        while not any(" /mark " in line for line in lines):
            lines = (self.folder / "access.log").read_text().splitlines()[self._seen :]
        self._seen += len(lines)
        asked = [line for line in lines if line.endswith(f" {self.ports['several']}")]
        return [line for line in asked if " /mark " not in line]


@contextmanager
def xrootd_server() -> Iterator[DataServer]:
    """An XRootD server for the files of its folder `store`, not run as root."""
    with _folder("files/store", "admin", "run") as folder:
        port = _free_port()
        (folder / "config").write_text(_XROOTD.format(port=port, folder=folder))
        with _running(folder, "xrootd", "-c", str(folder / "config"), "-n", "test") as process:
            while b"initialization completed" not in (folder / "log").read_bytes():
                _alive(process, folder)
            yield DataServer(folder, {"root": port}, process)


@contextmanager
def nginx_server() -> Iterator[DataServer]:
    """nginx with one port each for a server that sends several ranges, single ones, none, and over TLS."""
    with _folder("files", "tmp") as folder:
        ports = {kind: _free_port() for kind in ("several", "single", "whole", "tls")}
        _certificate(folder)
        (folder / "config").write_text(_NGINX.format(ports=ports, folder=folder))
        with _running(folder, "nginx", "-c", str(folder / "config"), "-e", str(folder / "error.log")) as process:
            for port in ports.values():
                while not _listens(port):
                    _alive(process, folder)
            yield DataServer(folder, ports, process)


@contextmanager
def _folder(*names: str) -> Iterator[Path]:
    """A folder that the servers' user may read, with these folders in it that it may write."""
    with tempfile.TemporaryDirectory(prefix="mlaas4hep-data-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        for inner in names:
            (folder / inner).mkdir(parents=True)
        if os.geteuid() == 0:
            for path in (folder, *folder.rglob("*")):
                os.chown(path, pwd.getpwnam(_USER).pw_uid, -1)
        yield folder


@contextmanager
def _running(folder: Path, program: str, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    path = shutil.which(program, path=_programs())
    assert path, program
    user = {"user": _USER, "group": pwd.getpwnam(_USER).pw_gid, "extra_groups": []} if os.geteuid() == 0 else {}
    (folder / "log").touch()
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen([path, *words], cwd=folder, stdout=log, stderr=log, **user)
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


def _alive(process: subprocess.Popen[bytes], folder: Path) -> None:
    assert process.poll() is None, (folder / "log").read_text()
    time.sleep(0.01)


def _certificate(folder: Path) -> None:
    """A certificate that nobody trusts."""
    subject = ("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2")
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", "key.pem")
    subprocess.run(
        ["openssl", "req", "-x509", *key, *subject, "-out", "cert.pem"],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    (folder / "key.pem").chmod(0o644)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _programs() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin"
