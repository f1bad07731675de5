"""The manual: it is built without a warning, fetches nothing from elsewhere, and shows commands that there are."""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from docs.generator.commands import Line, commands, mistake, written
from docs.generator.man import write_man_pages
from docs.generator.site import build
from mlaas4hep.cli import app as mlaas4hep_app
from provision.cli import app as provision_app
from tests.conftest import REPOSITORY
from tests.debian import do_without, lacking

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
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
    for sheet in tmp_path.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import )[\"']?(?:https?:)?//", sheet.read_text(encoding="utf-8")), sheet
    assert (tmp_path / "search" / "search_index.json").stat().st_size > 100_000


def test_files_that_the_readme_links_to_are_there() -> None:
    links = re.findall(r"\]\(([^):#]+)", (REPOSITORY / "README.md").read_text(encoding="utf-8"))
    assert len(links) > 10
    assert not [link for link in links if not (REPOSITORY / link).exists()]


def test_lock_files_agree() -> None:
    def pins(name: str) -> dict[str, str]:
        text = (REPOSITORY / "locks" / name).read_text(encoding="utf-8")
        return dict(re.findall(r"^([\w.-]+)==(\S+) \\$", text, re.MULTILINE))

    # in one environment, or in one that sees the other's packages
    for one, other in (("dev", "docs"), ("platform", "jupyter"), ("platform-gpu", "jupyter")):
        first, second = pins(f"{one}.txt"), pins(f"{other}.txt")
        both = first.keys() & second.keys()
        assert both and {name: first[name] for name in both} == {name: second[name] for name in both}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPOSITORY).as_posix())
def test_the_command_line_understands_every_command_of_a_page(page: Path) -> None:
    assert not [f"{line.where} {line.text}: {wrong}" for line in written(page) if (wrong := mistake(line))]


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


@pytest.mark.parametrize(
    ("app", "words", "offered"),
    [
        (provision_app, "provision cr", ["create"]),
        (provision_app, "provision image ", ["build", "list", "delete"]),
        (provision_app, "provision create --idle", ["--idle-stop"]),
        (mlaas4hep_app, "mlaas4hep client mod", ["models"]),
    ],
)
def test_a_shell_completes_commands_and_options(app: typer.Typer, words: str, offered: list[str]) -> None:
    assert completed(app, words) == offered


def completed(app: typer.Typer, words: str) -> list[str]:
    """What bash is told to offer."""
    name, *typed = words.split(" ")
    environment = {
        f"_{name.upper()}_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(typed)),
    }
    return CliRunner().invoke(app, [], prog_name=name, env=environment).output.split()


@pytest.fixture
def recorded(user_home: Path) -> Path:
    """A home with two platforms and a job."""
    for name in ("higgs", "taus"):
        (user_home / "provision/platforms" / name).mkdir(parents=True)
        (user_home / "provision/platforms" / name / "record.json").write_text("{}")
    job = user_home / ".local/share/mlaas4hep/jobs/higgs_1"
    job.mkdir(parents=True)
    (job / "job.json").write_text('{"name": "higgs", "submitted": "2026-11-27T15:00:00+00:00"}')
    return user_home


@pytest.mark.parametrize(
    ("app", "words", "offered"),
    [
        (provision_app, "provision show ", ["higgs", "taus"]),
        (provision_app, "provision admin health h", ["higgs"]),
        (provision_app, "provision create ta", ["taus"]),
        (provision_app, "provision train x", []),
        (mlaas4hep_app, "mlaas4hep job status ", ["higgs_1"]),
    ],
)
def test_a_shell_completes_names_of_platforms_and_jobs(
    recorded: Path, monkeypatch: pytest.MonkeyPatch, app: typer.Typer, words: str, offered: list[str]
) -> None:
    monkeypatch.delenv("MLAAS4HEP_JOBS", raising=False)
    assert completed(app, words) == offered


_BASH = """
{script}
COMP_WORDS=(provision show h) COMP_CWORD=2
_provision_completion provision
echo $COMPREPLY
"""
_ZSH = """
compdef() {{ }}
_arguments() {{ echo $* }}
{script}
words=(provision show h) CURRENT=3
_provision_completion
"""
_SHELLS = {"bash": ["-c", _BASH], "zsh": ["-fc", _ZSH]}


@pytest.mark.parametrize("shell", [shell for shell in _SHELLS if shutil.which(shell)])
def test_a_real_shell_completes_the_name_of_a_platform(recorded: Path, shell: str) -> None:
    script = CliRunner().invoke(
        provision_app, [], prog_name="provision", env={"_PROVISION_COMPLETE": f"source_{shell}"}
    )
    option, program = _SHELLS[shell]
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [shell, option, program.format(script=script.output)],
        env={"PATH": programs, "HOME": str(recorded), "PROVISION_HOME": str(recorded / "provision")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "higgs" in done.stdout and "taus" not in done.stdout, done


def test_every_command_has_a_man_page_that_groff_takes(tmp_path: Path) -> None:
    pages = write_man_pages(tmp_path)
    assert {page.stem for page in pages} == {
        command.name.replace(" ", "-") for root in ("provision", "mlaas4hep") for command in commands(root)
    }
    if reason := lacking({"groff": "groff-base"}):
        do_without(reason)
    create = (tmp_path / "provision-create.1").read_text(encoding="utf-8")
    assert ".SH OPTIONS" in create and r"\-\-idle\-stop" in create
    done = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww", "-z", *map(str, pages)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
