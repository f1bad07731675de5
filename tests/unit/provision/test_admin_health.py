"""What `provision admin health` finds on a machine, in folders that look like one's disk."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import time
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import REPOSITORY


@pytest.fixture(scope="module")
def health() -> ModuleType:
    path = REPOSITORY / "playbooks" / "admin" / "files" / "health.py"
    spec = importlib.util.spec_from_file_location("platform_health", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_clock_is_compared_with_the_asker(health: ModuleType):
    assert health.clock(health.LIMITS, time.time())["good"]
    late = health.clock(health.LIMITS, time.time() + 600)
    assert not late["good"] and late["words"] == "-600 s off" and "timedatectl" in late["remedy"]


def test_a_disk_with_too_little_room_is_bad(health: ModuleType, tmp_path: Path):
    assert [one["check"] for one in health.disks(tmp_path, {"free_gb": 0, "free_percent": 0})] == ["disk of /"]
    [full] = health.disks(tmp_path, {"free_gb": 10**9, "free_percent": 0})
    assert not full["good"] and "GB free" in full["words"]


@pytest.mark.parametrize(("days", "good"), [(19, False), (21, True), (-1, False)])
def test_days_of_certificates_are_counted(health: ModuleType, tmp_path: Path, days: int, good: bool):
    file = tmp_path / "etc/web-proxy/own.pem"
    file.parent.mkdir(parents=True)
    words = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=lab"]
    made = ["openssl", *words, "-days", "30", "-keyout", file, "-out", file]
    subprocess.run(made, check=True, capture_output=True)
    [found] = health.certificates(tmp_path, health.LIMITS, time.time() + (30 - days) * 86400 - 3600)
    assert (found["good"], found["words"]) == (good, f"{days} days left")
    file.write_text("no certificate")
    [found] = health.certificates(tmp_path, health.LIMITS, time.time())
    assert not found["good"] and found["words"] == "it cannot be read"


@pytest.mark.parametrize(
    ("told", "good", "words"),
    [
        ("w1 idle\nw2 mixed", True, "2 at work"),
        ("w1 idle*\nw2 allocated", False, "w1 is idle*"),
        ("w1 drained\nw2 down*", False, "w1 is drained, w2 is down*"),
        ("", False, "0 at work"),
    ],
)
def test_nodes_of_slurm_that_take_no_jobs_are_named(
    health: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str, good: bool, words: str
):
    assert list(health.nodes(tmp_path)) == []
    unit = tmp_path / health.UNITS["slurmctld.service"].lstrip("/")
    unit.parent.mkdir(parents=True)
    unit.touch()
    monkeypatch.setattr(health, "output", lambda *_: told)
    [found] = health.nodes(tmp_path)
    assert (found["good"], found["words"]) == (good, words)


def test_the_last_backup_is_judged_by_age_and_outcome(health: ModuleType, tmp_path: Path):
    def found(told: object) -> tuple[bool, str]:
        (state / "last.json").write_text(json.dumps(told))
        one = health.backup(tmp_path, health.LIMITS, 1e9)
        return one["good"], one["words"]

    state = tmp_path / "var/lib/platform-backup"
    state.mkdir(parents=True)
    assert health.backup(tmp_path, health.LIMITS, 1e9)["words"] == "none is set up"
    (tmp_path / "etc/platform-backup").mkdir(parents=True)
    (tmp_path / "etc/platform-backup/backup.json").write_text("{}")
    assert health.backup(tmp_path, health.LIMITS, 1e9)["words"] == "there was none yet"
    assert found({"ok": True, "ended": 1e9 - 3600}) == (True, "1.0 hours old")
    assert found({"ok": True, "ended": 1e9 - 40 * 3600}) == (False, "40.0 hours old")
    assert found({"ok": False, "ended": 1e9, "reason": "no space"}) == (False, "the last one failed: no space")


def test_the_queue_tells_whether_jobs_are_held(health: ModuleType, tmp_path: Path):
    text = '# HELP\nmlaas4hep_jobs{phase="waiting"} 3.0\nmlaas4hep_jobs{phase="handed"} 2.0\n'
    [found] = health.queue(tmp_path, (200, text))
    assert found["words"] == "2 running, 3 waiting"
    data = tmp_path / "var/lib/mlaas4hep"
    data.mkdir(parents=True)
    for said, held in (("{}", True), ('{"until": 1}', False), ("damaged", True)):
        (data / "drained.json").write_text(said)
        [found] = health.queue(tmp_path, (200, text))
        assert found["words"].endswith("held: the service is drained") is held


def test_a_service_of_another_environment_than_the_installed_one_is_bad(
    health: ModuleType, tmp_path: Path, monkeypatch
):
    (tmp_path / "opt/mlaas4hep").mkdir(parents=True)
    (tmp_path / "opt/mlaas4hep/venv").symlink_to("/opt/mlaas4hep/venv-bbb")
    for loaded, good in (({"venv-bbb"}, True), ({"venv-aaa"}, False), ({"venv-aaa", "venv-bbb"}, False)):
        monkeypatch.setattr(health, "environments", lambda _, loaded=loaded: loaded)
        found = health.framework(tmp_path)
        assert found["good"] is good
    assert found["words"] == "venv-bbb, but the service runs venv-aaa, venv-bbb"
