"""Starts a real OpenID provider (npm's oidc-provider) on loopback, with TLS, and plays a user's browser with it.

Users log in by name alone. Their access tokens are JWTs for `AUDIENCE`, as INDIGO IAM writes them.
"""

from __future__ import annotations

import hashlib
import html
import json
import re
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
from joserfc import jwt
from joserfc.jwk import RSAKey

from tests.debian import lacking

PROGRAMS = {"node": "nodejs", "npm": "npm"}
AUDIENCE = "https://ml.test"
CALLBACK = f"{AUDIENCE}/login/callback"
ACCOUNTS = {
    "alice": {"name": "Alice", "groups": ["/cms", "/cms/higgs"]},
    "bob": {"name": "Bob", "groups": ["/atlas"]},
    "carol": {"name": "Carol", "groups": ["/cms"]},
    "root": {"name": "The administrator", "groups": ["/admins"]},
}
_DEVICE = "urn:ietf:params:oauth:grant-type:device_code"
_AGENT = ("agent", "agents-secret")
_SECRET = "a secret: of+tests/100%"
CLIENTS: list[dict[str, Any]] = [
    {
        "client_id": "robot",
        "client_secret": _SECRET,
        "grant_types": ["client_credentials"],
        "redirect_uris": [],
        "response_types": [],
    },
    {
        "client_id": _AGENT[0],
        "client_secret": _AGENT[1],
        "grant_types": [_DEVICE, "refresh_token"],
        "redirect_uris": [],
        "response_types": [],
    },
    {"client_id": "public", "token_endpoint_auth_method": "none", "redirect_uris": [CALLBACK]},
    {"client_id": "confidential", "client_secret": _SECRET, "redirect_uris": [CALLBACK]},
]
_HERE = Path(__file__).parent
_CACHE = _HERE.parents[1] / ".cache"


@dataclass
class OidcProvider:
    """A running provider.

    Attributes:
        issuer: its URL.
        ca_file: the certificate to verify it with.
        key: what it signs with, for tokens that it would never issue.
    """

    issuer: str
    ca_file: Path
    key: RSAKey
    folder: Path

    def browser(self) -> httpx.Client:
        """A browser that trusts the provider."""
        return httpx.Client(verify=ssl.create_default_context(cafile=self.ca_file), timeout=30)

    def token(self, headers: dict[str, Any] | None = None, /, **changes: Any) -> str:
        """A token signed with the provider's key; claims that are None are left out."""
        now = int(time.time())
        claims = {"iss": self.issuer, "sub": "alice", "aud": AUDIENCE, "iat": now, "nbf": now, "exp": now + 300}
        claims |= {"wlcg.groups": ["/cms", "/cms/higgs"], "client_id": "public"} | changes
        header = {"alg": "RS256", "kid": self.key.kid, "typ": "at+jwt"} | (headers or {})
        return jwt.encode(header, {name: v for name, v in claims.items() if v is not None}, self.key)

    def robot_token(self, scope: str = "") -> str:
        """An access token of the client `robot` by its credentials."""
        form = {"grant_type": "client_credentials", "resource": AUDIENCE} | ({"scope": scope} if scope else {})
        return str(self._tokens(form, ("robot", _SECRET))["access_token"])

    def user_tokens(self, user: str, scope: str = "openid offline_access wlcg.groups") -> dict[str, Any]:
        """Access, refresh and ID token of a user by the device flow."""
        with self.browser() as browser:
            form = {"scope": scope, "prompt": "consent", "resource": AUDIENCE}
            begun = browser.post(f"{self.issuer}/device/auth", data=form, auth=_AGENT)
            begun.raise_for_status()
            page = browser.get(begun.json()["verification_uri_complete"])
            page = submit(browser, page, {})
            page = submit(browser, page, {"confirm": "yes"}) if 'name="confirm"' in page.text else page
            log_in(browser, page, user)
        return self._tokens({"grant_type": _DEVICE, "device_code": begun.json()["device_code"]}, _AGENT)

    def revoke(self, refresh_token: str) -> None:
        """End a refresh token of `user_tokens`, as an administrator does; access tokens live on until their end."""
        with self.browser() as browser:
            form = {"token": refresh_token, "token_type_hint": "refresh_token"}
            browser.post(f"{self.issuer}/token/revocation", data=form, auth=_AGENT).raise_for_status()

    def _tokens(self, form: dict[str, str], client: tuple[str, str]) -> dict[str, Any]:
        with self.browser() as browser:
            auth = (quote(client[0], safe=""), quote(client[1], safe=""))
            answer = browser.post(f"{self.issuer}/token", data=form, auth=auth)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found


def log_in(browser: httpx.Client, page: httpx.Response, user: str) -> httpx.Response:
    """Go through the provider's pages as a user would; returns what follows them.

    A redirect to another site is returned, not followed.
    """
    while True:
        while page.is_redirect:
            target = page.url.join(page.headers["Location"])
            if urlsplit(str(target)).netloc != urlsplit(str(page.url)).netloc:
                return page
            page = browser.get(target)
        assert page.status_code == 200, page.text
        if 'name="login"' in page.text:
            page = submit(browser, page, {"login": user, "password": "any"})
        elif 'value="consent"' in page.text:
            page = submit(browser, page, {})
        else:
            return page


def submit(browser: httpx.Client, page: httpx.Response, fields: dict[str, str]) -> httpx.Response:
    """Send the first form of a page, its hidden fields and these."""
    while page.is_redirect:
        page = browser.get(page.url.join(page.headers["Location"]))
    action = re.search(r'<form[^>]*action="([^"]+)"', page.text)
    assert action, page.text
    hidden = dict(re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)"', page.text))
    return browser.post(page.url.join(html.unescape(action[1])), data={**hidden, **fields})


@contextmanager
def oidc_provider(folder: Path, key: RSAKey | None = None, port: int = 0) -> Iterator[OidcProvider]:
    """A provider that runs in `folder`; with a key and port of one before, it is that one started again.

    Its certificate is made once a folder.
    """
    modules = _modules()
    port = port or free_port()
    key = key or RSAKey.generate_key(2048, {"use": "sig", "alg": "RS256"}, auto_kid=True)
    certificate, certificate_key = folder / "certificate.pem", folder / "key.pem"
    if not certificate.exists():
        make_certificate(certificate, certificate_key)
    settings = {
        "issuer": f"https://127.0.0.1:{port}",
        "port": port,
        "audience": AUDIENCE,
        "accounts": ACCOUNTS,
        "clients": CLIENTS,
        "jwks": {"keys": [key.as_dict(private=True)]},
        "certificate": str(certificate),
        "key": str(certificate_key),
    }
    configuration = folder / "configuration.json"
    configuration.write_text(json.dumps(settings))
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            ["node", _HERE / "server.mjs", modules, configuration], stdout=subprocess.PIPE, stderr=log
        )
        try:
            assert process.stdout
            assert process.stdout.readline() == b"ready\n", (folder / "log").read_text()
            yield OidcProvider(f"https://127.0.0.1:{port}", certificate, key, folder)
        finally:
            process.kill()
            process.communicate()


def lacking_programs() -> str:
    """Why a provider cannot be started here, or ""."""
    return lacking(PROGRAMS)


def make_certificate(certificate: Path, key: Path) -> None:
    """A certificate for loopback that is its own authority."""
    names = ("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2")
    files = ("-keyout", key, "-out", certificate)
    kind = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    subprocess.run(["openssl", "req", "-x509", *kind, *files, *names], check=True, capture_output=True)


def _modules() -> Path:
    """The folder that has the provider's node_modules, installed when it is not there."""
    lock = _HERE / "package-lock.json"
    folder = _CACHE / f"oidc-{hashlib.sha256(lock.read_bytes()).hexdigest()[:12]}"
    if folder.exists():
        return folder
    _CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_CACHE, prefix="oidc-") as name:
        made = Path(name) / "made"
        made.mkdir()
        for file in (lock, _HERE / "package.json"):
            shutil.copy(file, made)
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        done = subprocess.run(command, cwd=made, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        if not folder.exists():  # another run of the tests may have been quicker
            made.rename(folder)
    return folder


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
