"""The REST API of INDIGO's PaaS orchestrator: deployments are submitted, looked at, updated and deleted.

Each request has an access token that oidc-agent gives for it. What may have been done although its answer was lost is
not sent again before a look.
"""

from __future__ import annotations

import json
import logging
import re
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from types import TracebackType
from typing import Annotated, Any, Self, TypeVar
from urllib.parse import urlsplit

import httpx
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from provision.clouds._oidc_agent import access_token
from provision.clouds._retry import MOST_SECONDS, PAUSES
from provision.errors import ProvisionError, UsageError

REQUEST_SECONDS = 60.0
"""How long a request may take, answer and all."""
WAIT_SECONDS = 4 * 3600.0
"""How long the end of what the orchestrator does is waited for."""
FIRST_POLL, LONGEST_POLL = 1.0, 30.0
"""Seconds between two looks; each pause is half as long again as the one before, until something changes."""

ID_PATTERN = r"^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}$"
MARK = "provision_uid"
"""The key of a template's metadata that has the platform's uid: by it a deployment is found whose answer was lost."""

_MOST_BYTES = 8 * 2**20
_MOST_LOG_BYTES = 32 * 2**20
_PAGE, _MOST_PAGES = 100, 100
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_PASSING = (408, 429, 500, 502, 503, 504)
_log = logging.getLogger("provision")

Kind = TypeVar("Kind", bound=BaseModel)


class RefusedError(ProvisionError):
    """The orchestrator has refused a request for good; `status` is that of HTTP."""

    def __init__(self, status: int, message: str, remedy: str = "") -> None:
        super().__init__(message, remedy)
        self.status = status


class PassingError(ProvisionError):
    """No answer, or one that may be another in a minute.

    Attributes:
        undone: whether the request surely has not been done.
        late: whether it was not answered in time.
        retry_after: seconds that the orchestrator asks to wait for.
    """

    def __init__(self, message: str, undone: bool = False, late: bool = False, retry_after: float = 0.0) -> None:
        super().__init__(message, "Run the same command again when it is well: it goes on where this one ended.")
        self.undone = undone
        self.late = late
        self.retry_after = retry_after


def plain(text: str, most: int = 400) -> str:
    """What a server has said, on one line and without characters that steer a terminal."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:most]


def _text(value: object) -> object:
    return "" if value is None else plain(value) if isinstance(value, str) else value


Text = Annotated[str, BeforeValidator(_text)]


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, alias_generator=to_camel, populate_by_name=True)


class Deployment(_Answer):
    """A deployment as the orchestrator tells it; `status_reason` is as it came, and may be long."""

    uuid: Annotated[str, Field(pattern=ID_PATTERN)]
    status: Text = "UNKNOWN"
    status_reason: Annotated[str, BeforeValidator(lambda value: value or "")] = ""
    task: Text = ""
    creation_time: Text = ""
    update_time: Text = ""
    outputs: Annotated[dict[str, Any], BeforeValidator(lambda value: value or {})] = {}
    user_group: Text = ""
    cloud_provider_name: Text = ""

    @property
    def in_progress(self) -> bool:
        """Whether the orchestrator is at work on it, or does not know."""
        return self.status.endswith("_IN_PROGRESS") or self.status == "UNKNOWN"

    @property
    def failed(self) -> bool:
        """Whether its last change has failed."""
        return self.status.endswith("_FAILED")

    @property
    def deleted(self) -> bool:
        """Whether nothing is left of it but its entry."""
        return self.status == "DELETE_COMPLETE"


class Node(_Answer):
    """A resource of a deployment."""

    uuid: Text
    state: Text = ""
    tosca_node_type: Text = ""
    tosca_node_name: Text = ""


class _Page(_Answer):
    size: int = 0
    total_pages: int = 1


class _List(_Answer):
    content: list[dict[str, Any]] = []
    page: _Page = _Page()


@dataclass(frozen=True)
class Order:
    """What is sent for a deployment.

    Attributes:
        template: its text.
        parameters: value of each input that has another than its default.
        group: of users, "" for none.
        minutes: how long the orchestrator may try, 0 for as long as it does by itself.
    """

    template: str
    parameters: dict[str, Any] = field(default_factory=dict)
    group: str = ""
    minutes: int = 0

    def body(self) -> dict[str, Any]:
        """The JSON of a request; the orchestrator refuses keys that it does not know."""
        group = {"userGroup": self.group} if self.group else {}
        minutes = {"timeoutMins": self.minutes} if self.minutes else {}
        return {"template": self.template, "parameters": self.parameters, **group, **minutes}


@cache
def _authorities() -> ssl.SSLContext:
    """The certificate authorities that are trusted, read once: it takes longer than many a request."""
    return httpx.create_ssl_context()


def checked_url(url: str) -> str:
    """The address of an orchestrator, without a slash at its end.

    Raises UsageError where it is none, or would have the token sent unencrypted.
    """
    parts = urlsplit(url)
    good = re.fullmatch(r"https?://[A-Za-z0-9._~:/\[\]-]+", url) and parts.hostname
    if not good:
        raise UsageError(f"{url!r} is no address of an orchestrator.", "Set ORCHENT_URL, or --url https://...")
    if parts.scheme != "https" and parts.hostname not in _LOOPBACK:
        raise UsageError(f"{url} is not encrypted: anybody on the way could take the token.", "Write https://.")
    return url.rstrip("/")


class Orchestrator:
    """One orchestrator, and the account of oidc-agent by which it is asked.

    Raises UsageError for an address that is none, and without an account.
    """

    def __init__(self, url: str, account: str) -> None:
        self.url = checked_url(url)
        if not account:
            raise UsageError(
                "No account of oidc-agent is named.", "Set OIDC_ACCOUNT, or --account; `oidc-add --list` shows them."
            )
        self.account = account
        parts = urlsplit(self.url)
        self.place = parts.netloc
        far = parts.scheme == "https"  # a proxy of the environment is not for this computer itself
        self._http = httpx.Client(timeout=httpx.Timeout(30.0, connect=10.0), verify=_authorities(), trust_env=far)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._http.close()

    # --- what it can be asked ----------------------------------------------------------------------------------------

    def deployments(self, group: str = "", mine: bool = True) -> Iterator[Deployment]:
        """The deployments, of a group of users or of all, by default those that one has made oneself."""
        query = ({"createdBy": "me"} if mine else {}) | ({"userGroup": group} if group else {})
        seen = set()
        for entry in self._pages("/deployments", query):
            found = self._read(Deployment, entry)
            if found.uuid not in seen:  # a new one moves the others to the next page
                seen.add(found.uuid)
                yield found

    def deployment(self, uuid: str) -> Deployment:
        """One deployment; raises RefusedError (404) where there is none."""
        return self._read(Deployment, self._json(f"/deployments/{uuid}"))

    def nodes(self, uuid: str) -> list[Node]:
        """What a deployment consists of."""
        return [self._read(Node, entry) for entry in self._pages(f"/deployments/{uuid}/resources", {})]

    def template(self, uuid: str) -> str:
        """The template of a deployment, as it was sent."""
        return self._ask("GET", f"/deployments/{uuid}/template", accept="text/plain").decode(errors="replace")

    def log(self, uuid: str) -> str:
        """The log of a deployment."""
        raw = self._ask("GET", f"/deployments/{uuid}/log", accept="text/plain", most=_MOST_LOG_BYTES)
        return "".join(c if c.isprintable() or c in "\n\t" else " " for c in raw.decode(errors="replace"))

    def marked(self, uid: str, group: str = "") -> Deployment | None:
        """One's own deployment whose template bears the mark of a platform, or None."""
        mark = re.compile(rf"^ *{MARK}: *['\"]?{re.escape(uid)}['\"]? *$", re.MULTILINE)
        for found in self.deployments(group):
            try:
                if not found.deleted and mark.search(self.template(found.uuid)):
                    return found
            except RefusedError as refused:
                if refused.status != 404:  # it was deleted meanwhile
                    raise
        return None

    # --- what it can be told -----------------------------------------------------------------------------------------

    def submit(self, order: Order, uid: str) -> Deployment:
        """Submit a deployment; the template of `order` bears the mark `uid`.

        Raises:
            RefusedError: the orchestrator takes it for wrong.
            PassingError: it is not known whether it was made; the next command finds it by its mark.
        """
        try:
            raw = self._ask("POST", "/deployments", order.body(), again=False)
            return self._read(Deployment, self._object(raw))
        except PassingError as lost:
            if lost.undone:
                raise
            _log.warning("%s Looking whether the deployment was made.", lost.message)
            for pause in PAUSES:  # it may be at work on the request still
                if found := self.marked(uid, order.group):
                    return found
                time.sleep(pause)
            raise PassingError(
                f"{lost.message} It shows no deployment of that submission, but may make it still."
            ) from None

    def update(self, uuid: str, order: Order) -> None:
        """Have a deployment changed; returns when the orchestrator is at work on it. Raises as `submit` does."""
        before = self.deployment(uuid)
        try:
            self._ask("PUT", f"/deployments/{uuid}", order.body(), again=False)
        except PassingError:
            after = self.deployment(uuid)
            if not after.in_progress and after.update_time == before.update_time:
                raise

    def delete(self, uuid: str) -> None:
        """Have a deployment deleted, which may be gone or on its way already."""
        try:
            self._ask("DELETE", f"/deployments/{uuid}")
        except RefusedError as refused:
            if refused.status != 404 and not (refused.status == 409 and self._being_deleted(uuid)):
                raise

    def _being_deleted(self, uuid: str) -> bool:
        found = self.present(uuid)
        return found is None or found.status == "DELETE_IN_PROGRESS"

    def give_up(self, uuid: str) -> None:
        """Declare a deletion as failed that does not come to its end, so that it can be asked for again."""
        self._ask("PATCH", f"/deployments/{uuid}", {"status": "DELETE_FAILED"})

    def present(self, uuid: str) -> Deployment | None:
        """One deployment, or None where it is gone."""
        try:
            found = self.deployment(uuid)
        except RefusedError as refused:
            if refused.status != 404:
                raise
            return None
        return None if found.deleted else found

    def wait(self, uuid: str, note: Callable[[str], None]) -> Deployment | None:
        """Look until the orchestrator's work on a deployment has ended; None where it is gone then.

        `note` gets the state at each look. Raises ProvisionError where the work does not end in WAIT_SECONDS.
        """
        end, last, pause = time.monotonic() + WAIT_SECONDS, ("", ""), FIRST_POLL
        while (found := self.present(uuid)) and found.in_progress:
            now = (found.status, found.task)
            pause = FIRST_POLL if now != last else min(1.5 * pause, LONGEST_POLL)
            last = now
            note(", ".join(word for word in now if word))
            if time.monotonic() > end:
                raise ProvisionError(
                    f"The deployment {uuid} is {found.status} for more than {WAIT_SECONDS / 3600:.0f} hours.",
                    "The same command again goes on waiting; `provision orchestrator logs` may tell more.",
                )
            time.sleep(pause)
        return found

    def failure(self, found: Deployment) -> ProvisionError:
        """The error of a deployment that has failed, with the cause as reason and log tell it."""
        try:
            log = self.log(found.uuid)
        except ProvisionError:  # it has none yet, or not for us
            log = ""
        return ProvisionError(
            f"The deployment {found.uuid} has failed ({found.status}): {cause_of(found.status_reason, log)}.",
            f"`provision orchestrator logs {found.uuid}` shows all; `provision orchestrator delete` removes it.",
        )

    # --- requests ----------------------------------------------------------------------------------------------------

    def _pages(self, path: str, query: dict[str, str]) -> Iterator[dict[str, Any]]:
        for number in range(_MOST_PAGES):
            found = self._read(_List, self._json(path, {**query, "page": str(number), "size": str(_PAGE)}))
            yield from found.content
            if number + 1 >= found.page.total_pages:
                return
        raise ProvisionError(f"The orchestrator {self.place} has more than {_MOST_PAGES} pages of {path}.")

    def _json(self, path: str, query: dict[str, str] | None = None) -> dict[str, Any]:
        return self._object(self._ask("GET", path, query=query))

    def _object(self, raw: bytes) -> dict[str, Any]:
        try:
            found = json.loads(raw)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise ProvisionError(
                f"What answers at {self.url} is no orchestrator: {plain(raw[:200].decode(errors='replace'), 80)!r}.",
                "Check --url, or ORCHENT_URL; it usually ends with /orchestrator.",
            )
        return found

    def _read(self, kind: type[Kind], entry: dict[str, Any]) -> Kind:
        try:
            return kind.model_validate(entry)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ProvisionError(
                f"The orchestrator {self.place} tells no {where} that can be: {first['msg']}."
            ) from None

    def _ask(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        query: dict[str, str] | None = None,
        accept: str = "application/json",
        most: int = _MOST_BYTES,
        again: bool = True,
    ) -> bytes:
        """Ask, and ask again after a passing failure; with `again` also where the request may have been done."""
        late = 0
        for pause in (*PAUSES, None):
            try:
                return self._ask_authorised(method, path, body, query, accept, most)
            except PassingError as error:
                late += error.late
                if pause is None or late == 2 or not (again or error.undone):
                    raise
                wait = min(max(pause, error.retry_after), MOST_SECONDS)
                _log.warning("%s Trying again in %g s.", error.message, wait)
            time.sleep(wait)
        raise AssertionError("the last attempt returns or raises")

    def _ask_authorised(
        self, method: str, path: str, body: Any, query: dict[str, str] | None, accept: str, most: int
    ) -> bytes:
        """Ask with the agent's token; one that is refused is replaced once by one that is issued now."""
        for new in (False, True):
            try:
                return self._exchange(method, path, body, query, accept, most, access_token(self.account, new).secret)
            except RefusedError as refused:
                if refused.status != 401 or new:
                    raise
        raise AssertionError("the second attempt returns or raises")

    def _exchange(
        self, method: str, path: str, body: Any, query: dict[str, str] | None, accept: str, most: int, token: str
    ) -> bytes:
        """One request and its whole answer."""
        end = time.monotonic() + REQUEST_SECONDS
        headers = {"Authorization": f"Bearer {token}", "Accept": accept, "Accept-Encoding": "identity"}
        content = bytearray()
        try:
            with self._http.stream(method, self.url + path, params=query, json=body, headers=headers) as answer:
                for piece in answer.iter_bytes():
                    content += piece
                    if len(content) > most:
                        raise ProvisionError(
                            f"The orchestrator {self.place} answers {method} {path} with more than {most} bytes."
                        )
                    if time.monotonic() > end:
                        raise httpx.ReadTimeout("the answer has not come to its end")
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise ProvisionError(
                    f"The certificate of the orchestrator {self.place} is not trusted: {plain(str(error))}.",
                    "Name its authority with SSL_CERT_FILE; check this computer's clock.",
                ) from None
            late = isinstance(error, httpx.ConnectTimeout)
            raise PassingError(f"The orchestrator {self.place} cannot be reached.", undone=True, late=late) from None
        except httpx.TimeoutException:
            raise PassingError(f"The orchestrator {self.place} has not answered in time.", late=True) from None
        except httpx.HTTPError as error:
            raise PassingError(
                f"The connection to the orchestrator {self.place} broke: {plain(str(error), 100)}."
            ) from None
        if answer.is_success:
            return bytes(content)
        raise self._refusal(answer, bytes(content), f"{method} {path}")

    def _refusal(self, answer: httpx.Response, content: bytes, request: str) -> ProvisionError:
        status, said = answer.status_code, _said(content) or answer.reason_phrase or "no reason given"
        words = plain(said).rstrip(".")
        if status in _PASSING:
            after = answer.headers.get("Retry-After", "")
            seconds = float(after) if after.isascii() and after.isdigit() else 0.0
            message = f"The orchestrator {self.place} answered {status}: {words}."
            return PassingError(message, undone=status == 429, retry_after=seconds)
        message, remedy = {
            401: (
                f"The orchestrator {self.place} does not accept the token of oidc-agent's account {self.account}",
                "Is it an account of the identity provider that the orchestrator trusts?",
            ),
            403: (f"The orchestrator {self.place} forbids it", "Are you a member of the group that it is for?"),
            404: (f"The orchestrator {self.place} has nothing at {request}", "`provision orchestrator list` shows."),
            409: (f"The orchestrator {self.place} cannot do that now", "`provision orchestrator show` tells why."),
        }.get(status, (f"The orchestrator {self.place} refuses {request} ({status})", ""))
        return RefusedError(status, f"{message}: {words}.", remedy)


def _said(content: bytes) -> str:
    """What an error's JSON has in words, "" where it is none (pages of proxies)."""
    try:
        told = json.loads(content)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(told, dict):
        return ""
    title = told.get("title") or told.get("error") or ""
    message = told.get("message") or told.get("error_description") or ""
    return ": ".join(str(word) for word in (title, message) if word)


_TASK = re.compile(r"TASK \[([^\]\n]{1,200})\]")
_FATAL = re.compile(r"(?:fatal|failed): \[[^\]\n]{1,200}\][^\n]{0,200}?(?:FAILED|UNREACHABLE)! => ([^\n]{0,20000})")
_MESSAGE = re.compile(r'"(?:stderr|msg|reason)": "((?:[^"\\]|\\.){1,2000})"')
_EXCEPTION = re.compile(r"\b(?:[a-z][a-z0-9_]*\.)+[A-Z]\w*(?:Exception|Error): ?")


def cause_of(reason: str, log: str = "") -> str:
    """Why a deployment has failed, in one or two sentences: Ansible's failed task, or how the reason begins."""
    for text in (reason, log):
        fatal = [found for found in _FATAL.finditer(text) if not text.startswith("\n...ignoring", found.end())]
        if fatal and (told := _MESSAGE.search(fatal[-1][1])):
            tasks = _TASK.findall(text[: fatal[-1].start()])
            words = plain(told[1].replace("\\n", " ").replace('\\"', '"'), 300).rstrip(".")
            return f"the task {plain(tasks[-1])!r} failed: {words}" if tasks else words
    lines = [line for line in reason.splitlines() if line.strip() and not line.lstrip().startswith("at ")]
    words = plain(_EXCEPTION.sub("", " ".join(lines[:5])[:2000]), 1000)
    sentences = re.split(r"(?<=[.!?]) ", words)
    return " ".join(sentences[:2])[:400].rstrip(".") or "the orchestrator tells no reason"
