"""What the users of a shared service do with it, by HTTPS and its name, after logging in at a real OpenID provider."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx

from tests.conftest import Command
from tests.oidc.provider import AUDIENCE, OidcProvider, log_in
from tests.slurm.cluster import wait_until

DOMAIN = str(urlsplit(AUDIENCE).hostname)
"""The service's name: the provider's tokens are for it, and its client sends browsers back to it."""

# nobody but the command itself gets the name resolved
_NAMED = 'mount --bind "$1" /etc/hosts; shift; exec "$@"'


class _ByAddress(httpx.HTTPTransport):
    """Finds the service's name at an address; certificate and Host header stay those of the name."""

    def __init__(self, address: str, ca: Path) -> None:
        super().__init__(verify=ssl.create_default_context(cafile=ca))
        self._address = address

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        assert request.url.host == DOMAIN
        return super().handle_request(
            httpx.Request(
                request.method,
                request.url.copy_with(host=self._address),
                headers=request.headers,
                stream=request.stream,
                extensions={**request.extensions, "sni_hostname": DOMAIN},
            )
        )


@dataclass
class SharedService:
    """A platform's shared service.

    Attributes:
        provision: the command.
        platform: its name.
        provider: where its users log in.
        folder: an empty one.
    """

    provision: Command
    platform: str
    provider: OidcProvider
    folder: Path
    address: str = field(init=False)

    def __post_init__(self) -> None:
        self.address = json.loads(self.provision("show", self.platform, "--json"))["access"]["host"]
        self.ca = self.folder / "ca.pem"
        self.ca.write_text(self.on_machine("sudo", "cat", f"/etc/web-proxy/internal/{DOMAIN}/ca.pem"))
        self.hosts = self.folder / "hosts"
        self.hosts.write_text(f"127.0.0.1 localhost\n{self.address} {DOMAIN}\n")

    def on_machine(self, *words: str) -> str:
        """Run a command on the machine."""
        return self.provision("ssh", self.platform, "--", *words)

    @contextmanager
    def provider_reached(self) -> Iterator[None]:
        """For as long as this is open, the machine finds the provider where this computer does: on its loopback."""
        port = urlsplit(self.provider.issuer).port
        config = self.provision("ssh", self.platform, "--print-config").strip()
        way = ["-N", "-o", "ExitOnForwardFailure=yes", "-R", f"127.0.0.1:{port}:127.0.0.1:{port}"]
        forward = subprocess.Popen(["ssh", "-F", config, *way, self.platform], stdin=subprocess.DEVNULL)
        asked = ["curl", "-sko", "/dev/null", f"{self.provider.issuer}/.well-known/openid-configuration"]
        try:
            wait_until(lambda: self.provision.run("ssh", self.platform, "--", *asked).returncode == 0)
            yield
        finally:
            forward.terminate()
            forward.wait()

    def browser(self, token: str = "") -> httpx.Client:
        """A client that keeps cookies and follows no redirect by itself."""
        return httpx.Client(
            transport=_ByAddress(self.address, self.ca),
            base_url=AUDIENCE,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=60,
        )

    def token(self, user: str) -> str:
        """A user's access token, by the device flow."""
        return str(self.provider.user_tokens(user)["access_token"])

    def client(self, user: str, *words: str) -> str:
        """Run `provision client` as a user with a token; returns what it prints."""
        file = self.folder / f"{user}.token"
        file.touch(mode=0o600)
        file.write_text(self.token(user))
        become = [] if os.geteuid() == 0 else ["--map-root-user"]
        command = ["provision", "client", self.platform, *words]
        done = subprocess.run(
            ["unshare", "--mount", *become, "sh", "-ec", _NAMED, "sh", str(self.hosts), *command],
            cwd=self.folder,
            env={**self.provision.environment, "MLAAS4HEP_TOKEN_FILE": str(file), "SSL_CERT_FILE": str(self.ca)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout

    def answers_to_nobody_without_a_token(self) -> None:
        """By HTTPS and its name only, and what is behind the proxy not at all."""
        with self.browser() as anybody:
            assert anybody.get("/ready").text == "ok\n"
            assert [anybody.get(path).status_code for path in ("/api/v1/me", "/v2")] == [401, 401]
        with self.browser("a.b.c") as forger:
            assert forger.get("/api/v1/me").status_code == 401
        for port in (8080, 8081, 8082):
            asked = ["curl", "-sS", "-m", "5", f"http://{self.address}:{port}/ready"]
            closed = subprocess.run(asked, capture_output=True, check=False)
            assert closed.returncode in (7, 28)  # refused, or no answer

    def trains_and_predicts_for(self, user: str, workflow: Path) -> dict[str, Any]:
        """Upload, submit, follow the log, look at the model, predict; returns the job."""
        name = workflow.name
        uploaded = json.loads(self.client(user, "workspaces", "upload", str(workflow), "--json"))
        assert uploaded["name"] == name
        job = json.loads(self.client(user, "submit", name, "--json"))
        assert "test auc" in self.client(user, "logs", "-f", job["id"])
        job = json.loads(self.client(user, "status", job["id"], "--json"))
        assert job["state"] == "finished", job
        models = json.loads(self.client(user, "models", "list", "--json"))
        assert [model["name"] for model in models] == [name]
        answer = json.loads(self.client(user, "predict", name, str(workflow / "event.json")))
        assert "probabilities" in json.dumps(answer)
        with self.browser(self.token(user)) as owner:
            assert owner.get(f"/v2/models/{name}").json()["name"] == name
        return dict(job)

    def shows_nothing_to(self, stranger: str, owner: str, job: dict[str, Any], name: str) -> None:
        """What is another user's does not exist."""
        key = json.loads(self.client(owner, "me", "--json"))["key"]
        assert json.loads(self.client(stranger, "me", "--json"))["roles"] == ["serve", "submit"]
        assert [json.loads(self.client(stranger, *words, "--json")) for words in _LISTINGS] == [[], [], []]
        with self.browser(self.token(stranger)) as client:
            paths = [f"/api/v1/jobs/{job['id']}{part}" for part in ("", "/log", "/bundle", "/report")]
            paths += [f"/api/v1/workspaces/{name}", f"/api/v1/models/{key}.{name}", f"/v2/models/{key}.{name}"]
            assert {path: client.get(path).status_code for path in paths} == dict.fromkeys(paths, 404)
            assert client.post(f"/api/v1/jobs/{job['id']}/cancel").status_code == 404
            assert client.post(f"/v2/models/{key}.{name}/infer", json={"inputs": []}).status_code == 404

    def lets_a_browser_log_in(self, user: str, workspace: str) -> None:
        """Authorisation code with PKCE at the provider; the session's unsafe requests need its CSRF token."""
        with self.browser() as browser, self.provider.browser() as at_provider:
            begun = browser.get("/login", params={"next": "/api/v1/me"})
            assert begun.status_code == 303
            asked = parse_qs(urlsplit(begun.headers["Location"]).query)
            assert asked["code_challenge_method"] == ["S256"]
            back = log_in(at_provider, at_provider.get(begun.headers["Location"]), user)
            done = browser.get(back.headers["Location"])
            assert (done.status_code, done.headers["Location"]) == (303, "/api/v1/me"), done.text
            cookie = next(line for line in done.headers.get_list("Set-Cookie") if "__Host-mlaas4hep=" in line)
            assert all(word in cookie for word in ("HttpOnly", "Secure", "SameSite=lax"))
            # the same person as with a token
            assert browser.get("/api/v1/me").json()["key"] == json.loads(self.client(user, "me", "--json"))["key"]

            place = f"/api/v1/workspaces/{workspace}"
            assert browser.delete(place).status_code == 403
            csrf = {"X-CSRF-Token": browser.get("/login/session").json()["csrf_token"]}
            assert browser.delete(place, headers=csrf).status_code == 204
            assert browser.post("/logout").status_code == 403
            assert browser.post("/logout", headers=csrf).status_code == 303
            assert browser.get("/api/v1/me").status_code == 401


_LISTINGS = (("jobs",), ("workspaces", "list"), ("models", "list"))
