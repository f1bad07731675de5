"""Calls that fail passingly, against a real HTTP server that answers what it is told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from keystoneauth1 import exceptions
from keystoneauth1.session import Session

from provision.clouds._retry import insist
from provision.errors import ProvisionError

Answers = list[tuple[int, dict[str, str]]]


class _Server(HTTPServer):
    answers: Answers


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        status, headers = self.server.answers.pop(0)
        self.send_response(status)
        for name, value in {"Content-Length": "0", **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def asked() -> Iterator[tuple[Callable[[], int], Answers]]:
    """A request of keystoneauth to a server of the test's own, and the answers that are still to be given."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.answers = []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    session = Session(timeout=10)
    url = f"http://127.0.0.1:{server.server_port}/"
    yield lambda: int(session.get(url, authenticated=False).status_code), server.answers
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_failure_that_passes_is_told_and_the_second_way_is_taken(asked, caplog: pytest.LogCaptureFixture):
    ask, answers = asked
    answers += [(503, {}), (500, {}), (200, {})]
    assert insist("site", ask, lambda: ask() + 1000, pauses=(0, 0)) == 1200
    assert caplog.messages == [
        "The cloud 'site' answered 503; trying again in 0 s.",
        "The cloud 'site' answered 500; trying again in 0 s.",
    ]


def test_the_cloud_says_how_long_to_wait(asked, caplog: pytest.LogCaptureFixture):
    ask, answers = asked
    answers += [(429, {"Retry-After": "1"}), (503, {"Retry-After": "Thu, 01 Jan 1970 00:00:00 GMT"}), (200, {})]
    assert insist("site", ask, ask, pauses=(0, 0)) == 200
    assert [message.rpartition(" in ")[2] for message in caplog.messages] == ["1 s.", "0 s."]


def test_what_lasts_ends_in_a_sentence_and_a_remedy(asked, caplog: pytest.LogCaptureFixture):
    ask, answers = asked
    answers += [(502, {})] * 3
    with pytest.raises(
        ProvisionError, match=r"The cloud 'site' answered 502, even when asked again \(3 attempts\)"
    ) as told:
        insist("site", ask, ask, pauses=(0, 0))
    assert "Run the same command again" in told.value.remedy
    assert answers == []


def test_what_is_for_good_is_not_tried_again(asked, caplog: pytest.LogCaptureFixture):
    ask, answers = asked
    answers += [(409, {}), (200, {})]
    with pytest.raises(exceptions.Conflict):
        insist("site", ask, ask, pauses=(0, 0))
    assert caplog.messages == []
    # after a failure that passed, a conflict may be with what that request has made
    answers[:] = [(503, {}), (409, {}), (200, {})]
    assert insist("site", ask, ask, pauses=(0, 0)) == 200


def test_a_conflict_that_stays_is_told_as_the_cloud_tells_it(asked):
    ask, answers = asked
    answers += [(503, {}), (409, {}), (409, {})]
    with pytest.raises(exceptions.Conflict):
        insist("site", ask, ask, pauses=(0, 0))
