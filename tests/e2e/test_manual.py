"""The lines that pages show are run as they stand there, by a test here or another that is named, or are `UNTRIED`.

Those of `sh runs` blocks are run by tests/unit/docs/test_starts.py, in every run of the suite.
"""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs.generator.commands import written
from tests.confinement import require_confinement
from tests.conftest import REPOSITORY, Command, long
from tests.debian import do_without, lacking
from tests.federation.agent import PROGRAMS, oidc_agent
from tests.integration.test_service_whole import Platform
from tests.oidc.fixtures import POLICY, need_provider
from tests.oidc.provider import AUDIENCE, oidc_provider
from tests.slurm.cluster import wait_until
from tests.unit.docs.test_starts import BLOCK

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]

HERE = {
    "mlaas4hep example-data higgs-data": "",
    "mlaas4hep inspect higgs-data/data/signal_1.root": r"Events.*Muon_pt",
    "provision --install-completion": "completion installed",
    "mlaas4hep --install-completion": "completion installed",
    "provision image build": "",
    "provision create higgs": "",
    "provision list": r"higgs.*ready",
    "provision show higgs": "machine",
    "provision ssh higgs": "",
    "provision doctor higgs": "",
    "provision connect higgs": r"service +8080 +http://127\.0\.0\.1:\d+",
    "provision connect higgs --port 6006": r"6006 +http://127\.0\.0\.1:\d+",
    "provision train higgs higgs-data": "test auc",
    "provision jobs higgs": r"higgs-data_1.*finished",
    "provision fetch higgs --to model": "",
    "provision predict higgs higgs-data/event.json": "probabilit",
    "mlaas4hep predict model event.json": "probabilit",
    "mlaas4hep predict model data/*.root --out scores.root": "",
    "provision client higgs submit higgs-data": "",
    "provision client higgs predict higgs-data higgs-data/event.json": "probabilit",
    "provision admin health --all": "higgs",
    "provision stop higgs": "",
    "provision rebuild higgs": "",
    "provision delete higgs": "",
    "provision create --spec higgs.yml": "",
}
"""Lines of one platform of this computer, in an order in which they can follow each other, and what each prints."""

SERVICE = {
    "mlaas4hep example-data higgs-data": "",
    "mlaas4hep client me": "alice",
    "mlaas4hep client submit higgs-data": "higgs-data_1",
    "mlaas4hep client logs -f higgs-data_1": "test auc",
    "mlaas4hep client fetch higgs-data_1": "",
    "mlaas4hep client predict higgs-data higgs-data/event.json": "probabilit",
}
"""Lines of a service that knows its users by an issuer's tokens, which a real oidc-agent gives."""

ELSEWHERE = {
    r"create higgs --cloud my-cloud --cpus 4 .*": "test_create_train_fetch_and_delete_on_openstack",
    r"create higgs --cloud (my-cloud|bari) --gpu .*": "test_a_gpu_is_found_by_the_extra_specs_of_a_flavor",
    r"create higgs --cloud ssh:.*": "test_a_host_is_taken_and_forgotten_without_being_touched",
    r"create higgs --cloud \S+,\S+": "test_the_first_that_serves_is_taken",
    r"create higgs --cloud recas --jupyter": "test_a_kernel_of_the_framework_is_reached_by_tunnel_and_token",
    r"create higgs --cloud bari --network .*": "test_a_network_without_a_way_out_needs_a_jump_host",
    r"create higgs --cloud site( --explain > higgs.sh)?": "test_the_script_makes_what_the_command_makes",
    r"adopt higgs --cloud site --identity .*": "test_the_script_makes_what_the_command_makes",
    r"create \w+ --cloud site --data-volume .*": (
        "test_data_of_a_server_are_there_after_a_rebuild_and_on_the_next_server"
    ),
    r"create higgs --cloud site --workers 2": "test_two_workers_train_one_model_on_openstack",
    r"train higgs my_training.*": "test_two_workers_train_one_model_on_openstack",
    r"scale higgs .*": "test_workers_come_and_go_with_their_platform_whatever_is_killed",
    r"(adopt|gc) .*--cloud site.*": "test_a_lost_record_is_made_again_and_orphans_are_removed",
    r"resize higgs .*": "test_size_and_system_of_a_machine",
    r"login.*": "test_who_one_is_until_when_and_where",
    r"image (build|list) --cloud my-cloud": "test_a_platform_of_an_uploaded_image",
    r"image delete .*": "test_machines_of_one_image_are_made_quickly_and_share_no_secret",
    r"create ml .*--service shared .*": "test_create_train_fetch_and_delete_on_openstack",
    r"delete ml.*": "test_create_train_fetch_and_delete_on_openstack",
    r"admin health .*": "test_health_finds_nothing_wrong",
    r"admin update .*": "test_batches_go_on_as_long_as_few_enough_have_failed",
    r"doctor ml": "test_stop_and_start_bring_the_platform_back",
    r"monitoring files FOLDER": "test_the_settings_are_those_of_a_prometheus",
    r"orchestrator .*": "test_a_deployment_becomes_a_platform",
}
"""Lines that need what no test has, as a public cloud: the test that does the same with what there is."""

UNTRIED = {
    r"create higgs --framework torch": "PyTorch's packages for GPUs take 7 GB; a cluster is made with those for CPUs",
    r"image build --framework torch": "the same",
    r"create ml .*--executor slurm .*": "the executor is tried on a real Slurm, and not by a creation",
    r"top ml": "only its parts are tried",
}
"""Lines that no test runs, and why; the command line understands them."""


def test_every_line_of_a_page_is_run_or_said_not_to_be() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    starts = re.sub(r"\\\n *", "", "".join(BLOCK.findall(text)))
    shown = {line.command: line.where for page in PAGES for line in written(page) if line.whole}
    stale = [line for line in (*HERE, *SERVICE) if line not in shown]
    assert not stale
    done = {*HERE, *SERVICE}
    for one in UNTRIED:
        found = {line for line in shown if re.fullmatch(f"provision {one}", line)}
        assert found, f"no page shows {one}"
        done |= found
    left = {line for line in shown if line not in done and line not in starts}
    tests = "".join(file.read_text(encoding="utf-8") for file in (REPOSITORY / "tests").rglob("test_*.py"))
    for one, test in ELSEWHERE.items():
        found = {line for line in left if re.fullmatch(f"provision {one}", line)}
        assert found, f"no page shows {one}"
        assert f"def {test}(" in tests, test
        done |= found
    assert not [f"{shown[line]} {line}" for line in left - done]


_LONGEST = 3600.0  # seconds that a line may take


class Terminal:
    """A shell in a folder, with somebody who says yes."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.environment = environment | {"OMP_NUM_THREADS": "1"}

    def run(self, line: str, typed: str = "y\n", until: str = "") -> str:
        """Run a line; what it printed.

        Args:
            typed: what is typed meanwhile.
            until: what it prints before it is ended by Ctrl-C; nothing for a line that ends by itself.
        """
        keyboard, end = pty.openpty()
        # --login -i would read the files of whoever runs the tests
        # a shell that runs the tests in the background has them ignore Ctrl-C
        words = ["env", "--default-signal=INT", "bash", "--noprofile", "--norc", "-euo", "pipefail", "-c", f"{line}\n:"]
        with subprocess.Popen(
            words,
            cwd=self.folder,
            env=self.environment,
            stdin=end,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as process:
            os.close(end)
            os.write(keyboard, typed.encode())
            said = ""
            # a line that prints something else, and does not end by itself
            limit = threading.Timer(_LONGEST, os.killpg, (process.pid, signal.SIGKILL))
            limit.start()
            for part in process.stdout:
                said += part
                if until and re.search(until, said):
                    until = ""
                    os.killpg(process.pid, signal.SIGINT)
            limit.cancel()
        with contextlib.suppress(OSError):
            os.close(keyboard)
        assert process.returncode in ((0, 130, -signal.SIGINT) if "connect" in line else (0,)), f"{line}\n{said}"
        return said


@pytest.mark.machine
@long
class TestHere:
    """A day with one platform of this computer, in the order of the lines."""

    @pytest.fixture(scope="class")
    @classmethod
    def shell(cls, computer_with_machines: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
        """A new user's."""
        provision = Command(tmp_path_factory.mktemp("home"))
        shell = Terminal(tmp_path_factory.mktemp("work"), provision.environment)
        (shell.folder / "higgs.yml").write_text("name: higgs\ndisk: 10GB\n")
        yield shell
        for left in json.loads(provision("list", "--json")):
            provision("delete", left["name"], "--yes")
        for image in json.loads(provision("image", "list", "--json")):
            provision("image", "delete", image["name"], "--yes")

    @pytest.mark.parametrize("line", HERE)
    def test_a_line(self, shell: Terminal, line: str) -> None:
        if line.startswith("mlaas4hep predict"):
            shutil.copytree(shell.folder / "model", shell.folder / "higgs-data" / "model", dirs_exist_ok=True)
            line = f"cd higgs-data; {line}"
        if "client higgs predict" in line:
            finished = r"higgs-data_1\b.*finished"
            wait_until(lambda: re.search(finished, shell.run("provision client higgs jobs")), 900)
        if line == "provision rebuild higgs":
            shell.run("provision start higgs")
        until = HERE[line] if "connect" in line else ""
        said = shell.run(line, "exit\n" if " ssh " in line else "y\n", until)
        assert re.search(HERE[line.removeprefix("cd higgs-data; ")], said, re.DOTALL), said
        if "fetch" in line:
            assert (shell.folder / "model" / "report.html").stat().st_size
        if "scores.root" in line:
            assert (shell.folder / "higgs-data" / "scores.root").stat().st_size
        if "delete higgs" in line:
            assert "higgs" not in shell.run("provision list")


class TestService:
    """A job of a user whom oidc-agent knows, in the order of the lines."""

    @pytest.fixture(scope="class")
    @classmethod
    def shell(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
        """Alice's, with what the pages have her export."""
        require_confinement()
        need_provider()
        if reason := lacking(PROGRAMS):
            do_without(reason)
        folder = tmp_path_factory.mktemp("service")
        (folder / "oidc").mkdir()
        (folder / "policy.toml").write_text(POLICY)
        platform = Platform(folder)
        with oidc_provider(folder / "oidc") as provider, oidc_agent(folder / "agent") as agent:
            agent.add("my-account", provider, "alice")
            issuer = f'[[authentication.issuers]]\nurl = "{provider.issuer}"\naudiences = ["{AUDIENCE}"]\n'
            issuer += f'ca_file = "{provider.ca_file}"\n'
            settings = platform.settings.read_text().replace("token_file =", "policy = ")
            settings = settings.replace(str(platform.token_file), str(folder / "policy.toml"))
            platform.settings.write_text(f"{settings}\n{issuer}")
            platform.start()
            exported = {"MLAAS4HEP_URL": platform.url, "OIDC_ACCOUNT": "my-account"}
            path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
            try:
                yield Terminal(tmp_path_factory.mktemp("work"), {**agent.environment, **exported, "PATH": path})
            finally:
                platform.stop()

    @pytest.mark.parametrize("line", SERVICE)
    def test_a_line(self, shell: Terminal, line: str) -> None:
        assert re.search(SERVICE[line], said := shell.run(line), re.DOTALL), said
