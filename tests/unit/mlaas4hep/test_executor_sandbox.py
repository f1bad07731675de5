"""What a sandbox is given, and what is said where there can be none."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlaas4hep.errors import MlaasError
from mlaas4hep.service import sandbox
from mlaas4hep.service.sandbox import sandboxed, shortage

ACCOUNT = 1_234_567


@pytest.fixture(autouse=True)
def _looked_for_anew() -> Iterator[None]:
    sandbox._require_bubblewrap.cache_clear()
    yield
    sandbox._require_bubblewrap.cache_clear()


def inside(*words: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        sandboxed(words, account=ACCOUNT, **options),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_computer_without_bubblewrap_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_PROGRAMS", "/nonexistent")
    assert shortage() == (
        "The program bwrap is not there. "
        "Install bubblewrap 0.8 or newer (Debian 12, Ubuntu 24.04: apt-get install bubblewrap)."
    )


def test_a_bubblewrap_that_is_too_old_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bwrap").write_text("#!/bin/sh\necho bubblewrap 0.6.1\n")
    (tmp_path / "bwrap").chmod(0o755)
    monkeypatch.setattr(sandbox, "_PROGRAMS", str(tmp_path))
    with pytest.raises(MlaasError, match=r"bubblewrap 0\.6\.1 is too old"):
        sandboxed(["true"], account=ACCOUNT)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_root_never_runs_a_sandbox_as_itself(bubblewrap: None) -> None:
    with pytest.raises(MlaasError, match="needs an account"):
        sandboxed(["true"])
    assert inside("id", "-u").stdout == f"{ACCOUNT}\n"
    assert inside("id", "-G").stdout == f"{ACCOUNT}\n"


def test_its_environment_is_what_it_is_given(bubblewrap: None) -> None:
    variables = dict(line.split("=", 1) for line in inside("env", environment={"A": "b c"}).stdout.splitlines())
    assert variables.pop("A") == "b c"
    assert set(variables) == {"PATH", "LANG", "TMPDIR", "PWD"}


def test_temporary_files_are_bounded(bubblewrap: None) -> None:
    done = inside("dd", "if=/dev/zero", "of=/tmp/filling", "bs=64K", "count=64", temporary=2**20)
    assert done.returncode != 0
    assert "No space left on device" in done.stderr


def test_it_starts_where_it_may_write_and_reads_what_it_is_given(bubblewrap: None, tmp_path: Path) -> None:
    given, own = tmp_path / "given", tmp_path / "own"
    given.mkdir()
    own.mkdir()
    (given / "data").write_text("event")
    (tmp_path / "other").write_text("secret")
    if os.geteuid() == 0:
        os.chown(own, ACCOUNT, ACCOUNT)
    script = 'cp "$1/given/data" copy; echo x > "$1/given/new"; ls "$1"'
    done = inside("sh", "-c", script, "sh", str(tmp_path), reads=[given], writes=[own])
    assert (own / "copy").read_text() == "event"
    assert "Read-only file system" in done.stderr
    assert done.stdout == "given\nown\n"


def test_a_place_that_is_not_there_is_named(bubblewrap: None, tmp_path: Path) -> None:
    assert f"Can't find source path {tmp_path}/x" in inside("true", reads=[tmp_path / "x"]).stderr
