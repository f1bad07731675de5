"""Verbs on several platforms: real SSH servers on loopback, which lead to this computer; one does not answer."""

from __future__ import annotations

import getpass
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from provision.admin import VERBS, chosen, run_verb
from provision.record import Access, Home, Record
from provision.remote import write_known_hosts, write_ssh_config
from provision.spec import make_spec
from tests.conftest import long
from tests.debian import do_without
from tests.integration.conftest import needs_sudo
from tests.storage.server import inability, sftp_server

pytestmark = needs_sudo

[RESUME] = [verb for verb in VERBS if verb.name == "resume"]


@pytest.fixture
def three(user_home: Path, tmp_path: Path) -> Iterator[Home]:
    """The platforms a, b and c; the server of b has ended."""
    if reason := inability():
        do_without(reason)
    home = Home()
    with ExitStack() as servers:
        for name in ("a", "b", "c"):
            with ExitStack() as its:
                server = tmp_path / name
                port = its.enter_context(sftp_server(server))
                if name != "b":
                    servers.push(its.pop_all())
            spec = make_spec({"name": name})
            access = Access(host="127.0.0.1", user=getpass.getuser(), port=port)
            folder = home.folder(name)
            folder.save(
                Record(name=name, uid=f"{name}uid", owner="test", toolkit="0", spec=spec, state="ready", access=access)
            )
            folder.key.write_bytes((server / "client_key").read_bytes())
            folder.key.chmod(0o600)
            write_known_hosts(folder, f"{name}uid", (server / "host_key.pub").read_text().strip())
            write_ssh_config(folder, f"{name}uid", access)
        yield home


def states(home: Home, serial: int, max_failures: int | None, limit: str = "") -> list[str]:
    """What becomes of each platform; in check mode, for this computer is none."""
    told: list[str] = []
    folders = chosen(home, ["a", "b", "c"], limit)
    outcomes = run_verb(
        home, RESUME, folders, {}, lambda _: None, lambda outcome: told.append(outcome.name),
        check=True, serial=serial, max_failures=max_failures,
    )  # fmt: skip
    assert told == [folder.name for folder in folders]
    return [outcome.state for outcome in outcomes]


def test_no_further_batch_begins_when_too_many_have_failed(three: Home):
    assert states(three, serial=1, max_failures=0) == ["ok", "unreachable", "not tried"]


@long
def test_batches_go_on_as_long_as_few_enough_have_failed(three: Home):
    assert states(three, serial=1, max_failures=1) == ["ok", "unreachable", "ok"]
    assert states(three, serial=2, max_failures=0) == ["ok", "unreachable", "not tried"]
    assert states(three, serial=0, max_failures=0) == ["ok", "unreachable", "ok"]
    assert states(three, serial=1, max_failures=0, limit="!b") == ["ok", "ok"]
