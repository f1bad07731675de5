"""The program that formats and mounts a data volume: blank disks only, and a sentence for everything else."""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

PROGRAM = REPOSITORY / "roles/base/files/platform-data"
needs_disks = pytest.mark.skipif(
    os.geteuid() != 0 or not Path("/dev/loop-control").exists() or not shutil.which("mkfs.ext4"),
    reason="needs root, loop devices and e2fsprogs",
)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[str]:
    """A blank disk."""
    image = tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(32 * 1024**2)
    device = _output("losetup", "--find", "--show", str(image))
    yield device
    subprocess.run(["umount", "--quiet", tmp_path / "data"], check=False)
    _output("losetup", "--detach", device)


def _output(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


def program(folder: Path, *words: str) -> tuple[int, str]:
    """Exit status and all that it says."""
    environment = {"PATH": "/usr/bin:/bin", "PLATFORM_DATA_PLACE": str(folder / "data")}
    done = subprocess.run(["sh", PROGRAM, *words], env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@needs_disks
def test_a_blank_disk_is_formatted_once_and_mounted_by_its_uuid(disk: str, tmp_path: Path) -> None:
    volume = str(uuid.uuid4())
    assert program(tmp_path, "prepare", volume, disk) == (0, f"made a file system on {disk}\n")
    assert program(tmp_path, "mount", volume) == (0, "")
    data = tmp_path / "data"
    assert _output("findmnt", "-no", "UUID", str(data)) == volume
    assert {"nosuid", "nodev"} <= set(_output("findmnt", "-no", "OPTIONS", str(data)).split(","))
    (data / "word").write_text("kept")
    assert program(tmp_path, "prepare", volume, disk) == program(tmp_path, "mount", volume) == (0, "")
    _output("umount", str(data))
    # below the mount nobody but root may write
    assert (data.stat().st_uid, data.stat().st_mode & 0o777) == (0, 0o700)
    assert program(tmp_path, "prepare", volume, "") == program(tmp_path, "mount", volume) == (0, "")
    assert (data / "word").read_text() == "kept"


@needs_disks
@pytest.mark.parametrize("what", [["mkfs.ext4", "-q"], ["mkswap", "-q"], ["sfdisk", "--no-reread", "--no-tell-kernel"]])
def test_a_disk_with_anything_on_it_is_left_as_it_is(disk: str, tmp_path: Path, what: list[str]) -> None:
    subprocess.run([*what, disk], input="label: gpt\n", text=True, check=True, capture_output=True)
    before = Path(disk).read_bytes()
    status, told = program(tmp_path, "prepare", str(uuid.uuid4()), disk)
    assert status == 1 and "is not blank" in told and "it is left as it is" in told
    assert Path(disk).read_bytes() == before


def test_a_volume_that_is_not_there_is_named(tmp_path: Path) -> None:
    volume = str(uuid.uuid4())
    status, told = program(tmp_path, "prepare", volume, "/dev/nothing")
    assert status == 1 and f"The data volume {volume} is not attached to this machine" in told
    status, told = program(tmp_path, "mount", volume)
    assert status == 1 and f"The data volume {volume} is missing" in told
    assert not (tmp_path / "data").exists()


@needs_disks
def test_another_volume_in_its_place_is_refused(disk: str, tmp_path: Path) -> None:
    volume = str(uuid.uuid4())
    assert program(tmp_path, "prepare", volume, disk)[0] == program(tmp_path, "mount", volume)[0] == 0
    status, told = program(tmp_path, "mount", str(uuid.uuid4()))
    assert status == 1 and "Something else than the data volume" in told
