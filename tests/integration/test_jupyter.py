"""Notebooks on machines of this computer: on a personal platform, and by the hub of a shared one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
from tornado.httpclient import HTTPRequest
from tornado.websocket import WebSocketClientConnection, websocket_connect

from provision.framework import find_framework
from provision.record import Home
from provision.remote import Remote
from provision.uninstall import installed, uninstall
from tests.conftest import Command, long
from tests.e2e.shared_service import DOMAIN, SharedService
from tests.integration.check_mode import STATE, compared
from tests.integration.releases import variant
from tests.oidc.fixtures import need_provider
from tests.oidc.provider import log_in, oidc_provider
from tests.slurm.cluster import wait_until

pytestmark = [pytest.mark.machine, long]

NAME = "hublab"
PERSONAL = ["create", NAME, "--cloud", "local", "--disk", "10GB", "--jupyter", "--idle-stop", "8h", "--yes"]
ACTIVITY = ["sudo", "systemctl", "start", "platform-activity.service"]


class Notebook:
    """A kernel of a Jupyter server, as its page uses one.

    Attributes:
        client: an HTTP client of the server, signed in.
        address: of its WebSockets.
    """

    def __init__(self, client: httpx.Client, address: str, **headers: str) -> None:
        self.client, self.address, self.headers = client, address, headers
        started = client.post("api/kernels", json={"name": "python3"}, headers=headers)
        assert started.status_code == 201, started.text
        self.kernel = started.json()["id"]

    def run(self, code: str, **connection: Any) -> str:
        """Run a cell; what it printed."""
        return asyncio.run(self._run(code, connection))

    async def _run(self, code: str, connection: dict[str, Any]) -> str:
        url = f"{self.address}api/kernels/{self.kernel}/channels"
        channel = await websocket_connect(HTTPRequest(url, headers=self.headers, request_timeout=300, **connection))
        # https://jupyter-client.readthedocs.io/en/stable/messaging.html
        header = {
            "msg_id": uuid.uuid4().hex,
            "msg_type": "execute_request",
            "session": "",
            "username": "",
            "version": "5.3",
        }
        message = {"header": header, "parent_header": {}, "metadata": {}, "channel": "shell", "content": {"code": code}}
        try:
            await channel.write_message(json.dumps(message))
            return await self._printed(channel, header["msg_id"])
        finally:
            channel.close()
            while await channel.read_message() is not None:
                pass

    async def _printed(self, channel: WebSocketClientConnection, cell: str) -> str:
        printed = ""
        while True:
            told = await channel.read_message()
            assert told is not None, f"the kernel has hung up after {printed!r}"
            answer = json.loads(told)
            if answer["parent_header"].get("msg_id") != cell:
                continue
            match answer["msg_type"]:
                case "stream" if answer["content"]["name"] == "stdout":
                    printed += answer["content"]["text"]
                case "error":
                    raise AssertionError("\n".join(answer["content"]["traceback"]))
                case "status" if answer["content"]["execution_state"] == "idle":
                    return printed

    def begin(self, code: str, **connection: Any) -> None:
        """Run a cell without waiting for its end."""
        asyncio.run(self._begin(code, connection))

    async def _begin(self, code: str, connection: dict[str, Any]) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._run(code, connection), 5)

    @property
    def state(self) -> str:
        """Whether it works."""
        return str(self.client.get(f"api/kernels/{self.kernel}").json()["execution_state"])


def changed(provision: Command, name: str) -> list[str]:
    """Which tasks have changed something when roles were last applied."""
    runs = sorted((provision.home / f"provision/platforms/{name}/logs").glob("platform-*.json"))
    tasks = json.loads(runs[-1].read_text())["changed_tasks"]
    return [task for task in tasks if "record" not in task.lower()]


WHERE = """
import sys, pathlib
import mlaas4hep.cli, keras
print(sys.prefix, keras.__version__, pathlib.Path(keras.__file__))
"""
EXAMPLE = """
import subprocess, tempfile, json, pathlib
folder = tempfile.mkdtemp()
run = lambda *words: subprocess.run(words, cwd=folder, check=True, capture_output=True, text=True).stdout
run("mlaas4hep", "example-data", "higgs", "--events", "2000")
run("mlaas4hep", "train", "--folder", "higgs", "--fout", "model")
print(json.loads(pathlib.Path(folder, "model", "metrics.json").read_text())["final"]["test"]["auc"])
print(run("mlaas4hep", "client", "me", "--json"))
"""


class TestPersonal:
    """One platform, in the order of the tests."""

    @pytest.fixture(scope="class")
    @classmethod
    def ready(cls, computer_with_machines: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
        """The command, in a home with the platform `hublab`."""
        provision = Command(tmp_path_factory.mktemp("home"))
        try:
            provision(*PERSONAL)
            yield provision
        finally:
            provision("delete", NAME, "--yes")

    def test_a_kernel_of_the_framework_is_reached_by_tunnel_and_token(self, ready: Command):
        with ready.connected(NAME) as shown:
            url = next(tunnel["url"] for tunnel in shown["tunnels"] if tunnel["name"] == "notebook")
            token = Path(shown["notebook_token_file"])
            assert token.stat().st_mode & 0o077 == 0
            assert httpx.get(f"{url}/api/kernels").status_code == 403
            assert "Token" in httpx.get(f"{url}/lab", follow_redirects=True).text
            authorization = {"Authorization": f"token {token.read_text().strip()}"}
            with httpx.Client(base_url=url, headers=authorization, timeout=300) as client:
                specs = client.get("/api/kernelspecs").json()["kernelspecs"]
                assert [spec["spec"]["display_name"] for spec in specs.values()] == ["MLaaS4HEP"]
                assert client.get("/lab").status_code == 200
                notebook = Notebook(client, f"{url.replace('http', 'ws', 1)}/", **authorization)
                prefix, version, place = notebook.run(WHERE).split()
                assert prefix == "/opt/mlaas4hep-jupyter/venv" and place.startswith("/opt/mlaas4hep/venv"), version
                auc, me = notebook.run(EXAMPLE).split("\n", 1)
                assert float(auc) > 0.7
                assert "local" in json.loads(me).values()
                who = notebook.run(
                    "import getpass, subprocess; print(getpass.getuser())\n"
                    "print(subprocess.run(['sudo', '-n', 'true'], capture_output=True).returncode)"
                )
                assert who.split() == ["physicist", "1"]
                assert [self.runs_to_its_end(notebook, name) for name in ("1-inspect", "4-serve")] == [True, True]
                assert notebook.state == "idle"
                self.is_use_for_as_long_as_it_works(ready, notebook)
        assert not token.exists()

    def runs_to_its_end(self, notebook: Notebook, name: str) -> bool:
        """An example, as it lies in the user's folder, cell by cell."""
        cells = notebook.client.get(f"api/contents/notebooks/{name}.ipynb").json()["content"]["cells"]
        codes = [cell["source"] for cell in cells if cell["cell_type"] == "code"]
        for code in ["%cd ~/notebooks", *codes]:
            notebook.run(code)
        return len(codes) > 3

    def is_use_for_as_long_as_it_works(self, ready: Command, notebook: Notebook) -> None:
        def use() -> str:
            ready("ssh", NAME, "--", *ACTIVITY)
            return str(json.loads(ready("ssh", NAME, "--", "cat", "/run/platform/activity.json"))["busy"])

        # it only waits: no processor is at work
        notebook.begin("import time; time.sleep(100000)")
        wait_until(lambda: notebook.state == "busy")
        assert use() == "a notebook's kernel at work"
        notebook.client.post(f"api/kernels/{notebook.kernel}/interrupt")
        wait_until(lambda: notebook.state == "idle")
        assert "notebook" not in use()

    def test_token_and_unit_are_the_users_own(self, ready: Command):
        told = ready("ssh", NAME, "--", "stat", "--format=%U %a", "/etc/mlaas4hep/jupyter-token")
        assert told.split() == ["physicist", "600"]
        with Remote(Home(ready.home / "provision").folder(NAME)) as remote:
            token = remote.run(["cat", "/etc/mlaas4hep/jupyter-token"]).strip()
            assert token not in remote.run(["sh", "-c", "cat /proc/[0-9]*/cmdline"], check=False)
        assert token not in ready.logs()
        assert "notebooks" in ready("doctor", NAME)

    def test_roles_run_again_change_nothing(self, ready: Command):
        ready("ssh", NAME, "--", "sudo", "rm", "/etc/mlaas4hep/platform.json")
        ready(*PERSONAL)
        assert changed(ready, NAME) == []

    def test_an_update_brings_notebooks_along(self, ready: Command, tmp_path: Path):
        def run(*more: str) -> list[str]:
            words = ["--packages", "none", "--wheel", str(newer), "--yes", "--json"]
            return list(json.loads(ready("admin", "update", NAME, *words, *more))["platforms"][0]["changed"])

        there, place = ["ssh", NAME, "--"], "/opt/mlaas4hep-jupyter"
        # the packages of another lock file, of which the update is the end
        former = f"cd {place}; mv $(readlink venv) venv-former; ln -sfn {place}/venv-former venv"
        ready(*there, "sudo", "sh", "-ec", former)
        wheel = find_framework("", Path(os.environ["PROVISION_CACHE"])).wheel
        newer = variant(wheel, tmp_path / "newer", "mlaas4hep/__init__.py", "\nNEWER = 'newer'\n")
        done = compared(lambda: ready(*there, "sudo", "python3", "-c", STATE), run)
        assert {"mlaas4hep : Use the new virtual environment", "jupyter : Use the new virtual environment"} <= set(done)
        assert {"mlaas4hep : Restart the service", "jupyter : Restart notebooks"} <= set(done)
        assert ready(*there, "ls", place).count("venv-") == 1
        with ready.connected(NAME) as shown:
            url = next(tunnel["url"] for tunnel in shown["tunnels"] if tunnel["name"] == "notebook")
            authorization = {"Authorization": f"token {Path(shown['notebook_token_file']).read_text().strip()}"}
            with httpx.Client(base_url=url, headers=authorization, timeout=300) as client:
                assert client.get("/lab").status_code == 200
                notebook = Notebook(client, f"{url.replace('http', 'ws', 1)}/", **authorization)
                assert notebook.run("import mlaas4hep; print(mlaas4hep.NEWER)") == "newer\n"
        outcome = json.loads(ready("admin", "health", NAME, "--json"))["platforms"][0]
        found = {finding["check"]: finding["good"] for finding in outcome["report"]["findings"]}
        assert found["platform-jupyter.service"], found


SHARED = ["create", "hub", "--cloud", "local", "--disk", "10GB", "--jupyter", "--service", "shared", "--domain", DOMAIN]
POLICY = '[groups."/cms"]\nroles = ["submit", "serve"]\n\n[groups."/atlas"]\nroles = ["serve"]\n'
LIMITS = ["MemoryMax", "CPUQuotaPerSecUSec", "TasksMax", "NoNewPrivileges", "DynamicUser", "ProtectSystem", "Slice"]
TRANSPORT = """
import ipykernel, json
print(json.load(open(ipykernel.get_connection_file()))["transport"])
"""


class Visitor:
    """A person's browser at the service, which signs in when it is asked to."""

    clients: ClassVar[list[httpx.Client]] = []
    """Of all visitors; closed after each test."""

    def __init__(self, service: SharedService, user: str) -> None:
        self.service, self.user = service, user
        self.pages = self._browser()

    def _browser(self) -> httpx.Client:
        self.clients.append(self.service.browser())
        return self.clients[-1]

    def visit(self, path: str) -> httpx.Response:
        """Get a page, through all redirects."""
        page = self.pages.get(path)
        with self.service.provider.browser() as at_provider:
            while page.is_redirect:
                target = page.url.join(page.headers["Location"])
                if target.host != DOMAIN:
                    page = log_in(at_provider, at_provider.get(target), self.user)
                    target = httpx.URL(page.headers["Location"])
                page = self.pages.get(target)
        return page

    def key(self) -> str:
        """What the service calls the person."""
        return str(self.pages.get("/api/v1/me").json()["key"])

    def cookies(self) -> str:
        """All that it would send."""
        return "; ".join(f"{cookie.name}={cookie.value}" for cookie in self.pages.cookies.jar)

    def notebook(self) -> Notebook:
        """A kernel of the person's own server, once that runs."""
        # the hub sees within seconds that a server has ended, and until then would send there
        wait_until(lambda: self.visit("/jupyter/hub/spawn").status_code == 200)
        home = f"/jupyter/user/{self.key()}/"
        wait_until(lambda: (page := self.visit(f"{home}lab")).status_code == 200 and page.url.path == f"{home}lab")
        client = self._browser()
        client.base_url = f"https://{DOMAIN}{home}"
        client.cookies = self.pages.cookies
        xsrf = next(c.value for c in client.cookies.jar if c.name == "_xsrf" and c.path == home)
        return Notebook(client, f"wss://{self.service.address}{home}", **{"X-XSRFToken": str(xsrf)})

    def run(self, notebook: Notebook, code: str) -> str:
        """Run a cell, through the web proxy."""
        notebook.headers |= {"Host": DOMAIN, "Cookie": self.cookies()}
        return notebook.run(code, validate_cert=False)


class TestShared:
    """One shared platform, in the order of the tests; carol and alice are of /cms, bob is not."""

    @pytest.fixture(scope="class")
    @classmethod
    def service(cls, computer_with_machines: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedService]:
        need_provider()
        folder = tmp_path_factory.mktemp("hub")
        provision = Command(folder)
        (folder / "policy.toml").write_text(POLICY)
        with oidc_provider(tmp_path_factory.mktemp("oidc")) as provider:
            words = ["--iam", provider.issuer, "--iam-ca", str(provider.ca_file), "--client-id", "public"]
            words += ["--tls", "internal", "--policy", str(folder / "policy.toml"), "--yes"]
            try:
                provision(*SHARED, *words)
                made = SharedService(provision, "hub", provider, folder)
                with made.provider_reached(), made.browser() as anybody:
                    wait_until(lambda: anybody.get("/ready").status_code != 502)
                    yield made
            finally:
                provision("delete", "hub", "--yes")

    @pytest.fixture(autouse=True)
    def _visitors_go(self) -> Iterator[None]:
        yield
        while Visitor.clients:
            Visitor.clients.pop().close()

    def test_users_have_servers_of_their_own_within_limits(self, service: SharedService):
        alice, carol = Visitor(service, "alice"), Visitor(service, "carol")
        books = {visitor: visitor.notebook() for visitor in (alice, carol)}
        who = "import getpass, os, subprocess, mlaas4hep\n"
        who += "print(getpass.getuser(), os.getcwd(), subprocess.run(['sudo', '-n', 'true']).returncode)"
        for visitor, notebook in books.items():
            key = visitor.key()
            told = visitor.run(notebook, who).split()
            assert told == [f"jupyter-{key}", f"/var/lib/private/platform-jupyter/{key}", "1"], told
            assert "0o700" in visitor.run(notebook, "print(oct(os.stat('.').st_mode & 0o777))")
            unit = ["systemctl", "show", f"platform-jupyter-{key}.service", f"--property={','.join(LIMITS)}"]
            told = dict(line.split("=", 1) for line in service.on_machine(*unit).splitlines())
            assert 0 < int(told["MemoryMax"]) < 2**40 and told["CPUQuotaPerSecUSec"] == "2s", told
            assert (told["NoNewPrivileges"], told["DynamicUser"], told["ProtectSystem"]) == ("yes", "yes", "strict")
            assert told["Slice"] == "platform-jupyter.slice"
            assert visitor.run(notebook, TRANSPORT).strip() == "ipc"
        assert alice.run(books[alice], "print(os.path.exists('notebooks/1-inspect.ipynb'))").strip() == "True"
        self.is_use_for_as_long_as_it_works(service, alice, books[alice])
        look = f"print(os.path.exists('/var/lib/platform-jupyter/{alice.key()}/.'))"
        assert carol.run(books[carol], look).strip() == "False"

    def is_use_for_as_long_as_it_works(self, service: SharedService, visitor: Visitor, notebook: Notebook) -> None:
        notebook.headers |= {"Host": DOMAIN, "Cookie": visitor.cookies()}
        notebook.begin("import time; time.sleep(100000)", validate_cert=False)
        wait_until(lambda: notebook.state == "busy")
        service.on_machine(*ACTIVITY)
        state = json.loads(service.on_machine("cat", "/run/platform/activity.json"))
        assert state["busy"] == "a notebook's kernel at work"
        xsrf = {"X-XSRFToken": notebook.headers["X-XSRFToken"]}
        interrupt = notebook.client.post(f"api/kernels/{notebook.kernel}/interrupt", headers=xsrf)
        assert interrupt.status_code == 204
        wait_until(lambda: notebook.state == "idle")

    def test_nobody_sees_the_page_of_another(self, service: SharedService):
        alice, carol = Visitor(service, "alice"), Visitor(service, "carol")
        assert [visitor.visit("/jupyter/").status_code for visitor in (alice, carol)] == [200, 200]
        assert carol.pages.get(f"/jupyter/user/{alice.key()}/lab").status_code == 403
        with service.browser() as nobody:
            answer = nobody.get(f"/jupyter/user/{alice.key()}/lab")
            assert answer.status_code == 303 and answer.headers["Location"].startswith(f"https://{DOMAIN}/login?next=")
            assert nobody.get("/jupyter/hub/gate").status_code == 404

    def test_whom_the_policy_leaves_out_is_refused(self, service: SharedService):
        page = Visitor(service, "bob").visit("/jupyter/")
        assert page.status_code == 403 and "policy" in page.text

    def test_the_hub_knows_servers_after_it_was_restarted(self, service: SharedService):
        alice = Visitor(service, "alice")
        notebook = alice.notebook()
        service.on_machine("sudo", "systemctl", "restart", "platform-jupyterhub.service")
        wait_until(lambda: alice.visit("/jupyter/hub/home").status_code == 200)
        self.is_use_for_as_long_as_it_works(service, alice, notebook)

    def test_a_server_is_not_started_by_a_token_of_the_hub(self, service: SharedService):
        alice = Visitor(service, "alice")
        alice.visit("/jupyter/hub/token")
        api = f"/jupyter/hub/api/users/{alice.key()}"
        xsrf = next(c.value for c in alice.pages.cookies.jar if c.name == "_xsrf" and c.path == "/jupyter/hub/")
        headers = {"X-XSRFToken": str(xsrf), "Referer": f"https://{DOMAIN}/jupyter/hub/token"}
        minted = alice.pages.post(f"{api}/tokens", json={"note": "of alice"}, headers=headers)
        assert minted.status_code == 201, minted.text
        with service.browser() as program:
            program.headers["Authorization"] = f"token {minted.json()['token']}"
            assert program.delete(f"{api}/server").status_code in (202, 204, 400)
            # until the server has ended, the answer is 400
            wait_until(lambda: program.post(f"{api}/server").status_code == 403)

    def test_a_server_that_was_ended_is_started_again(self, service: SharedService):
        alice = Visitor(service, "alice")
        alice.notebook()
        service.on_machine("sudo", "systemctl", "stop", f"platform-jupyter-{alice.key()}.service")
        assert alice.run(alice.notebook(), "print(1)").strip() == "1"

    def test_a_server_ends_for_its_user_with_the_session(self, service: SharedService):
        alice = Visitor(service, "alice")
        notebook = alice.notebook()
        session = next(cookie.value for cookie in alice.pages.cookies.jar if cookie.name == "__Host-mlaas4hep")
        assert session not in alice.run(notebook, "import os; print(os.environ)")
        alice.run(notebook, "print(1)")
        csrf = {"X-CSRF-Token": alice.pages.get("/login/session").json()["csrf_token"]}
        assert alice.pages.post("/logout", headers=csrf).status_code == 303
        wait_until(lambda: notebook.client.get("api/kernels").status_code == 303)

    def test_roles_run_again_change_nothing(self, service: SharedService):
        spec = json.loads(service.provision("show", "hub", "--json"))["spec"]
        wishes = service.folder / "hub.json"
        wishes.write_text(json.dumps(spec))
        service.on_machine("sudo", "rm", "/etc/mlaas4hep/platform.json")
        service.provision("create", "--spec", str(wishes), "--yes")
        assert changed(service.provision, "hub") == []

    def test_an_uninstallation_leaves_nothing_of_it(self, service: SharedService):
        folder = Home(service.provision.home / "provision").folder("hub")
        health = service.provision.run("admin", "health", "hub", "--json").stdout
        found = {f["check"]: f["good"] for f in json.loads(health)["platforms"][0]["report"]["findings"]}
        assert found["platform-jupyterhub.service"] and found["nginx.service"], found
        uninstall(folder, print)
        with Remote(folder) as remote:
            assert installed(remote) == []
            assert remote.run(["systemctl", "list-units", "--plain", "--no-legend", "platform-jupyter*"]).strip() == ""
