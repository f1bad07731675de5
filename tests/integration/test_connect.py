"""`provision connect` and `provision logs --provision`, against a real sshd on loopback."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from provision.record import Access, Folder, Home, Record, Resource
from provision.remote import Remote, make_key, write_known_hosts, write_ssh_config
from provision.service import listening
from provision.spec import PlatformSpec
from tests.conftest import Command

from .conftest import Sshd

UID = "abc123"


class Page(BaseHTTPRequestHandler):
    """A page of one word."""

    def do_GET(self) -> None:
        """Answer it."""
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"served")

    def log_message(self, *_: Any) -> None:
        """Nothing is logged."""


@pytest.fixture
def page() -> Iterator[int]:
    """The port of a web server on loopback: the notebook that a user has started, say."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.fixture
def platform(user_home: Path, sshd: Sshd) -> Folder:
    """A platform that leads to the real server."""
    folder = Home().folder("there")
    access = Access(host="127.0.0.1", port=sshd.port, user=sshd.user)
    spec = PlatformSpec(name="there", cloud=f"ssh:{sshd.user}@127.0.0.1:{sshd.port}")
    record = Record(name="there", uid=UID, owner="test", toolkit="0", spec=spec, state="bare", access=access)
    record.note("ssh", "done", Resource(kind="ssh", id="127.0.0.1", name="there", ours=False))
    folder.save(record)
    sshd.admit(make_key(folder.key, "test"))
    write_known_hosts(folder, UID, sshd.host_key)
    write_ssh_config(folder, UID, access)
    return folder


@contextlib.contextmanager
def connected(provision: Command, *words: str, **environment: str) -> Iterator[tuple[Any, subprocess.Popen[str]]]:
    """`provision connect there` as it runs: what it printed, and the process."""
    with subprocess.Popen(
        ["provision", "connect", "there", "--json", *words],
        env={**provision.environment, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        lines: list[str] = []
        try:
            # indented JSON ends with a brace at the beginning of a line
            for line in process.stdout:
                lines.append(line)
                if line == "}\n":
                    break
            assert lines, process.communicate()[1]
            yield json.loads("".join(lines)), process
        finally:
            process.terminate()


def url(shown: Any, port: int) -> str:
    return str(next(tunnel["url"] for tunnel in shown["tunnels"] if tunnel["port"] == port))


def read(address: str) -> bytes:
    with urllib.request.urlopen(address, timeout=30) as answer:
        return bytes(answer.read())


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_a_port_of_the_machine_is_reached_until_the_command_is_ended(
    provision: Command, platform: Folder, page: int, ending: signal.Signals
):
    with connected(provision, "--port", str(page)) as (shown, process):
        here = url(shown, page)
        assert here.startswith("http://127.0.0.1:") and not here.endswith(f":{page}")
        assert read(here) == b"served"
        process.send_signal(ending)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert said.endswith("The tunnels to there are closed.\n")
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(here.rpartition(":")[2]))) != 0


def test_it_ends_with_a_sentence_when_the_machine_goes(provision: Command, platform: Folder, sshd: Sshd, page: int):
    with connected(provision, "--port", str(page)) as (_, process):
        for session in Path(f"/proc/{sshd.process.pid}/task/{sshd.process.pid}/children").read_text().split():
            os.kill(int(session), signal.SIGKILL)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "The connection to there has ended: " in said and "`provision show there`" in said
    assert "Traceback" not in said


def test_a_jump_host_is_no_hindrance(provision: Command, platform: Folder, sshd: Sshd, page: int, tmp_path: Path):
    # the way to the jump host is the user's own: here an `ssh` first in PATH that knows key and host key of it
    known, programs = tmp_path / "known_hosts", tmp_path / "bin"
    known.write_text(sshd.known_hosts_line())
    programs.mkdir()
    options = f"-i {platform.key} -o UserKnownHostsFile={known} -o StrictHostKeyChecking=yes"
    real = shutil.which("ssh")
    (programs / "ssh").write_text(
        f'#!/bin/sh\ncase " $* " in *" -W "*) exec {real} -F none {options} "$@" ;; esac\nexec {real} "$@"\n'
    )
    (programs / "ssh").chmod(0o755)
    jump = f"{sshd.user}@127.0.0.1:{sshd.port}"
    write_ssh_config(platform, UID, Access(host="127.0.0.1", port=sshd.port, user=sshd.user, jump=jump))
    path = f"{programs}:{provision.environment['PATH']}"
    with connected(provision, "--port", str(page), PATH=path) as (shown, _):
        assert read(url(shown, page)) == b"served"


def test_a_machine_that_does_not_answer_is_named(provision: Command, platform: Folder, sshd: Sshd):
    sshd.process.terminate()
    sshd.process.wait()
    assert "there was not reached by SSH" in provision.fails("connect", "there", "--port", "9", status=1)


def test_what_listens_is_asked_of_the_machines_kernel(platform: Folder, page: int):
    with Remote(platform) as remote, socket.create_server(("::1", 0), family=socket.AF_INET6) as other:
        sixth = other.getsockname()[1]
        assert {page, sixth} <= listening(remote)
        other.close()
        assert sixth not in listening(remote)


def test_the_log_of_a_creation_is_shown(provision: Command, platform: Folder):
    shown = provision("logs", "there", "--provision")
    assert "done     ssh: ssh there" in shown and "No role has run yet" in shown
    platform.logs.mkdir()
    for number, words in enumerate(("the first run", "the second run")):
        log = platform.logs / f"platform-{number}.log"
        log.write_text(words)
        os.utime(log, (number, number))
    done = provision.run("logs", "there", "--provision")
    assert "the second run" in done.stdout and "the first run" not in done.stdout
    assert "Older logs: " in done.stderr and "platform-0.log" in done.stderr
    assert "shows no job" in provision.fails("logs", "there", "job_1", "--provision", status=2)
