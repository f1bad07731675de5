"""The web pages without a browser: who may see what, what is escaped, and the sign-in of a personal platform."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from fastapi.routing import APIRoute
from starlette.applications import Starlette

from mlaas4hep.errors import UsageError
from mlaas4hep.service import inspection
from mlaas4hep.service.app import create_app
from mlaas4hep.service.authentication import LocalAuthenticator, policy_source
from mlaas4hep.service.identity import Role
from mlaas4hep.service.pages import admin, jobs, models, workspaces
from mlaas4hep.service.pages.drawing import bars
from mlaas4hep.service.pages.markdown import as_html
from mlaas4hep.service.pages.messages import LANGUAGES, catalogue, chosen
from tests.pages.packages import STATIC
from tests.serving_parts import collisions, write_tree
from tests.unit.mlaas4hep.service_parts import (
    ADMIN,
    ALICE,
    BOB,
    USERS,
    WORKFLOW,
    Processes,
    Running,
    ended,
    running,
    settings,
    submit,
    upload,
)

TEMPLATES = STATIC.parent / "templates"
HOSTILE = "<img src=x onerror=alert(1)>"
CSRF = re.compile(r'name="csrf_token" value="([^"]+)"')


@pytest.fixture(scope="module")
def service(tmp_path_factory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("service")) as service:
        yield service


def needed(method: str, path: str) -> Role | None:
    """The role that the API asks for the same."""
    if path.startswith(("/ui/workspaces", "/ui/jobs", "/ui/submit")):
        return Role.SUBMIT
    if path.startswith("/ui/models"):
        return Role.SUBMIT if method == "POST" and not path.endswith("/predict") else Role.SERVE
    return Role.ADMINISTER if path.startswith("/ui/admin") else None


def test_every_page_needs_the_role_that_the_api_asks_for_the_same(service: Running):
    clients = {user: service.client(user) for user in USERS.values()}
    asked = 0
    for module in (workspaces, jobs, models, admin):
        for route in module.router.routes:
            assert isinstance(route, APIRoute)
            path = re.sub(r"\{version\}", "1", re.sub(r"\{(?!version)[a-z]+\}", "nothing", route.path))
            [method] = route.methods
            role = needed(method, path)
            assert role is not None, path
            assert service.client(None).request(method, path).status_code == 401, path
            for user, client in clients.items():
                answer = client.request(method, path)
                assert (answer.status_code == 403) == (role not in user.roles), f"{method} {path} {user.subject}"
                assert answer.status_code < 500
                asked += 1
    assert asked > 100


def test_pages_forbid_foreign_and_inline_scripts(service: Running):
    client = service.client()
    upload(client)
    for path in (
        "/",
        "/ui/workspaces",
        "/ui/jobs",
        "/ui/models",
        "/ui/submit?workspace=higgs",
        "/ui/me",
        "/ui/nothing",
    ):
        answer = client.get(path, follow_redirects=True)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert answer.headers["content-type"].startswith("text/html")
        assert not re.search(r"<script(?![^>]* src=)|\son[a-z]+=|\sstyle=|javascript:", answer.text)
        assert not re.search(r'(?:src|href|action)="(?:https?:)?//', answer.text)


def test_no_page_may_be_shown_in_a_frame(service: Running):
    client = service.client()
    for path in ("/login", "/ui/workspaces", "/ui/jobs", "/ui/models", "/ui/submit", "/ui/me", "/ui/nothing"):
        assert "frame-ancestors 'none'" in client.get(path).headers["content-security-policy"], path


def test_names_of_files_are_only_text(service: Running):
    client = service.client()
    upload(
        client, "hostile", {**WORKFLOW, f"{HOSTILE}.root": "no root file", "params.json": json.dumps({"a": HOSTILE})}
    )
    for path in ("/ui/workspaces/hostile", "/ui/submit?workspace=hostile"):
        page = client.get(path).text
        assert "&lt;img src=x" in page
        assert "<img" not in page
    page = client.get("/ui/workspaces/hostile/branches", params={"path": f"{HOSTILE}.root"})
    assert page.status_code == 422
    assert "<img" not in page.text
    assert "is not a ROOT file" in page.text


def test_what_is_somebody_else_s_is_not_there(service: Running):
    alice, bob = service.client(ALICE), service.client(BOB)
    upload(alice, "private")
    key = ended(alice, submit(alice, "private")["id"])["id"]
    assert alice.get(f"/ui/jobs/{key}").status_code == 200
    assert alice.get(f"/ui/jobs/{key}/report").headers["content-security-policy"].startswith("sandbox;")
    for path in (
        "/ui/workspaces/private",
        f"/ui/jobs/{key}",
        f"/ui/jobs/{key}/report",
        f"/ui/models/{ALICE.key}.private",
    ):
        assert bob.get(path).status_code == 404, path
    assert bob.post(f"/ui/jobs/{key}/delete").status_code == 404
    assert service.client(ADMIN).get("/ui/admin").status_code == 200


def test_a_job_s_page_tells_what_it_uses_and_its_place_in_the_queue(service: Running):
    client = service.client()
    upload(client, "using")
    job = ended(client, submit(client, "using")["id"])
    assert (job["used"], job["position"]) == (None, None)
    folder = service.settings.data / "jobs" / job["id"]
    told = {"key": f"{job['id']}-1", "cpu_seconds": 3725.5, "memory": 2**29, "disk": 3 * 2**20}
    (folder / "usage.json").write_text(json.dumps(told))
    assert client.get(f"/api/v1/jobs/{job['id']}").json()["used"]["memory"] == 2**29
    page = client.get(f"/ui/jobs/{job['id']}").text
    assert "1 h 2 min" in page
    assert "512 MiB of 2 GiB" in page
    part = client.get(f"/ui/jobs/{job['id']}/used").text
    assert "3 MiB of 10 GiB" in part
    assert "hx-get" not in part, "what has ended is not asked for again"
    (folder / "usage.json").write_text(json.dumps({**told, "key": f"{job['id']}-2"}))
    assert client.get(f"/api/v1/jobs/{job['id']}").json()["used"] is None


def filled(client: httpx.Client, workspace: str) -> dict[str, str]:
    """The form of a submission as it is shown, with parameters."""
    page = client.get("/ui/submit", params={"workspace": workspace}).text
    form = dict(re.findall(r'<input[^>]* name="([a-z_]+)"[^>]* value="([^"]*)"', page))
    return form | {"parameters": '{"epochs": 3}'}


def test_the_form_is_checked_before_it_is_submitted(bubblewrap: None, service: Running, tmp_path: Path):
    client = service.client()
    content = write_tree(tmp_path / "a.root", collisions(30, 0.0, 1)).read_bytes()
    upload(client, "checked", {**WORKFLOW, "a.root": content, "labels.txt": "trigger\n", "files.txt": "a.root\n"})
    form = filled(client, "checked")
    shown = client.post("/ui/submit", data={**form, "action": "check"}, follow_redirects=False)
    assert shown.status_code == 200
    for text in ("1 of 1 were looked at: 30 entries", "jagged</dt><dd>2: Muon_eta, Muon_pt", "<dd>trigger</dd>"):
        assert text in shown.text
    refused = client.post("/ui/submit", data={**form, "labels": "triger"}, follow_redirects=False)
    assert refused.status_code == 422
    assert "Did you mean trigger?" in refused.text
    assert "Submit without this check" in refused.text
    remote = {**form, "files": "root://eos.example//x.root,", "action": "check"}
    assert "jobs of this service may not reach" in client.post("/ui/submit", data=remote).text
    assert not [job for job in client.get("/api/v1/jobs").json()["jobs"] if job["workspace"] == "checked"]
    done = client.post("/ui/submit", data=form, follow_redirects=False)
    assert done.status_code == 303 and "unseen" not in done.headers["location"]


def test_a_job_is_submitted_once_however_often_the_form_is_sent(bubblewrap: None, service: Running):
    client = service.client()
    upload(client, "twice")
    form = filled(client, "twice") | {"action": "unchecked"}
    first, second = (client.post("/ui/submit", data=form, follow_redirects=False) for _ in range(2))
    assert first.status_code == second.status_code == 303
    assert first.headers["location"] == second.headers["location"]
    for wrong, said in (
        ({"parameters": '{"epochz": 3}'}, "Did you mean epochs?"),
        ({"parameters": "{"}, "no JSON"),
        ({"memory": "much"}, "is no number"),
        ({"cpus": "1.5"}, "valid integer"),
        ({"model": "absent.py"}, "has no file absent.py"),
        ({"name": "../x"}, "is no name"),
    ):
        answer = client.post("/ui/submit", data={**form, "request_key": f"key {wrong}", **wrong})
        assert answer.status_code == 422
        assert said in answer.text, (wrong, answer.text)
        for value in wrong.values():
            assert value.replace('"', "&#34;") in answer.text, "what was written stays in the form"


def test_branches_are_told_with_histograms_by_api_and_page(service: Running, tmp_path: Path):
    client = service.client()
    upload(client, "data")
    content = write_tree(tmp_path / "a.root", collisions(300, 0.0, 1)).read_bytes()
    assert client.put("/api/v1/workspaces/data/files/x/a.root", content=content).status_code == 200
    [tree] = client.get("/api/v1/workspaces/data/branches/x/a.root").json()["trees"]
    assert (tree["name"], tree["entries"], tree["sampled"]) == ("Events", 300, 300)
    found = {branch["name"]: branch["histogram"] for branch in tree["branches"]}
    assert sum(found["MET_pt"]["counts"]) == found["MET_pt"]["values"] == 300
    assert found["Muon_pt"]["values"] > 300
    assert client.get("/ui/workspaces/data/branches", params={"path": "x/a.root"}).text.count("<svg") == len(found)
    assert client.get("/api/v1/workspaces/data/branches/none.root").status_code == 404


def test_a_damaged_file_brings_nothing_down(tmp_path: Path):
    path = write_tree(tmp_path / "a.root", collisions(300, 0.0, 1))
    data = bytearray(path.read_bytes())
    data[len(data) // 3 : len(data) // 2] = b"\xff" * (len(data) // 2 - len(data) // 3)
    path.write_bytes(data)
    try:
        found = inspection.inspect_in_process(path, "a.root")
    except UsageError as error:
        assert str(tmp_path) not in str(error)
    else:
        assert str(tmp_path) not in found.model_dump_json()


def test_histogram_of_values_that_are_not_finite():
    found = inspection.histogram(np.array([1.0, np.nan, np.inf, 1.0]))
    assert (found.values, found.others, sum(found.counts)) == (2, 2, 2)
    assert found.low < 1.0 < found.high
    assert bars(found).count("M") == 1


def test_cards_have_no_markup_of_their_own():
    table = f"| a | b\\|c |\n| --- | --- |\n| {HOSTILE} | 1 |"
    text = f"# Title\n\n{HOSTILE} `{HOSTILE}`\n\n## {HOSTILE}\n\n{table}\n\n- {HOSTILE}\n"
    shown = as_html(text)
    assert "<img" not in shown
    assert "<th>b|c</th>" in shown
    assert shown.count("<code>") == 1
    assert "Title" not in shown


def test_every_sentence_is_in_every_language():
    calls = re.compile(r"\b_\('((?:[^'\\]|\\.)*)'")
    sentences = {text for path in TEMPLATES.glob("*.html") for text in calls.findall(path.read_text())}
    assert len(sentences) > 100
    for language in LANGUAGES:
        if language != "en":
            assert sentences - set(catalogue(language)) == set()
            for text, translation in catalogue(language).items():
                assert sorted(re.findall(r"\{\w+\}", text)) == sorted(re.findall(r"\{\w+\}", translation)), text


@pytest.mark.parametrize(
    ("kept", "header", "language"),
    [
        ("", "", "en"),
        ("", "it-IT,it;q=0.9,en;q=0.8", "it"),
        ("", "de,en;q=0.2,it;q=0.7", "it"),
        ("en", "it", "en"),
        ("xx", "it;q=x,;;,it", "it"),
    ],
)
def test_language_is_the_chosen_one_or_what_the_browser_wishes(kept: str, header: str, language: str):
    assert chosen(kept, header) == language


class Personal:
    """A personal platform on a port of this computer, with its token."""

    def __init__(self, folder: Path) -> None:
        self.settings = settings(folder)
        self.settings.data.mkdir(exist_ok=True)

    def app(self):
        identify = LocalAuthenticator(self.token_file)
        return create_app(
            self.settings, Processes(), identify, policy_source(self.settings.authentication), Starlette()
        )

    @property
    def token_file(self) -> Path:
        token_file = self.settings.authentication.token_file
        assert token_file is not None
        return token_file


def browser(app) -> httpx.Client:
    return httpx.Client(transport=_InThread(app), base_url="http://127.0.0.1:8080")


class _InThread(httpx.BaseTransport):
    """Asks an ASGI application in an event loop of its own."""

    def __init__(self, app) -> None:
        self._transport = httpx.ASGITransport(app)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        async def ask() -> httpx.Response:
            answer = await self._transport.handle_async_request(request)
            content = await answer.aread()
            return httpx.Response(answer.status_code, headers=answer.headers, content=content)

        return asyncio.run(ask())


def test_sign_in_with_the_token_of_a_personal_platform(tmp_path: Path):
    personal = Personal(tmp_path)
    with browser(personal.app()) as client:
        assert client.get("/ui/jobs").headers["location"] == "/login?next=%2Fui%2Fjobs"
        assert client.post("/login", data={"token": "x" * 43}).status_code == 401
        assert client.get("/api/v1/me").status_code == 401
        token = personal.token_file.read_text()
        for page, then in (("/ui/jobs", "/ui/jobs"), ("https://evil.test/", "/")):
            answer = client.post("/login", data={"token": token, "next": page})
            assert (answer.status_code, answer.headers["location"]) == (303, then)
        line = answer.headers["set-cookie"].lower()
        assert line.startswith("mlaas4hep-8080=") and "httponly" in line and "samesite=lax" in line
        assert token.strip() not in line
        assert client.get("/api/v1/me").json()["roles"] == sorted(Role)
        csrf = CSRF.search(client.get("/ui/workspaces").text)
        assert csrf
        assert client.post("/ui/workspaces", data={"name": "a"}).status_code == 403
        assert client.post("/ui/workspaces", data={"name": "a", "csrf_token": "x"}).status_code == 403
        assert client.put("/api/v1/workspaces/a/files/b", content=b"").status_code == 403
        assert client.post("/ui/workspaces", data={"name": "a", "csrf_token": csrf[1]}).status_code == 303
        assert client.put("/api/v1/workspaces/a/files/b", content=b"", headers={"X-CSRF-Token": csrf[1]}).is_success
        cookies = dict(client.cookies)
        assert client.post("/logout", data={"csrf_token": csrf[1]}).status_code == 303
        client.cookies.update(cookies)
        assert client.get("/ui/jobs").status_code == 303


def test_another_token_ends_all_sessions(tmp_path: Path):
    personal = Personal(tmp_path)
    with browser(personal.app()) as client:
        client.post("/login", data={"token": personal.token_file.read_text()})
        assert client.get("/api/v1/me").status_code == 200
        cookies = dict(client.cookies)
    with browser(personal.app()) as client:
        client.cookies.update(cookies)
        assert client.get("/api/v1/me").status_code == 200
    personal.token_file.unlink()
    with browser(personal.app()) as client:
        client.cookies.update(cookies)
        assert client.get("/api/v1/me").status_code == 401


def test_assets_are_kept_by_browsers_and_packed(service: Running):
    page = service.client().get("/ui/jobs").text
    addresses = re.findall(r'(?:src|href)="(/ui/static/[^"]+)"', page)
    assert len(addresses) >= 4
    for address in addresses:
        answer = service.client(None).get(address)
        assert "immutable" in answer.headers["cache-control"]
        assert answer.headers["content-encoding"] == "gzip"
        assert answer.content == (STATIC / address.rpartition("/")[2].partition("?")[0]).read_bytes()
    assert service.client(None).get("/ui/static/none.js").status_code == 404
    assert "immutable" not in service.client(None).get("/ui/static/pages.js?v=1").headers["cache-control"]
