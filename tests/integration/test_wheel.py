"""The wheel alone is enough: an installed `provision` has its playbooks, roles, templates and locks with it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, Command
from tests.debian import do_without, lacking


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the wheel was installed, without the checkout in reach."""
    folder = tmp_path_factory.mktemp("site")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(folder),
        str(wheel),
    ]
    subprocess.run(
        pip, check=True, capture_output=True, env={k: v for k, v in os.environ.items() if k != "PIP_FIND_LINKS"}
    )
    return folder


def test_the_wheel_has_what_provision_runs(wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()
    for part in (
        "playbooks/platform.yml",
        "roles/base/tasks/main.yml",
        "roles/mlaas4hep/meta/argument_specs.yml",
        "templates/cloud-init/user-data.yaml.j2",
        "locks/platform.txt",
    ):
        assert f"provision/_share/{part}" in names
    assert not [name for name in names if name.startswith(("tests/", "molecule/")) or "__pycache__" in name]


def test_man_finds_the_pages_of_an_environment(wheel: Path, installed: Path):
    pages = {path.name for path in (installed / "share/man/man1").iterdir()}
    assert {"provision.1", "provision-create.1", "mlaas4hep-train.1"} <= pages
    if reason := lacking({"man": "man-db"}):
        do_without(reason)
    environment = {"PATH": f"{installed / 'bin'}:{os.environ['PATH']}"}
    found = subprocess.run(
        ["man", "-w", "provision-create"], env=environment, capture_output=True, text=True, check=False
    )
    assert found.stdout.strip() == str(installed / "share/man/man1/provision-create.1"), found.stderr


def test_notebooks_travel_in_the_wheel(wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()
    assert len([name for name in names if re.fullmatch(r"mlaas4hep/example/notebooks/\d-\w+\.ipynb", name)]) == 5


def test_an_installed_provision_runs_outside_the_checkout(installed: Path, tmp_path: Path):
    code = "from provision.share import share; print(sorted(p.name for p in share().iterdir()))"
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(installed), "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "['locks', 'playbooks', 'roles', 'templates']\n"
    playbook = installed / "provision/_share/playbooks/platform.yml"
    checked = subprocess.run(
        [str(Path(sys.executable).parent / "ansible-playbook"), "--syntax-check", "-i", "platform,", str(playbook)],
        cwd=tmp_path,
        env={**environment, "ANSIBLE_CONFIG": str(playbook.parent / "ansible.cfg")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr


@pytest.mark.machine
def test_an_installed_provision_plans_a_platform_outside_the_checkout(
    installed: Path, tmp_path: Path, computer_with_machines: None
):
    code = "from provision.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "create", "away", "--cpus", "1", "--memory", "1", "--disk", "6", "--dry-run"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(installed), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Platform away on local" in done.stdout
    assert "roles: base, GPU driver, XRootD client, framework" in done.stdout


@pytest.mark.parametrize("command", ["provision", "mlaas4hep"])
def test_help_is_shown_without_loading_anything_heavy(command: str, tmp_path: Path):
    code = f"""
import sys
from {command}.cli import main
sys.argv = ["{command}", "--help"]
try:
    main()
except SystemExit as end:
    heavy = {{"ansible_runner", "keras", "numpy", "openstack", "pydantic", "rich", "sklearn", "uproot", "yaml"}}
    sys.exit(end.code or ", ".join(heavy & set(sys.modules)) or 0)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"Usage: {command}" in done.stdout


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["show", "nothing"], 2, "There is no platform 'nothing'"),
        (["delete", "nothing", "--yes"], 2, "There is no platform 'nothing'"),
        (["create"], 2, "has no name"),
        (["create", "Bad_Name"], 2, "lower-case letters"),
        (["create", "p", "--memory", "much"], 2, "'much' is no size"),
        (["create", "p", "--cloud", "nowhere"], 2, "no cloud 'nowhere'"),
        (["create", "--spec", "missing.yml"], 2, "missing.yml cannot be read"),
        (["train", "nothing", "."], 2, "There is no platform"),
        (["create", "p", "--mlaas4hep", "lost.whl"], 2, "lost.whl of MLaaS4HEP does not exist"),
        (["create", "p", "--framework", "lost.whl"], 2, "lost.whl does not exist"),
        (["create", "p", "--framework", "pytorch"], 2, "did you mean torch?"),
    ],
)
def test_a_mistake_of_use_is_one_sentence(provision: Command, words: list[str], status: int, said: str):
    complaint = provision.fails(*words, status=status)
    assert said in complaint
    assert len(complaint.strip().splitlines()) == 1
    assert provision("list", "--json").strip() == "[]"


def test_an_unexpected_error_is_a_sentence_with_a_log(provision: Command, user_home: Path):
    (user_home / "provision" / "platforms" / "p").mkdir(parents=True)
    (user_home / "provision" / "platforms" / "p" / "record.json").mkdir()
    complaint = provision.fails("show", "p", status=1)
    assert "This is a defect of the toolkit; the traceback is in " in complaint
    log = complaint.rpartition("the traceback is in ")[2].strip().rstrip(".")
    assert "Traceback" in Path(log).read_text()


def test_a_near_miss_is_offered(provision: Command, user_home: Path):
    for name in ("higgs", "taus"):
        folder = user_home / "provision" / "platforms" / name
        folder.mkdir(parents=True)
        (folder / "record.json").write_text("{}")
    assert "Did you mean 'higgs'?" in provision.fails("show", "higs", status=2)
