"""The manual: it is built without a warning, fetches nothing from elsewhere, and shows commands that there are."""

from __future__ import annotations

import logging
import os
import re
import subprocess
from pathlib import Path

import pytest

from docs.generator.commands import Line, commands, mistake
from docs.generator.man import write_man_pages
from docs.generator.site import build
from tests.conftest import REPOSITORY
from tests.debian import lacking

FETCHED = re.compile(r"<(?:link|script|img|iframe|source)\b[^>]*?(?:src|href)=[\"']?(?:https?:)?//[^ >]*")


def test_the_site_is_built_without_a_warning_and_fetches_nothing_from_elsewhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "mkdocs"):
        build(tmp_path)
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        assert not FETCHED.findall(page.read_text(encoding="utf-8")), page
    assert (tmp_path / "search" / "search_index.json").stat().st_size > 100_000


def test_lock_files_agree() -> None:
    def pins(name: str) -> dict[str, str]:
        text = (REPOSITORY / "locks" / name).read_text(encoding="utf-8")
        return dict(re.findall(r"^([\w.-]+)==(\S+) \\$", text, re.MULTILINE))

    dev, docs = pins("dev.txt"), pins("docs.txt")
    assert {name: docs[name] for name in dev.keys() & docs.keys()} == {
        name: dev[name] for name in dev.keys() & docs.keys()
    }


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("provision crate higgs", "has no command crate"),
        ("provision create higgs --colour red", "No such option: --colour"),
        ("provision create higgs --cpus many", "should be a valid integer"),
        ("provision delete", "lacks name"),
        ("provision show higgs boson", "does not take boson"),
        ("provision client higgs submit folder --memry 3GB", "No such option: --memry"),
        ("mlaas4hep train --progress loudly", "'loudly' is not one of"),
        ("OS_CLOUD=x sudo provision show higgs | head", ""),
        ("provision stop higgs           and start; --release also frees the host", ""),
    ],
)
def test_what_the_command_line_would_refuse_is_told(text: str, wrong: str) -> None:
    found = mistake(Line("here", text, whole=True))
    assert wrong in found if wrong else not found


def test_every_command_has_a_man_page_that_groff_takes(tmp_path: Path) -> None:
    pages = write_man_pages(tmp_path)
    assert {page.stem for page in pages} == {
        command.name.replace(" ", "-") for root in ("provision", "mlaas4hep") for command in commands(root)
    }
    if reason := lacking({"groff": "groff-base"}):
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    create = (tmp_path / "provision-create.1").read_text(encoding="utf-8")
    assert ".SH OPTIONS" in create and r"\-\-idle\-stop" in create
    done = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww", "-z", *map(str, pages)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
