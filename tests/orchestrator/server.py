"""A stand-in for the PaaS orchestrator: its documented REST API over real HTTP on loopback, without any cloud.

It verifies tokens, validates templates with tosca-parser, and takes its time: a deployment moves on
with each look at it. Tests have it fail, forget answers and refuse.
"""

from __future__ import annotations

import http.server
import json
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import RSAKey
from toscaparser.common.exception import TOSCAException
from toscaparser.tosca_template import ToscaTemplate

TASKS = ("NONE", "BROKERING", "DEPLOYER")
KEYS = {"template", "parameters", "callback", "timeoutMins", "providerTimeoutMins", "maxProvidersRetry",
        "keepLastAttempt", "userGroup"}  # fmt: skip
MOST_SIZE = 50
"""Entries of a page, whatever is asked for."""


class Refusal(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers


@dataclass
class Fault:
    """What goes wrong with a request.

    Attributes:
        method, path: of the request, which has to begin like that.
        kind: `before` or `after` the work the connection breaks; `status` answers with one; `body` answers 200 with
            `body`, again and again where `endless`.
        times: how often.
    """

    method: str
    path: str
    kind: str
    status: int = 503
    body: bytes = b"<html>Bad gateway</html>"
    endless: bool = False
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Made:
    """A deployment."""

    uuid: str
    owner: str
    template: str
    parameters: dict[str, Any]
    group: str
    status: str
    looks: int
    fate: str
    reason: str = ""
    log: str = ""
    updates: int = 0

    @property
    def nodes(self) -> list[str]:
        """Names of its nodes."""
        return list(yaml.safe_load(self.template)["topology_template"]["node_templates"])


class StandIn:
    """The stand-in.

    Attributes:
        url: its address.
        made: the deployments that there are.
        requests: method and path of all that was asked.
        tokens: those that were accepted.
        refused: tokens that are not accepted any more.
        trusting: whether any token is accepted.
        looks: how many looks at a deployment see it in progress.
        fates: what becomes of the next changes: `COMPLETE` or `FAILED`, the latter with `reason` and `log`.
        deployed: called with the parameters of a deployment that is complete.
        groups: in which everybody is.
    """

    def __init__(self, key: RSAKey, types: dict[str, Path]) -> None:
        self.key = key
        self.types = {address: str(path) for address, path in types.items()}
        self.url = ""
        self.made: dict[str, Made] = {}
        self.requests: list[tuple[str, str]] = []
        self.tokens: list[str] = []
        self.refused: set[str] = set()
        self.trusting = True
        self.looks = 3
        self.fates: list[str] = []
        self.reason = ""
        self.log = ""
        self.address = "192.0.2.7"
        self.groups = {"cms"}
        self.faults: list[Fault] = []
        self.deployed: Callable[[dict[str, Any]], None] = lambda parameters: None
        self.lock = threading.RLock()

    def fault(self, method: str, path: str, kind: str, **more: Any) -> None:
        """Have something go wrong with the next such request."""
        self.faults.append(Fault(method, path, kind, **more))

    def take_fault(self, method: str, path: str) -> Fault | None:
        """What goes wrong with this request."""
        for fault in self.faults:
            if fault.method == method and path.startswith(fault.path):
                fault.times -= 1
                if not fault.times:
                    self.faults.remove(fault)
                return fault
        return None

    def asked(self, method: str, path: str = "/") -> int:
        """How many requests of that kind there were."""
        return sum(1 for m, p in self.requests if m == method and p.startswith(path))

    def user(self, authorization: str) -> str:
        """Whose token that is."""
        token = authorization.removeprefix("Bearer ")
        try:
            claims = jwt.decode(token, self.key).claims
            jwt.JWTClaimsRegistry(exp={"essential": True}).validate(claims)
        except (JoseError, ValueError):
            raise Refusal(401, "invalid_token: the token cannot be verified") from None
        if token in self.refused or not self.trusting:
            raise Refusal(401, "invalid_token: Token introspection failed: not active")
        self.tokens.append(token)
        return str(claims["sub"])

    # --- what can be asked -------------------------------------------------------------------------------------------

    def answer(self, method: str, path: str, query: dict[str, str], user: str, body: bytes) -> tuple[int, Any]:
        """The answer to a request, as status and JSON (or text)."""
        match method, path.strip("/").split("/"):
            case "GET", ["deployments"]:
                return 200, self._list(query, user)
            case "POST", ["deployments"]:
                return 201, self._told(self._create(self._request(body), user))
            case _, ["deployments", identity, *rest]:
                return self._one(method, identity, rest, query, user, body)
        raise Refusal(404, "Not Found")

    def _one(
        self, method: str, identity: str, rest: list[str], query: dict[str, str], user: str, body: bytes
    ) -> tuple[int, Any]:
        found = self.made.get(identity)
        if found is None:
            raise Refusal(404, f"The deployment <{identity}> doesn't exist")
        if found.owner != user:
            raise Refusal(403, "Deployment of another user")
        match method, rest:
            case "GET", []:
                self._move(found)
                if found.uuid not in self.made:
                    raise Refusal(404, f"The deployment <{identity}> doesn't exist")
                return 200, self._told(found)
            case "GET", ["template"]:
                return 200, found.template
            case "GET", ["log"]:
                return 200, found.log
            case "GET", ["resources"]:
                nodes = [
                    {"uuid": str(uuid.uuid4()), "state": "STARTED", "toscaNodeName": name, "toscaNodeType": "any"}
                    for name in found.nodes
                ]
                return 200, self._page(nodes, query)
            case "PUT", []:
                self._update(found, self._request(body))
                return 202, None
            case "DELETE", []:
                if found.status.startswith("DELETE_") and found.status != "DELETE_FAILED":
                    raise Refusal(409, f"Deployment already in {found.status} state.")
                self._begin(found, "DELETE")
                return 204, None
            case "PATCH", []:
                if json.loads(body) != {"status": "DELETE_FAILED"} or found.status != "DELETE_IN_PROGRESS":
                    raise Refusal(409, "Only a deletion that is in progress can be given up")
                found.status = "DELETE_FAILED"
                return 204, None
        raise Refusal(405, "Method Not Allowed")

    def _list(self, query: dict[str, str], user: str) -> dict[str, Any]:
        found = [self._told(one) for one in self.made.values() if query.get("createdBy") != "me" or one.owner == user]
        return self._page([one for one in found if query.get("userGroup", one["userGroup"]) == one["userGroup"]], query)

    def _page(self, entries: list[Any], query: dict[str, str]) -> dict[str, Any]:
        size, number = min(int(query.get("size", "10")), MOST_SIZE), int(query.get("page", "0"))
        pages = -(-len(entries) // size)
        page = {"size": size, "totalElements": len(entries), "totalPages": pages, "number": number}
        return {"links": [], "content": entries[number * size : (number + 1) * size], "page": page}

    def _request(self, body: bytes) -> dict[str, Any]:
        request = json.loads(body)
        if unknown := sorted(set(request) - KEYS):
            raise Refusal(400, f'Unrecognized field "{unknown[0]}"')
        if not request.get("template"):
            raise Refusal(400, "template: may not be empty")
        if (group := request.get("userGroup")) and group not in self.groups:
            raise Refusal(403, f"User is not a member of the group {group}")
        self._validate(request["template"], request.get("parameters", {}))
        return dict(request)

    def _validate(self, text: str, parameters: dict[str, Any]) -> None:
        document = yaml.safe_load(text)
        inputs = document["topology_template"].get("inputs", {})
        for name, entry in inputs.items():
            if entry.get("required", True) and "default" not in entry and name not in parameters:
                raise Refusal(400, f"Template is invalid: input <{name}> is required but has no value")
        try:
            ToscaTemplate(yaml_dict_tpl=document, parsed_params=parameters, local_defs=self.types)
        except TOSCAException as error:
            raise Refusal(400, f"Template is invalid: {error}") from None

    def _create(self, request: dict[str, Any], user: str) -> Made:
        made = Made(str(uuid.uuid4()), user, request["template"], request.get("parameters", {}),
                    request.get("userGroup", ""), "", 0, "")  # fmt: skip
        self._begin(made, "CREATE")
        self.made[made.uuid] = made
        return made

    def _update(self, found: Made, request: dict[str, Any]) -> None:
        if found.status not in ("CREATE_COMPLETE", "UPDATE_COMPLETE", "UPDATE_FAILED"):
            raise Refusal(409, f"Cannot update a deployment in {found.status} state")
        found.template, found.parameters = request["template"], request.get("parameters", {})
        found.updates += 1
        self._begin(found, "UPDATE")

    def _begin(self, found: Made, what: str) -> None:
        found.status, found.looks, found.reason = f"{what}_IN_PROGRESS", self.looks, ""
        found.fate = self.fates.pop(0) if self.fates else "COMPLETE"

    def _move(self, found: Made) -> None:
        """A look at a deployment is what makes it move on."""
        if not found.status.endswith("_IN_PROGRESS") or found.fate == "STUCK":
            return
        if found.looks:
            found.looks -= 1
            return
        found.status = found.status.replace("IN_PROGRESS", found.fate)
        if found.fate == "FAILED":
            found.reason, found.log = self.reason, self.log
        elif found.status == "DELETE_COMPLETE":
            del self.made[found.uuid]
        else:
            self.deployed(found.parameters)

    def _told(self, found: Made) -> dict[str, Any]:
        outputs = {"node_ip": self.address} if found.status in ("CREATE_COMPLETE", "UPDATE_COMPLETE") else {}
        return {
            "uuid": found.uuid,
            "creationTime": "2026-01-01T10:00+0000",
            "updateTime": f"2026-01-01T10:{found.updates:02}+0000",
            "createdBy": {"issuer": "https://iam.test/", "subject": found.owner},
            "status": found.status,
            "statusReason": found.reason or None,
            "task": TASKS[found.looks % len(TASKS)],
            "outputs": outputs,
            "userGroup": found.group,
            "cloudProviderName": "RECAS-BARI",
            "links": [],
        }


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    stand_in: StandIn

    def log_message(self, format: str, *args: Any) -> None:
        """Stay silent."""

    def _handle(self) -> None:
        parts = urlsplit(self.path)
        path = parts.path.removeprefix("/orchestrator")
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.stand_in.lock:
            self.stand_in.requests.append((self.command, path))
            fault = self.stand_in.take_fault(self.command, path)
            if fault and fault.kind == "before":
                self.close_connection = True
                return
            try:
                user = self.stand_in.user(self.headers.get("Authorization", ""))
                if fault and fault.kind == "status":
                    raise Refusal(fault.status, "The database is away", **fault.headers)
                if fault and fault.kind == "body":
                    self._spoilt(fault)
                    return
                status, told = self.stand_in.answer(self.command, path, query, user, body)
            except Refusal as refusal:
                status = refusal.status
                told = {"code": status, "title": http.HTTPStatus(status).phrase, "message": str(refusal)}
                self._send(status, told, refusal.headers)
                return
        if fault and fault.kind == "after":
            self.close_connection = True
            return
        self._send(status, told, {})

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _handle

    def _send(self, status: int, told: Any, headers: dict[str, str]) -> None:
        raw = b"" if told is None else told.encode() if isinstance(told, str) else json.dumps(told).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def _spoilt(self, fault: Fault) -> None:
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        try:
            self.wfile.write(fault.body)
            while fault.endless:
                self.wfile.write(fault.body)
        except OSError:  # the client has had enough
            return


@contextmanager
def stand_in(key: RSAKey, types: dict[str, Path]) -> Iterator[StandIn]:
    """A running stand-in.

    Args:
        key: with which tokens are signed.
        types: the file behind each address that templates import.
    """
    running = StandIn(key, types)
    handler = type("Bound", (Handler,), {"stand_in": running})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    running.url = f"http://127.0.0.1:{server.server_port}/orchestrator"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield running
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
