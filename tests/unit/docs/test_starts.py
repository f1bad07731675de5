"""The blocks of the pages that are marked `runs` are run, in the order of the page, in one empty folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

BLOCK = re.compile(r"^```sh runs\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = [page for page in sorted((REPOSITORY / "docs").rglob("*.md")) if BLOCK.search(page.read_text(encoding="utf-8"))]


def test_starts_without_a_machine_have_blocks_that_run() -> None:
    assert {"physicist", "integrator"} <= {page.stem for page in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_marked_blocks_run(page: Path, user_home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLAAS4HEP_")}
    done = subprocess.run(
        ["bash", "-euxo", "pipefail", "-c", "\n".join(BLOCK.findall(page.read_text(encoding="utf-8")))],
        cwd=folder,
        env={**kept, "OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
