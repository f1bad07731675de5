"""Login with a browser at a real OpenID provider, and what attackers try with it."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx
import pytest
from fastapi import FastAPI, Request

from mlaas4hep.errors import UsageError
from mlaas4hep.service.authentication import policy_source
from mlaas4hep.service.login import LOGIN_COOKIE, SESSION_COOKIE, BrowserLogin, local_path
from mlaas4hep.service.problems import add_problem_handlers
from tests.oidc import fixtures
from tests.oidc.fixtures import need_provider, trusting
from tests.oidc.issuer import KEY, Issuer, as_json, misbehaving_issuer
from tests.oidc.provider import AUDIENCE, CLIENTS, OidcProvider, log_in, oidc_provider

oidc = fixtures.oidc


@dataclass
class Store:
    """Sessions in memory."""

    now: float = field(default_factory=time.time)
    kept: dict[str, tuple[str, float]] = field(default_factory=dict)

    async def put(self, key: str, value: str, expires: float) -> None:
        self.kept[key] = value, expires

    async def get(self, key: str) -> str | None:
        value, expires = self.kept.get(key, ("", 0.0))
        return value if self.now < expires else None

    async def delete(self, key: str) -> None:
        self.kept.pop(key, None)


class Browser:
    """A browser that knows the service only, and follows no redirect by itself."""

    def __init__(self, app: FastAPI) -> None:
        self._client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=AUDIENCE)
        self.cookies = self._client.cookies

    def request(self, method: str, path: str, **more: Any) -> httpx.Response:
        return asyncio.run(self._client.request(method, path, **more))

    def get(self, path: str) -> httpx.Response:
        return self.request("GET", path)

    def post(self, path: str, **more: Any) -> httpx.Response:
        return self.request("POST", path, **more)

    def set_cookie(self, name: str, value: str) -> None:
        self.cookies.set(name, value, domain=urlsplit(AUDIENCE).netloc)


@dataclass
class Service:
    """A service with login."""

    app: FastAPI
    store: Store
    oidc: OidcProvider
    folder: Path

    def browser(self) -> Browser:
        return Browser(self.app)

    def callback(self, browser: Browser, user: str = "alice", path: str = "/login") -> str:
        """Begin a login and log in at the provider; returns the URL it sends the browser back to."""
        begun = browser.get(path)
        assert begun.status_code == 303, begun.text
        with self.oidc.browser() as elsewhere:
            page = log_in(elsewhere, elsewhere.get(begun.headers["Location"]), user)
        return page.headers["Location"]

    def log_in(self, browser: Browser, user: str = "alice", path: str = "/login") -> httpx.Response:
        return browser.get(self.callback(browser, user, path))


def _service(oidc: OidcProvider, folder: Path, **login: Any) -> Service:
    login = {"client_id": "public", "public_url": AUDIENCE, **login}
    settings = trusting(oidc.issuer, oidc.ca_file, folder, login=login)
    store, app = Store(), FastAPI()
    add_problem_handlers(app)
    made = BrowserLogin(settings, store, policy_source(settings), clock=lambda: store.now)
    app.include_router(made.router)

    @app.api_route("/things", methods=["GET", "POST", "DELETE"])
    async def things(request: Request) -> str:
        return (await made.user(request)).subject

    return Service(app, store, oidc, folder)


@pytest.fixture
def service(oidc: OidcProvider, tmp_path: Path) -> Service:
    return _service(oidc, tmp_path)


@pytest.fixture
def browser(service: Service) -> Browser:
    return service.browser()


def _cookies(answer: httpx.Response) -> dict[str, str]:
    """Name -> the whole Set-Cookie line."""
    return {line.partition("=")[0]: line for line in answer.headers.get_list("set-cookie")}


def _keep(browser: Browser, **changes: str) -> None:
    """Change what the browser's login cookie keeps."""
    kept = json.loads(base64.urlsafe_b64decode(browser.cookies[LOGIN_COOKIE]))
    browser.cookies.clear()
    browser.set_cookie(LOGIN_COOKIE, base64.urlsafe_b64encode(json.dumps({**kept, **changes}).encode()).decode())


def _with(url: str, **changes: str | None) -> str:
    query = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()} | changes
    return f"/login/callback?{urlencode({name: v for name, v in query.items() if v is not None})}"


def _refused(answer: httpx.Response, status: int = 401) -> None:
    assert answer.status_code == status, answer.text
    assert SESSION_COOKIE not in _cookies(answer)


def test_login_and_logout(service: Service, browser: Browser) -> None:
    assert browser.get("/things").status_code == 401
    done = service.log_in(browser, path="/login?next=/models?page=2")
    assert (done.status_code, done.headers["Location"]) == (303, "/models?page=2")
    session = browser.get("/login/session").json()
    assert session["user"]["name"] == "Alice"
    assert session["user"]["groups"] == ["/cms", "/cms/higgs"]
    assert session["user"]["roles"] == ["serve", "submit"]
    assert browser.get("/things").json() == "alice"

    cookie = browser.cookies[SESSION_COOKIE]
    done = browser.post("/logout", data={"csrf_token": session["csrf_token"]})
    assert (done.status_code, done.headers["Location"]) == (303, "/")
    assert SESSION_COOKIE not in browser.cookies
    browser.set_cookie(SESSION_COOKIE, cookie)
    assert browser.get("/things").status_code == 401
    assert service.store.kept == {}


def test_client_with_a_secret(oidc: OidcProvider, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    client = next(client for client in CLIENTS if client["client_id"] == "confidential")
    secret.write_text(client["client_secret"] + "\n")
    service = _service(oidc, tmp_path, client_id="confidential", client_secret_file=secret)
    assert service.log_in(service.browser()).status_code == 303
    secret.write_text("wrong")
    service = _service(oidc, tmp_path, client_id="confidential", client_secret_file=secret)
    _refused(service.log_in(service.browser()))
    with pytest.raises(UsageError, match="none"):
        _service(oidc, tmp_path, client_secret_file=tmp_path / "none")


def test_request_to_the_provider_has_pkce_state_and_nonce(service: Service, browser: Browser) -> None:
    queries = [parse_qs(urlsplit(browser.get("/login").headers["Location"]).query) for _ in range(2)]
    for query in queries:
        assert query["response_type"] == ["code"] and query["code_challenge_method"] == ["S256"]
        assert query["redirect_uri"] == [f"{AUDIENCE}/login/callback"]
    for name in ("state", "nonce", "code_challenge"):
        assert len(queries[0][name][0]) >= 43 and queries[0][name] != queries[1][name]


def test_cookies_are_closed_to_scripts_and_other_sites(service: Service, browser: Browser) -> None:
    begun = browser.get("/login")
    done = service.log_in(browser)
    for answer, name in ((begun, LOGIN_COOKIE), (done, SESSION_COOKIE)):
        line = _cookies(answer)[name].lower()
        assert all(word in line for word in ("; httponly", "; secure", "; samesite=lax", "; path=/"))
        assert "domain" not in line
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert LOGIN_COOKIE not in browser.cookies


def test_store_cannot_give_away_sessions(service: Service, browser: Browser) -> None:
    service.log_in(browser)
    assert browser.cookies[SESSION_COOKIE] not in json.dumps(service.store.kept)
    browser.set_cookie(SESSION_COOKIE, next(iter(service.store.kept)))
    assert browser.get("/things").status_code == 401


def test_login_csrf_in_a_browser_that_began_none(service: Service, browser: Browser) -> None:
    _refused(service.browser().get(service.callback(browser, "bob")))


def test_login_csrf_in_a_browser_that_began_another(service: Service, browser: Browser) -> None:
    victim = service.browser()
    victim.get("/login")
    _refused(victim.get(service.callback(browser, "bob")))


@pytest.mark.parametrize(
    "changes",
    [
        {"state": None},
        {"state": ""},
        {"state": "x"},
        {"state": "é"},
        {"code": None},
        {"code": "x"},
        {"iss": None},
        {"iss": "https://other.test"},
        {"error": "access_denied"},
        {"error": "<script>"},
    ],
)
def test_changed_answer_of_the_provider_is_refused(
    changes: dict[str, str | None], service: Service, browser: Browser
) -> None:
    answer = browser.get(_with(service.callback(browser), **changes))
    _refused(answer)
    assert "<script>" not in answer.text and answer.headers["Content-Type"].startswith("text/plain")
    assert browser.get("/things").status_code == 401


def test_code_counts_once(service: Service, browser: Browser) -> None:
    callback = service.callback(browser)
    kept = browser.cookies[LOGIN_COOKIE]
    assert browser.get(callback).status_code == 303
    _refused(browser.get(callback))
    browser.set_cookie(LOGIN_COOKIE, kept)
    _refused(browser.get(callback))


@pytest.mark.parametrize("kept", ["verifier", "nonce", "state"])
def test_answer_belongs_to_what_the_browser_keeps(kept: str, service: Service, browser: Browser) -> None:
    callback = service.callback(browser)
    _keep(browser, **{kept: "x" * 43})
    _refused(browser.get(callback))


@pytest.mark.parametrize(
    "cookie", ["", "x", "e30=", "W10=", "bnVsbA==", "eyJzdGF0ZSI6IDF9", base64.urlsafe_b64encode(b"[" * 2000).decode()]
)
def test_login_cookie_that_is_none_of_ours(cookie: str, service: Service, browser: Browser) -> None:
    callback = service.callback(browser)
    browser.cookies.clear()
    browser.set_cookie(LOGIN_COOKIE, cookie)
    _refused(browser.get(callback))


ELSEWHERE = ["https://evil.test/", "//evil.test", "///evil.test", "/\\evil.test", "\\/evil.test", "/\t/evil.test"]
ELSEWHERE += ["evil.test", "javascript:alert(1)", "", " /", "/\r\nSet-Cookie: a=b", "/a\\..\\b", "/é", "/" + "a" * 2000]


@pytest.mark.parametrize("page", ELSEWHERE)
def test_login_goes_on_nowhere_else(page: str, service: Service, browser: Browser) -> None:
    assert local_path(page) == "/"
    done = service.log_in(browser, path=f"/login?{urlencode({'next': page})}")
    assert (done.status_code, done.headers["Location"]) == (303, "/")


def test_login_cookie_cannot_send_elsewhere_either(service: Service, browser: Browser) -> None:
    callback = service.callback(browser)
    _keep(browser, next="https://evil.test/")
    assert browser.get(callback).headers["Location"] == "/"


def test_session_that_was_there_before_is_not_adopted(service: Service, browser: Browser) -> None:
    browser.set_cookie(SESSION_COOKIE, "chosen by an attacker")
    service.log_in(browser)
    stranger = service.browser()
    stranger.set_cookie(SESSION_COOKIE, "chosen by an attacker")
    assert stranger.get("/things").status_code == 401


def test_login_ends_the_session_before(service: Service, browser: Browser) -> None:
    service.log_in(browser)
    before = browser.cookies[SESSION_COOKIE]
    service.log_in(browser, "bob")
    assert browser.get("/things").json() == "bob"
    stranger = service.browser()
    stranger.set_cookie(SESSION_COOKIE, before)
    assert stranger.get("/things").status_code == 401


def test_session_ends_in_time(service: Service, browser: Browser) -> None:
    service.log_in(browser)
    service.store.now += 8 * 3600 - 1
    assert browser.get("/things").status_code == 200
    service.store.now += 1
    assert browser.get("/things").status_code == 401


def test_unsafe_methods_need_the_csrf_token_of_the_session(service: Service, browser: Browser) -> None:
    other = service.browser()
    service.log_in(browser)
    service.log_in(other, "bob")
    own, others = (each.get("/login/session").json()["csrf_token"] for each in (browser, other))
    assert own != others
    for method in ("POST", "DELETE"):
        assert browser.request(method, "/things", headers={"X-CSRF-Token": own}).status_code == 200
        for wrong in ({}, {"X-CSRF-Token": ""}, {"X-CSRF-Token": others}, {"X-CSRF-Token": own[:-1]}):
            assert browser.request(method, "/things", headers=wrong).status_code == 403
    assert browser.post("/things", data={"csrf_token": own}).status_code == 200
    for wrong in ({"csrf_token": others}, {"a": "b"}):
        assert browser.post("/things", data=wrong).status_code == 403
    assert browser.post("/things", json={"csrf_token": own}).status_code == 403
    assert browser.post("/things", files={"csrf_token": own}).status_code == 403
    assert browser.post("/logout").status_code == 403
    assert browser.get("/things").status_code == 200


def test_changed_policy_holds_for_open_sessions(service: Service, browser: Browser) -> None:
    service.log_in(browser)
    (service.folder / "policy.toml").write_text('[groups."/cms"]\nroles = ["serve"]\n')
    deadline = time.monotonic() + 60
    while browser.get("/login/session").json()["user"]["roles"] != ["serve"]:  # looked at once a second
        assert time.monotonic() < deadline


@pytest.fixture
def lost(tmp_path: Path) -> Iterator[tuple[Service, Browser, str]]:
    """A service whose provider has gone while somebody logs in."""
    need_provider()
    folder = tmp_path / "provider"
    folder.mkdir()
    with oidc_provider(folder) as provider:
        service = _service(provider, tmp_path)
        browser = service.browser()
        callback = service.callback(browser)
    yield service, browser, callback


def test_provider_that_has_gone(lost: tuple[Service, Browser, str], tmp_path: Path) -> None:
    service, browser, callback = lost
    _refused(browser.get(callback), 503)
    fresh = _service(service.oidc, tmp_path).browser()
    _refused(fresh.get("/login"), 503)


@pytest.fixture
def issuer(tmp_path: Path) -> Iterator[Issuer]:
    with misbehaving_issuer(tmp_path) as made:
        made.publish(
            KEY.as_dict(private=False),
            **{
                name: f"{made.url}/{name}" for name in ("authorization_endpoint", "token_endpoint", "userinfo_endpoint")
            },
        )
        yield made


def _answered(issuer: Issuer, folder: Path, userinfo: dict[str, Any] | None = None, **claims: Any) -> Browser:
    """A browser that comes back from an issuer which answers these claims."""
    service = _service(OidcProvider(issuer.url, issuer.ca_file, KEY, folder), folder)
    browser = service.browser()
    query = parse_qs(urlsplit(browser.get("/login").headers["Location"]).query)
    claims = {"aud": "public", "nonce": query["nonce"][0], "client_id": None, "wlcg.groups": None} | claims
    issuer.answers["/token_endpoint"] = as_json({"id_token": issuer.token(**claims), "access_token": "a"})
    if userinfo is not None:
        issuer.answers["/userinfo_endpoint"] = as_json(userinfo)
    browser.get(f"/login/callback?code=c&state={query['state'][0]}")
    return browser


def test_groups_may_come_from_userinfo(issuer: Issuer, tmp_path: Path) -> None:
    browser = _answered(issuer, tmp_path, {"sub": "alice", "groups": ["cms"]})
    assert browser.get("/login/session").json()["user"]["groups"] == ["/cms"]


def test_login_gives_a_person_no_role_of_a_client_or_scope(issuer: Issuer, tmp_path: Path) -> None:
    browser = _answered(
        issuer, tmp_path, {"sub": "robot"}, sub="robot", scope="compute.create", client_id="robot", azp="public"
    )
    assert browser.get("/login/session").json()["user"]["roles"] == []


@pytest.mark.parametrize(
    ("userinfo", "claims"),
    [
        ({"sub": "bob", "groups": ["cms"]}, {}),
        ({"groups": ["cms"]}, {}),
        ({"sub": "alice", "groups": "cms"}, {}),
        (None, {}),
        ({"sub": "alice"}, {"azp": "other"}),
        ({"sub": "alice"}, {"aud": "other"}),
        ({"sub": "alice"}, {"aud": AUDIENCE}),
        ({"sub": "alice"}, {"nonce": None}),
        ({"sub": "alice"}, {"nonce": ["x"]}),
        ({"sub": "alice"}, {"iss": "https://other.test"}),
        ({"sub": "alice"}, {"exp": 1}),
    ],
)
def test_wrong_answer_of_the_provider_begins_no_session(
    userinfo: dict[str, Any] | None, claims: dict[str, Any], issuer: Issuer, tmp_path: Path
) -> None:
    assert _answered(issuer, tmp_path, userinfo, **claims).get("/login/session").status_code == 401
