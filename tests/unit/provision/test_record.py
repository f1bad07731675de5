"""The record survives kills, damage and concurrent commands."""

from __future__ import annotations

import multiprocessing
import stat
from pathlib import Path

import pytest

from provision.errors import ProvisionError, UsageError
from provision.record import Folder, Home, Record, Resource, new_uid
from provision.spec import make_spec


def record(name: str = "p") -> Record:
    return Record(
        name=name, uid=new_uid(), owner="ada@laptop", toolkit="0", spec=make_spec({"name": name, "ttl": "1d"})
    )


def test_a_saved_record_comes_back_whole_and_private(tmp_path: Path):
    folder = Home(tmp_path).folder("p")
    saved = record()
    saved.note("network", "intended")
    saved.note("network", "done", Resource(kind="network", id="n1", name="net"))
    folder.save(saved)
    assert folder.load() == saved
    assert stat.S_IMODE(folder.record_file.stat().st_mode) == 0o600
    assert [found.name for found in Home(tmp_path).folders()] == ["p"]


def test_the_ledger_holds_one_entry_a_step():
    kept = record()
    kept.note("server", "intended")
    kept.note("server", "done", Resource(kind="server", id="s1"))
    kept.note("server", "removed")
    assert [(entry.step, entry.state) for entry in kept.ledger] == [("server", "removed")]
    assert kept.ledger[0].resource == Resource(kind="server", id="s1")
    assert kept.resource("server") is None


def test_an_unknown_platform_is_a_mistake_of_use(tmp_path: Path):
    with pytest.raises(UsageError, match="no platform 'p'"):
        Home(tmp_path).folder("p").load()


def test_a_damaged_record_is_named(tmp_path: Path):
    folder = Home(tmp_path).folder("p")
    folder.save(record())
    folder.record_file.write_text(folder.record_file.read_text()[:40])
    with pytest.raises(ProvisionError, match=r"record\.json cannot be read"):
        folder.load()


def _add_steps(path: Path, first: int) -> None:
    folder = Folder(path)
    for number in range(first, first + 20):
        with folder.lock():
            kept = folder.load()
            kept.note(f"step-{number}", "intended")
            folder.save(kept)


def test_concurrent_commands_lose_nothing(tmp_path: Path):
    folder = Home(tmp_path).folder("p")
    folder.save(record())
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_add_steps, args=(folder.path, 20 * n)) for n in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert len(folder.load().ledger) == 60
