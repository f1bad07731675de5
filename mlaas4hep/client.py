"""The Python client of a platform's service.

    with Client("https://ml.example.org") as client:
        client.upload("higgs", Path("higgs"))
        job = client.submit("higgs", parameters={"epochs": 5})
        job = client.wait(job["id"])
        client.fetch(job["id"], Path("model"))
        client.predict("higgs", [{"MET_pt": 31.5, "Muon_pt": [20.1, 17.3]}])

Answers are the service's own JSON (its OpenAPI document is at /api/v1/openapi.json).
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from io import BufferedIOBase, BufferedReader
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, cast
from urllib.parse import quote, urlsplit

import httpx

from mlaas4hep.errors import MlaasError, UsageError
from mlaas4hep.service.archive import Bounds, pack, unpack
from mlaas4hep.service.workspaces import size_of

_API = "/api/v1"
_ATTEMPTS = 5
_FIRST_PAUSE = 0.2  # seconds; it doubles
_TIMEOUT = httpx.Timeout(60.0, connect=10.0)
_AGAIN = (429, 502, 503, 504)
_LARGEST_MODEL = Bounds(2**36, 100_000)
_PIECE = 2**20
_RESUMABLE = 8 * 2**20  # bytes from which on an upload is one that can go on
_PART = 32 * 2**20  # bytes of one of its requests
_TUS = {"Tus-Resumable": "1.0.0"}
_RENEWAL = 30  # seconds before its end at which a token is replaced
_LOCAL = ("127.0.0.1", "localhost", "::1")
Json = dict[str, Any]


class Job(Json):
    """A job as the service answers it, which a notebook shows as a table."""

    def _repr_html_(self) -> str:
        from mlaas4hep.display import job_html

        return job_html(self)


class UserToken:
    """The user's token for a service: of MLAAS4HEP_TOKEN, of the file MLAAS4HEP_TOKEN_FILE, or of oidc-agent.

    oidc-agent's account is that of OIDC_ACCOUNT; it is asked for a token whose audience is the service, which an
    INDIGO IAM gives only to who asks, and asked again shortly before the token's end.

    Args:
        service: URL of the service.
    """

    def __init__(self, service: str) -> None:
        parts = urlsplit(service)
        self._audience = f"{parts.scheme}://{parts.netloc}"
        self._of_agent, self._until = "", 0.0

    def __call__(self) -> str:
        """The token. Raises UsageError when there is none."""
        if token := os.environ.get("MLAAS4HEP_TOKEN"):
            return token.strip()
        if file := os.environ.get("MLAAS4HEP_TOKEN_FILE"):
            try:
                return Path(file).read_text(encoding="ascii").strip()
            except (OSError, ValueError) as error:
                raise UsageError(f"The token file {file} cannot be read: {error}.") from error
        if account := os.environ.get("OIDC_ACCOUNT"):
            if time.time() > self._until - _RENEWAL:
                self._of_agent, self._until = _agent_token(account, self._audience)
            return self._of_agent
        raise UsageError(
            "There is no token.",
            "Set MLAAS4HEP_TOKEN_FILE to a file with one, or OIDC_ACCOUNT to oidc-agent's account.",
        )


def _agent_token(account: str, audience: str) -> tuple[str, float]:
    """A token of oidc-agent, and its end in seconds since 1970."""
    try:
        done = subprocess.run(
            ["oidc-token", "--all", f"--aud={audience}", f"--time={_RENEWAL * 2}", "--", account],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UsageError(f"oidc-agent gives no token: {error}.", "Install it, and add the account.") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise UsageError(f"oidc-agent gives no token for {account}: {lines[-1]}.")
    try:
        # token, issuer, end
        token, _, until = done.stdout.split()
        return token, float(until)
    except ValueError:
        raise UsageError(f"What oidc-agent gives for {account} is no token.") from None


class ServiceError(MlaasError):
    """The service has refused a request.

    Attributes:
        status: HTTP status.
    """

    def __init__(self, status: int, message: str, remedy: str = "") -> None:
        super().__init__(message, remedy)
        self.status = status


class Client:
    """Talks to a service; what is repeated after a failure of the network happens once.

    Args:
        url: of the service; by default MLAAS4HEP_URL.
        token: gives the token, and is asked before each request; by default a `UserToken`.
        inference: URL of the inference server, if it has one of its own.

    Raises UsageError without a URL, or for one that would send the token unencrypted.
    """

    def __init__(
        self, url: str = "", token: Callable[[], str] | None = None, inference: str = "", ca_file: str | None = None
    ) -> None:
        url = _checked_url(url or os.environ.get("MLAAS4HEP_URL", ""))
        self._token = token or UserToken(url)
        self._inference = _checked_url(inference) if inference else url
        verify = httpx.create_ssl_context(ca_file) if ca_file else True
        self._http = httpx.Client(base_url=url, timeout=_TIMEOUT, verify=verify)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def me(self) -> Json:
        """Who one is, and what one may do."""
        return self._json("GET", "/me")

    def workspaces(self) -> list[Json]:
        """One's workspaces."""
        return cast(list[Json], self._json("GET", "/workspaces")["workspaces"])

    def upload(self, name: str, source: Path) -> Json:
        """Make a folder, or a tar.gz, the contents of a workspace. Raises UsageError when it cannot be read.

        From 8 MiB on, it goes on where it broke off, also where an earlier call of this kind did.
        """
        path = f"/workspaces/{_part(name)}"
        if source.is_dir():
            if size_of(source) < _RESUMABLE:
                return self._json("PUT", path, body=lambda: pack(source))
            with tempfile.TemporaryFile() as archive:
                for piece in pack(source):
                    archive.write(piece)
                self._resumably(path, "", archive)
        else:
            with _opened(source) as stream:
                if stream.seek(0, os.SEEK_END) < _RESUMABLE:
                    return self._json("PUT", path, body=lambda: _pieces(stream))
                self._resumably(path, "", stream)
        return self._json("GET", path)

    def upload_file(self, name: str, source: Path, path: str = "") -> Json:
        """Put a file into a workspace, by default under its own name; see `upload`."""
        path = path or source.name
        with _opened(source) as stream:
            size = stream.seek(0, os.SEEK_END)
            if size < _RESUMABLE:
                place = f"/workspaces/{_part(name)}/files/{quote(path)}"
                return self._json("PUT", place, body=lambda: _pieces(stream))
            self._resumably(f"/workspaces/{_part(name)}", path, stream)
        return {"path": path, "bytes": size}

    def files(self, name: str) -> list[Json]:
        """The files of a workspace."""
        return cast(list[Json], self._json("GET", f"/workspaces/{_part(name)}/files")["files"])

    def delete_workspace(self, name: str) -> None:
        """Delete a workspace."""
        self._request("DELETE", f"{_API}/workspaces/{_part(name)}")

    def submit(self, workspace: str, **wanted: Any) -> Job:
        """Submit a job.

        Args:
            workspace: where its files are.
            wanted: further fields of the submission: `name`, `files`, `labels`, `model`, `params`, `parameters`,
                `resources`.
        """
        body = json.dumps({"workspace": workspace, **wanted}).encode()
        return Job(self._json("POST", "/jobs", body=lambda: iter([body]), headers=_once()))

    def check(self, workspace: str, **wanted: Any) -> Json:
        """What a submission would train, see `submit`. Raises ServiceError for what the training would refuse."""
        body = json.dumps({"workspace": workspace, **wanted}).encode()
        headers = {"Content-Type": "application/json"}
        # a check changes nothing, so it may be repeated
        answer = self._request("POST", f"{_API}/jobs/check", lambda: iter([body]), headers, again=True)
        return cast(Json, answer.json())

    def resubmit(self, job: str) -> Job:
        """Submit the same inputs again."""
        return Job(self._json("POST", f"/jobs/{_part(job)}/resubmit", headers=_once()))

    def jobs(self) -> Iterator[Job]:
        """One's jobs, the newest first."""
        cursor: str | None = ""
        while cursor is not None:
            page = self._json("GET", f"/jobs?limit=100&cursor={cursor}")
            yield from map(Job, page["jobs"])
            cursor = page["next"]

    def job(self, job: str) -> Job:
        """A job, by its id or its process name (NAME_1)."""
        if re.fullmatch(r"j[0-9a-f]{20}", job):
            return Job(self._json("GET", f"/jobs/{job}"))
        for found in self.jobs():
            if found["process_name"] == job:
                return found
        raise ServiceError(404, f"There is no job {job}.")

    def cancel(self, job: str) -> Job:
        """Ask for the end of a job."""
        return Job(self._json("POST", f"/jobs/{_part(job)}/cancel"))

    def delete_job(self, job: str) -> None:
        """Delete a job that has ended."""
        self._request("DELETE", f"{_API}/jobs/{_part(job)}")

    def wait(self, job: str) -> Job:
        """Wait for the end of a job."""
        for name, data in self._events(f"/jobs/{_part(job)}/progress/stream"):
            if name == "end":
                return Job(data)
        raise MlaasError("The stream has ended before the job.")

    def progress(self, job: str) -> Iterator[Json]:
        """What a job's training tells, until the job has ended."""
        for name, data in self._events(f"/jobs/{_part(job)}/progress/stream"):
            if name != "end":
                yield data

    def log(self, job: str) -> str:
        """What a job has printed."""
        return self._request("GET", f"{_API}/jobs/{_part(job)}/log").text

    def follow_log(self, job: str) -> Iterator[str]:
        """What a job prints, until it has ended."""
        for name, data in self._events(f"/jobs/{_part(job)}/log/stream"):
            if name != "end":
                yield data

    def fetch(self, job: str, folder: Path) -> None:
        """Get the model folder of a finished job. Raises UsageError when something is in its place."""
        self._download(f"{_API}/jobs/{_part(job)}/bundle", folder)

    def report(self, job: str) -> str:
        """The report of a finished job, HTML."""
        return self._request("GET", f"{_API}/jobs/{_part(job)}/report").text

    def models(self) -> list[Json]:
        """The models that one may use."""
        return cast(list[Json], self._json("GET", "/models")["models"])

    def card(self, model: str, version: int) -> Json:
        """What a version of a model is."""
        return self._json("GET", f"/models/{_part(model)}/versions/{version}")

    def fetch_model(self, model: str, version: int, folder: Path) -> None:
        """Get the folder of a model's version."""
        self._download(f"{_API}/models/{_part(model)}/versions/{version}/bundle", folder)

    def share(self, model: str, groups: Sequence[str]) -> Json:
        """Let the members of exactly these groups use a model."""
        return self._json("PUT", f"/models/{_part(model)}/sharing", data={"groups": list(groups)})

    def promote(self, model: str, version: int | None) -> Json:
        """Choose the version that is used when none is named."""
        return self._json("PUT", f"/models/{_part(model)}/default", data={"version": version})

    def delete_model(self, model: str, version: int | None = None) -> None:
        """Delete a version, or the model."""
        inner = "" if version is None else f"/versions/{version}"
        self._request("DELETE", f"{_API}/models/{_part(model)}{inner}")

    def predict(self, model: str, events: Sequence[Json] | Json, version: int | None = None) -> Any:
        """Predict events, as they are in files: a list of them, or columns.

        Args:
            model: one's own by name, or NAMESPACE.NAME.
            events: values by branch.
            version: of the model; by default the one that its owner has chosen.
        """
        inner = "" if version is None else f"/versions/{version}"
        body = json.dumps(events).encode()
        headers = {"Content-Type": "application/json"}
        url = f"{self._inference}/v2/models/{_part(model)}{inner}/events"
        # a prediction changes nothing, so it may be repeated
        return self._request("POST", url, lambda: iter([body]), headers, again=True).json()

    def _json(
        self,
        method: str,
        path: str,
        *,
        body: Callable[[], Iterator[bytes]] | None = None,
        data: Json | None = None,
        headers: dict[str, str] | None = None,
    ) -> Json:
        headers = dict(headers or {})
        if data is not None:
            encoded = json.dumps(data).encode()
            headers["Content-Type"] = "application/json"
            body = partial(iter, [encoded])
        return cast(Json, self._request(method, _API + path, body, headers).json())

    def _request(
        self,
        method: str,
        url: str,
        body: Callable[[], Iterator[bytes]] | None = None,
        headers: dict[str, str] | None = None,
        *,
        again: bool = False,
    ) -> httpx.Response:
        """The answer; what may be repeated is repeated when the network or the service fails."""
        headers = headers or {}
        repeatable = again or method in ("GET", "PUT", "DELETE") or "Idempotency-Key" in headers
        attempts = _ATTEMPTS if repeatable else 1
        for attempt in range(attempts):
            last = attempt == attempts - 1
            try:
                answer = self._http.request(
                    method, url, content=body() if body else None, headers=headers | self._authorization()
                )
            except httpx.TransportError as error:
                if last:
                    raise _unreachable(self._http.base_url, error) from error
            else:
                if last or answer.status_code not in _AGAIN:
                    return _checked(answer)
            time.sleep(_FIRST_PAUSE * 2**attempt)
        raise AssertionError("unreachable")

    def _events(self, path: str) -> Iterator[tuple[str, Any]]:
        """Server-sent events with their names; a broken stream is taken up where it broke."""
        last, failures = "", 0
        while True:
            headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last} if last else {})
            try:
                with self._http.stream("GET", _API + path, headers=headers | self._authorization()) as answer:
                    if not answer.is_success:
                        answer.read()
                        _checked(answer)
                    for event in _parsed(answer.iter_lines()):
                        failures = 0
                        last = event.get("id", last)
                        yield event.get("event", ""), json.loads(event["data"])
                        if event.get("event") == "end":
                            return
            except httpx.TransportError as error:
                failures += 1
                if failures >= _ATTEMPTS:
                    raise _unreachable(self._http.base_url, error) from error
            time.sleep(_FIRST_PAUSE * 2**failures)

    def _resumably(self, workspace: str, path: str, stream: BufferedIOBase) -> None:
        """Upload by tus (see `service.resumable_api`), and go on with what is there already of the same contents."""
        size = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        fingerprint = hashlib.file_digest(stream, "sha256").hexdigest()
        place, offset = self._begun(workspace, path, size, fingerprint)
        failures = 0
        while True:
            headers = {"Content-Type": "application/offset+octet-stream", "Upload-Offset": str(offset)}
            try:
                answer = self._request("PATCH", place, partial(_pieces, stream, offset, _PART), _TUS | headers)
            except MlaasError as error:
                failures += 1
                refused = isinstance(error, ServiceError) and error.status not in (*_AGAIN, 409)
                if refused or failures >= _ATTEMPTS:
                    raise
                time.sleep(_FIRST_PAUSE * 2**failures)
                answer = self._request("HEAD", place, None, _TUS, again=True)
            come = int(answer.headers["Upload-Offset"])
            if answer.status_code == 204 and come == size:
                return
            failures = 0 if come > offset else failures
            offset = come

    def _begun(self, workspace: str, path: str, size: int, fingerprint: str) -> tuple[str, int]:
        """Address and offset of an upload that was begun before, or is now."""
        uploads = f"{_API}{workspace}/uploads"
        told = {"fingerprint": fingerprint} | ({"path": path} if path else {})
        encoded = ",".join(f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in told.items())
        for attempt in range(_ATTEMPTS):
            for found in self._json("GET", f"{workspace}/uploads")["uploads"]:
                if (found["path"], found["bytes"], found["fingerprint"]) == (path, size, fingerprint):
                    return f"{uploads}/{found['id']}", found["offset"]
            try:
                headers = _TUS | {"Upload-Length": str(size), "Upload-Metadata": encoded}
                return self._request("POST", uploads, None, headers).headers["Location"], 0
            except MlaasError as error:
                if isinstance(error, ServiceError) or attempt == _ATTEMPTS - 1:
                    raise
            time.sleep(_FIRST_PAUSE * 2**attempt)
        raise AssertionError("unreachable")

    def _download(self, url: str, folder: Path) -> None:
        if folder.exists():
            raise UsageError(f"{folder} exists.", "Name another folder.")
        try:
            with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder.absolute().parent) as incoming:
                with Path(incoming, "archive").open("w+b") as archive:
                    self._stream_to(url, archive)
                    archive.seek(0)
                    target = Path(incoming, "model")
                    target.mkdir()
                    unpack(archive, target, _LARGEST_MODEL)
                shutil.move(target, folder)
        except OSError as error:
            raise MlaasError(f"{folder} cannot be written: {error.strerror or error}.") from error

    def _stream_to(self, url: str, target: BinaryIO) -> None:
        try:
            with self._http.stream("GET", url, headers=self._authorization()) as answer:
                if not answer.is_success:
                    answer.read()
                _checked(answer)
                for piece in answer.iter_bytes(_PIECE):
                    target.write(piece)
        except httpx.TransportError as error:
            raise _unreachable(self._http.base_url, error) from error

    def _authorization(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._token()}"}


def _checked_url(url: str) -> str:
    if not url:
        raise UsageError("There is no address of a service.", "Set MLAAS4HEP_URL, or give --url.")
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError as error:
        raise UsageError(f"{url} is no address of a service.") from error
    if parts.scheme != "https" and not (parts.scheme == "http" and host in _LOCAL):
        raise UsageError(f"{url} is no safe address: the token would be sent unencrypted.", "Use https://.")
    return url.rstrip("/")


def _checked(answer: httpx.Response) -> httpx.Response:
    if answer.is_success:
        return answer
    try:
        problem = answer.json()
        detail = str(problem.get("detail") or problem.get("error") or "")
        remedy = str(problem.get("remedy", ""))
    except (ValueError, AttributeError):
        detail = remedy = ""
    raise ServiceError(
        answer.status_code, detail or f"The service has answered {answer.status_code} {answer.reason_phrase}.", remedy
    )


def _unreachable(url: httpx.URL, error: Exception) -> MlaasError:
    return MlaasError(f"The service {url} does not answer ({error}).", "Is the address right, and does it run?")


def _part(name: str) -> str:
    """A name as one part of a path."""
    return quote(name, safe="")


def _once() -> dict[str, str]:
    return {"Idempotency-Key": str(uuid.uuid4()), "Content-Type": "application/json"}


@contextmanager
def _opened(source: Path) -> Iterator[BufferedReader]:
    try:
        stream = source.open("rb")
    except OSError as error:
        raise UsageError(f"{source} cannot be read: {error.strerror}.") from error
    with stream:
        yield stream


def _pieces(stream: BufferedIOBase, offset: int = 0, most: int | None = None) -> Iterator[bytes]:
    """What a file has from a byte on."""
    left = math.inf if most is None else most
    try:
        stream.seek(offset)
        while left and (piece := stream.read(int(min(_PIECE, left)))):
            left -= len(piece)
            yield piece
    except OSError as error:
        raise UsageError(f"{getattr(stream, 'name', 'The file')} cannot be read: {error.strerror}.") from error


def _parsed(lines: Iterator[str]) -> Iterator[dict[str, str]]:
    """Server-sent events as the service writes them: each field has one line."""
    event: dict[str, str] = {}
    for line in lines:
        if not line:
            if "data" in event:
                yield event
            event = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(":")
            event[name] = value.removeprefix(" ")
