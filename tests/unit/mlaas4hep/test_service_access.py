"""Who may do what, for every route of the OpenAPI document; and that no request makes the service fail."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from mlaas4hep.service.identity import Role
from tests.unit.mlaas4hep.service_parts import (
    ADMIN,
    ALICE,
    BOB,
    GUEST,
    READER,
    USERS,
    Running,
    ended,
    running,
    submit,
    upload,
)

DOCUMENT = "/api/v1/openapi.json"
OPEN = {("get", "/health"), ("get", "/ready"), ("get", "/metrics")}
FOR_EVERYBODY = {("get", "/api/v1/me")}


@pytest.fixture(scope="module")
def service(tmp_path_factory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("service")) as service:
        yield service


def routes(service: Running) -> list[tuple[str, str, dict[str, Any]]]:
    paths = service.client(None).get(DOCUMENT).json()["paths"]
    return [(method, path, route) for path, methods in paths.items() for method, route in methods.items()]


def ask(client: httpx.Client, method: str, path: str) -> int:
    """The status of a well-formed request about something that is not there."""
    filled = re.sub(r"\{version\}", "1", re.sub(r"\{(?!version)[a-z_]+\}", "nothing", path))
    bodies = {
        ("post", "/api/v1/workspaces"): {"name": "-"},
        ("post", "/api/v1/jobs"): {"workspace": "nothing"},
        ("put", "/api/v1/models/{name}/sharing"): {"groups": []},
        ("put", "/api/v1/models/{name}/default"): {"version": None},
        ("post", "/submit"): dict.fromkeys(("name", "files", "labels", "model", "params"), "nothing"),
    }
    options: dict[str, Any] = {"params": {"process_name": "x_1", "name": "nothing"}}
    if path == "/upload":
        options["files"] = {"other": b""}
    elif (method, path) in bodies:
        options["json"] = bodies[method, path]
    return client.request(method, filled, **options).status_code


def test_every_route_needs_exactly_the_role_that_its_document_names(service: Running):
    found = routes(service)
    assert len(found) > 30
    clients = {user: service.client(user) for user in USERS.values()}
    nobody = service.client(None)
    for method, path, route in found:
        if (method, path) in OPEN:
            continue
        [needed] = [scopes for scheme in route["security"] for scopes in scheme.values()]
        assert needed or (method, path) in FOR_EVERYBODY, f"{method} {path} needs no role"
        assert ask(nobody, method, path) == 401, f"{method} {path}"
        for user, client in clients.items():
            refused = ask(client, method, path) == 403
            assert refused == (not set(needed) <= set(user.roles)), f"{method} {path} {user.subject}"


def test_only_administrators_reach_everybody_s_things(service: Running):
    for method, path, route in routes(service):
        if path.startswith("/api/v1/admin/"):
            assert route["security"] == [{"token": [Role.ADMINISTER]}], f"{method} {path}"


def test_models_are_shared_promoted_and_deleted_by_their_owner_only(service: Running):
    alice, bob, reader = (service.client(user) for user in (ALICE, BOB, READER))
    upload(alice)
    for _ in range(2):
        ended(alice, submit(alice, name="shared")["id"])
    theirs = f"/api/v1/models/{ALICE.key}.shared"
    absent = f"/api/v1/models/{ALICE.key}.nothing"
    assert alice.get("/api/v1/models/shared").json()["versions"] == [1, 2]
    for path in ("", "/versions/1", "/versions/1/bundle"):
        hidden, missing = bob.get(theirs + path), bob.get(absent + path)
        assert hidden.status_code == missing.status_code == 404
        assert hidden.text.replace("shared", "nothing") == missing.text
    assert bob.delete(theirs).status_code == 404
    assert alice.put("/api/v1/models/shared/sharing", json={"groups": ["/atlas"]}).status_code == 403
    assert alice.put("/api/v1/models/shared/sharing", json={"groups": ["/cms/higgs"]}).status_code == 200
    assert [model["name"] for model in bob.get("/api/v1/models").json()["models"]] == [f"{ALICE.key}.shared"]
    assert bob.get(f"{theirs}/versions/1").json()["metrics"] == {"auc": 0.9}
    assert bob.get(f"{theirs}/versions/3").status_code == 404
    assert reader.get(theirs).status_code == 404
    for answer in (
        bob.delete(theirs),
        bob.delete(f"{theirs}/versions/1"),
        bob.put(f"{theirs}/default", json={"version": 1}),
        bob.put(f"{theirs}/sharing", json={"groups": []}),
    ):
        assert answer.status_code == 403
    assert alice.put("/api/v1/models/shared/default", json={"version": 1}).json()["default"] == 1
    assert alice.put("/api/v1/models/shared/default", json={"version": 9}).status_code == 404
    assert alice.delete("/api/v1/models/shared/versions/2").status_code == 204
    assert alice.delete("/api/v1/models/shared").status_code == 204
    assert bob.get("/api/v1/models").json() == {"models": []}


def test_me_says_who_asks_and_what_is_allowed(service: Running):
    me = service.client(GUEST).get("/api/v1/me").json()
    assert (me["subject"], me["roles"], me["key"]) == ("guest", [], GUEST.key)
    assert set(me["quota"]) == {"jobs", "cpus", "memory", "gpus", "disk"}
    assert service.client(ADMIN).get("/api/v1/me").json()["roles"] == ["administer"]


def test_errors_are_problem_documents(service: Running):
    client = service.client()
    for answer in (
        client.get("/api/v1/nothing"),
        client.patch("/api/v1/me"),
        client.post("/api/v1/jobs", content=b"{"),
        client.post("/api/v1/jobs", content=b"[" * 100_000, headers={"Content-Type": "application/json"}),
        service.client(None).get("/api/v1/me"),
    ):
        assert answer.headers["content-type"] == "application/problem+json"
        problem = json.loads(answer.text)
        assert problem["status"] == answer.status_code
        assert problem["title"]
        assert problem["detail"]
        assert 400 <= answer.status_code < 500
    assert service.client(None).get("/api/v1/me").headers["www-authenticate"] == "Bearer"
