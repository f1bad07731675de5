"""Storage of others on loopback, for backups: an SFTP server (OpenSSH's), and an S3 server (moto's, of PyPI)."""

from __future__ import annotations

import hashlib
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.request
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from provision.remote import make_key
from tests.debian import lacking
from tests.slurm.cluster import wait_until

BUCKET = "backups"
_HERE = Path(__file__).parent
_CACHE = _HERE.parents[1] / ".cache"
_S3 = """
import time
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
time.sleep(1e9)
"""


def inability() -> str:
    """Why the SFTP server cannot be run here, or ""."""
    return lacking({"sshd": "openssh-server", "ssh": "openssh-client"})


@contextmanager
def sftp_server(folder: Path) -> Iterator[int]:
    """An SFTP server that admits root with the `client_key` of its folder, and has `known_hosts` there; its port."""
    folder.mkdir(mode=0o700)
    program = shutil.which("sshd") or "/usr/sbin/sshd"
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    make_key(folder / "host_key", "host")
    (folder / "authorized_keys").write_text(make_key(folder / "client_key", "backup") + "\n")
    public = (folder / "host_key.pub").read_text().split()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {' '.join(public[:2])}\n")
    (folder / "config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host_key\nPidFile none\nUsePAM no\nStrictModes no\n"
        f"AuthorizedKeysFile {folder}/authorized_keys\nPasswordAuthentication no\nSubsystem sftp internal-sftp\n"
        "PermitRootLogin prohibit-password\n"
    )
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program, "-D", "-e", "-f", str(folder / "config")], stdout=log, stderr=log)
        try:
            wait_until(lambda: _answers(port))
            yield port
        finally:
            process.terminate()
            process.wait()


@contextmanager
def s3_server() -> Iterator[int]:
    """An S3 server that has an empty bucket and believes everybody; its port."""
    with subprocess.Popen([_python(), "-c", _S3], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            made = urllib.request.Request(f"http://127.0.0.1:{port}/{BUCKET}", method="PUT")
            urllib.request.build_opener(urllib.request.ProxyHandler({})).open(made, timeout=300).close()
            yield port
        finally:
            process.kill()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _python() -> Path:
    """The Python of an environment that has the S3 server; made once."""
    wanted = _HERE / "requirements.txt"
    folder = _CACHE / f"storage-{hashlib.sha256(wanted.read_bytes()).hexdigest()[:12]}"
    if not folder.exists():
        _CACHE.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=_CACHE, prefix="storage-") as name:
            made = Path(name) / "made"
            venv.create(made)
            installer = [Path(sys.executable).parent / "uv", "pip", "install", "--quiet", "--system-certs", "--no-deps"]
            command = [*installer, "--require-hashes", "--python", made / "bin" / "python", "--requirement", wanted]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            if not folder.exists():  # another run of the tests may have been quicker
                made.rename(folder)
    return folder / "bin" / "python"
