"""Fixtures for all tests: no test touches the user's own home, platforms or clouds."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from mlaas4hep.data.remote import load_xrootd
from provision.cli import context
from provision.clouds import _computer, _network
from provision.errors import ProvisionError
from tests.debian import do_without

pytest_plugins = ["tests.devcloud.fixtures"]

# before any test loads TensorFlow: afterwards it is too late for the client
load_xrootd()

REPOSITORY = Path(__file__).resolve().parents[1]


# What takes long begins first, so that no process works on alone at the end.
_GROUPS = {
    "cloud": ("tests/devcloud/",),
    "machines": ("tests/e2e/", "tests/integration/test_local_machine.py"),
    "roles": ("tests/integration/test_roles.py", "tests/integration/test_wheel.py"),
}
_SLOW = (
    "machines",
    "tests/integration/test_slurm_executor.py",  # meanwhile the cloud is prepared
    "cloud",
    "roles",
    *(f"tests/integration/test_{name}.py" for name in ("service_whole", "serving_native")),
    *(f"tests/unit/mlaas4hep/test_{name}.py" for name in ("experiment", "keras_adapter", "reference", "onnx")),
)


def _group(nodeid: str) -> str:
    if "openstack" in nodeid:
        return "cloud"
    return next((name for name, places in _GROUPS.items() if nodeid.startswith(places)), nodeid.partition("::")[0])


class _Groups(LoadScopeScheduling):
    """With several processes, tests of a file stay together, those with machines, and those with the cloud."""

    def _split_scope(self, nodeid: str) -> str:
        return _group(nodeid)

    def remove_node(self, node: Any) -> str | None:
        """Hand out only what a process that crashed left undone: xdist waits for ever for groups without tests."""
        groups = self.assigned_work[node].items()
        left = {name: {test: False for test, done in tests.items() if not done} for name, tests in groups}
        self.assigned_work[node] = {name: tests for name, tests in left.items() if tests}
        return super().remove_node(node)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    config.option.loadscopereorder = False  # it would begin with the groups of many tests
    return _Groups(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Order the groups; one process alone keeps the order of the files, in which the cloud is prepared meanwhile."""
    users = [item.nodeid for item in items if "openstack_cloud" in getattr(item, "fixturenames", ())]
    if stray := [name for name in users if _group(name) != "cloud"]:
        raise pytest.UsageError(f"Tests of the cloud compare what is in it, and must be named openstack: {stray}")
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: _SLOW.index(group) if (group := _group(item.nodeid)) in _SLOW else len(_SLOW))


long = pytest.mark.skipif("LONG_TESTS" not in os.environ, reason="takes minutes; LONG_TESTS=1 has it done")


@pytest.fixture(scope="session", autouse=True)
def _shared_cache() -> Iterator[None]:
    """One cache of root images and wheels for all tests, kept between runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROVISION_CACHE", str(REPOSITORY / ".cache" / "provision"))
        yield


def _inability() -> str:
    """Why this computer cannot make machines, or nothing."""
    try:
        _computer.require_maker()
        _computer.release()
        _network.default_route()
    except ProvisionError as error:
        return str(error)
    return ""


@pytest.fixture(scope="session")
def computer_with_machines() -> None:
    """Skips where this computer cannot make machines; under CI that is a failure."""
    if reason := _inability():
        do_without(reason)


@pytest.fixture
def user_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home folder, with the toolkit's folder in it."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("PROVISION_HOME", str(home / "provision"))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    # a command keeps them, and some tests run commands in this process
    context.home.cache_clear()
    context.console.cache_clear()
    return home


class Command:
    """The installed command `provision`, run as its user would, in a home of its own."""

    def __init__(self, home: Path, **environment: str) -> None:
        self.home = home
        keep = {name: value for name, value in os.environ.items() if name in _KEPT or name.startswith(("PIP_", "SSL_"))}
        programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.environment = {
            **keep,
            "PATH": programs,
            "HOME": str(home),
            "PROVISION_HOME": str(home / "provision"),
            **environment,
        }

    def run(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run it and return what it said."""
        return subprocess.run(
            ["provision", *words],
            cwd=self.home,
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def __call__(self, *words: str, **environment: str) -> str:
        """Run it, expect success, and return its standard output."""
        done = self.run(*words, **environment)
        assert done.returncode == 0, f"provision {' '.join(words)}: {done.stdout}{done.stderr}"
        return done.stdout

    def fails(self, *words: str, status: int, **environment: str) -> str:
        """Run it, expect this exit status and no traceback, and return its standard error."""
        done = self.run(*words, **environment)
        assert done.returncode == status, f"provision {' '.join(words)}: {done.stdout}{done.stderr}"
        assert "Traceback" not in done.stdout + done.stderr
        return done.stderr

    @contextlib.contextmanager
    def connected(self, name: str) -> Iterator[dict[str, Any]]:
        """What `provision connect` tells, for as long as it runs."""
        with subprocess.Popen(
            ["provision", "connect", name, "--json"],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                lines: list[str] = []
                # indented JSON ends with a brace at the beginning of a line
                while lines[-1:] != ["}\n"]:
                    lines.append(process.stdout.readline())
                    assert lines[-1], process.communicate()[1]
                yield json.loads("".join(lines))
            finally:
                process.terminate()

    def logs(self) -> str:
        """All that its log files, records and configurations hold, but for the private keys."""
        files = [p for p in (self.home / "provision").rglob("*") if p.is_file() and "machine" not in p.parts]
        return "".join(p.read_text(errors="replace") for p in files if p.name not in ("id_ed25519", "first_host_key"))


_KEPT = ("LANG", "CI", "OS_CLIENT_CONFIG_FILE", "REQUESTS_CA_BUNDLE", "PROVISION_CACHE", "TMPDIR", "DEVCLOUD_DIR")


@pytest.fixture
def provision(user_home: Path) -> Command:
    """The command, in an empty home."""
    return Command(user_home)


class Silent:
    """Progress that nobody looks at."""

    def __init__(self) -> None:
        self.titles: list[str] = []

    def stage(self, title: str):
        self.titles.append(title)
        return contextlib.nullcontext(self)

    def note(self, text: str) -> None:
        pass

    def skipped(self, title: str) -> None:
        self.titles.append(f"there: {title}")
