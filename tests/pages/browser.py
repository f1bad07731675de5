"""A shared platform's service with its pages, and a real browser before it."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from mlaas4hep.service.app import create_app
from mlaas4hep.service.authentication import authenticator, policy_source
from mlaas4hep.service.settings import JobSettings, Settings
from mlaas4hep.serving.app import create_app as create_inference
from mlaas4hep.serving.settings import ServingSettings
from tests.conftest import REPOSITORY
from tests.oidc.fixtures import trusting
from tests.oidc.provider import AUDIENCE, OidcProvider, make_certificate
from tests.pages.packages import fetch, member
from tests.serving_parts import trained
from tests.unit.mlaas4hep.service_parts import Processes, until

PATIENCE = 300_000  # milliseconds that something may take on a busy machine
AXE = {
    "name": "axe-core",
    "version": "4.14.1",
    "integrity": "sha512-FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ==",
}
HOSTILE = "<img src=x onerror=alert(1)>"
POLICY = """
[everyone]
quota = { jobs = 20, memory = "64 GiB" }
[groups."/cms"]
roles = ["submit", "serve"]
[groups."/atlas"]
roles = ["submit", "serve"]
[groups."/admins"]
roles = ["administer"]
"""
# as a training does it: a log, epochs with their measures, and in the end a model
TRAINING = r"""
tell() {{
  printf '{{"event": "epoch", "epoch": %s, "epochs": 6, "measures": {{"loss": %s, "auc": %s}}, "seconds": 1}}\n' "$@" \
    >> progress.jsonl
}}
echo "the training begins"
tell 1 0.7 0.6; tell 2 0.6 0.7; tell 3 0.5 0.8
while [ ! -e {go} ]; do sleep 0.1; done
echo '{hostile}'
seq 1 300000
tell 4 0.4 0.9
cp -r {bundle} model
echo "the training ends"
"""


@dataclass
class Pages:
    """The service, and the browser of each user.

    Attributes:
        faults: what browsers have complained of: errors of scripts, violations of the policy, dialogs.
    """

    browser: Browser
    service: Any
    go: Path
    workflow: Path
    users: dict[str, BrowserContext] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def context(self, **options: Any) -> BrowserContext:
        """A new browser that nobody has signed in with."""
        context = self.browser.new_context(
            base_url=AUDIENCE, ignore_https_errors=True, **{"locale": "en-GB", "reduced_motion": "reduce", **options}
        )
        context.set_default_timeout(PATIENCE)
        context.on("page", self._watch)
        return context

    def page(self, user: str) -> Page:
        """A new page of a user, who is signed in when it is the first one."""
        if user in self.users:
            return self.users[user].new_page()
        self.users[user] = self.context()
        page = self.users[user].new_page()
        sign_in(page, user)
        return page

    def signed_in(self, user: str, **options: Any) -> BrowserContext:
        """Another browser with the session of a user."""
        self.page(user).close()
        return self.context(storage_state=self.users[user].storage_state(), **options)

    def _watch(self, page: Page) -> None:
        def told(message: Any) -> None:
            # what a page is refused is told, too; tests look at the answers themselves
            if message.type == "error" and "Failed to load resource" not in message.text:
                self.faults.append(f"{page.url}: {message.text}")

        page.on("console", told)
        page.on("pageerror", lambda error: self.faults.append(f"{page.url}: {error}"))

        def asked(dialog: Any) -> None:
            if dialog.type != "confirm":
                self.faults.append(f"{page.url}: {dialog.message}")
            dialog.accept()

        page.on("dialog", asked)


def sign_in(page: Page, user: str) -> None:
    """Through the first page and the provider's."""
    page.goto("/")
    page.get_by_role("link", name="Sign in").click()
    page.locator("input[name=login]").fill(user)
    page.locator("input[name=password]").fill("any")
    page.locator("[type=submit]").click()
    page.locator("[type=submit]").click()  # consent
    page.wait_for_url(f"{AUDIENCE}/**")


@contextmanager
def running_pages(folder: Path, oidc: OidcProvider) -> Iterator[Pages]:
    """A service with this provider, and a browser that finds it under the name of `AUDIENCE`."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    make_certificate(certificate, key)
    (folder / "policy.toml").write_text(POLICY)
    bundle, go = trained(folder / "trained", epochs=3), folder / "go"
    login = {"client_id": "public", "public_url": AUDIENCE}
    settings = Settings(
        data=folder / "data",
        authentication=trusting(oidc.issuer, oidc.ca_file, folder, login=login),
        jobs=JobSettings(interval=0.05, cpus=8, memory=2**40),
    )
    settings.data.mkdir()
    policies = policy_source(settings.authentication)
    identify = authenticator(settings.authentication, policies)
    inference = create_inference(settings.data / "repository", ServingSettings(workers=1), identify)
    executor = Processes(TRAINING.format(go=go, bundle=bundle, hostile=HOSTILE))
    app = create_app(settings, executor, identify, policies, inference, inference.predictions)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        config = uvicorn.Config(
            app, log_level="warning", ssl_certfile=certificate, ssl_keyfile=key, timeout_graceful_shutdown=1
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            until(lambda: server.started or not thread.is_alive(), bool)
            # nothing but the service and the provider is there
            rules = f"MAP ml.test:443 127.0.0.1:{port},MAP * ~NOTFOUND,EXCLUDE 127.0.0.1"
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(
                    executable_path="/usr/bin/chromium", args=[f"--host-resolver-rules={rules}"], timeout=PATIENCE
                )
                try:
                    yield Pages(browser, app.api.state.service, go, folder / "trained" / "workflow")
                finally:
                    browser.close()
        finally:
            server.should_exit = True
            thread.join()
            inference.predictions.close()
            executor.end()


def faults_of_access(page: Page) -> list[str]:
    """What axe-core finds that is serious or critical, in light and dark."""
    page.evaluate(member(fetch(**AXE), "axe.min.js").decode())
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    page.emulate_media(color_scheme="dark")
    found += page.evaluate("axe.run(document, {runOnly: ['color-contrast'], resultTypes: ['violations']})")[
        "violations"
    ]
    page.emulate_media(color_scheme="light")
    return [
        f"{page.url}: {rule['id']}: {rule['help']}: {[node['html'][:200] for node in rule['nodes']]}"
        for rule in found
        if rule["impact"] in ("serious", "critical")
    ]


def shoot(page: Page, name: str) -> None:
    """Pictures of the page in light and dark, in build/screenshots or the folder that PAGES_SCREENSHOTS names."""
    folder = Path(os.environ.get("PAGES_SCREENSHOTS") or REPOSITORY / "build" / "screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)
        page.screenshot(path=folder / f"{name}-{scheme}.png", full_page=True)
