"""Calls to a cloud that fail passingly are made again, after a look at what the failed ones have done.

The SDK could repeat a request by itself, but it would not look in between: a creation whose answer was lost would be
made twice. So no request is repeated alone; whoever calls says what is to be done the second time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from provision.errors import ProvisionError

API_SECONDS = 60
"""How long a request may take where clouds.yaml does not tell (`api_timeout`)."""
PAUSES = (1.0, 2.0, 5.0, 12.0)
"""Seconds before each further attempt."""
MOST_SECONDS = 60
"""How long a cloud may have us wait (`Retry-After`)."""

_PASSING = {408, 429, 500, 502, 503, 504}
_DOUBTFUL = {400, 409}
"""Answers to what exists already: worth a look when a request before this one may have been done."""

T = TypeVar("T")
_log = logging.getLogger("provision")


def insist(cloud: str, call: Callable[[], T], again: Callable[[], T], pauses: Sequence[float] = PAUSES) -> T:
    """Call; after a passing failure tell of it, wait, and call `again`, at most once for each pause.

    A request that was not answered in time has cost a minute: after the second one there is no further attempt.

    Args:
        cloud: its name, for the sentences.
        call: the first attempt.
        again: what is done after a failure: it has to look first whether the failed attempt has done its work.
        pauses: seconds before each further attempt; the cloud's `Retry-After` lengthens them.

    Raises:
        ProvisionError: the cloud goes on answering with errors, or too late.
        keystoneauth1.exceptions.ClientException, openstack.exceptions.SDKException: it cannot be reached, or what it
            says is for good.
    """
    from keystoneauth1 import exceptions as keystone
    from openstack import exceptions as sdk

    failures = timeouts = 0
    while True:
        try:
            return again() if failures else call()
        except (keystone.ClientException, sdk.SDKException) as error:
            status = _status(error)
            doubtful = failures > 0 and status in _DOUBTFUL
            if not doubtful and status not in _PASSING and not _unanswered(error):
                raise
            timeouts += isinstance(error, keystone.ConnectTimeout)
            if failures == len(pauses) or timeouts == 2:
                if doubtful or (_unanswered(error) and not timeouts):
                    raise
                raise ProvisionError(
                    f"The cloud {cloud!r} {_words(error)}, even when asked again ({failures + 1} attempts).",
                    "Run the same command again when the cloud is well: it goes on where this one ended.",
                    details=str(error)[:400],
                ) from None
            pause = min(max(pauses[failures], _retry_after(error)), MOST_SECONDS)
            failures += 1
            _log.warning("The cloud %r %s; trying again in %g s.", cloud, _words(error), pause)
        time.sleep(pause)


def _status(error: Exception) -> int:
    """The HTTP status that the exception tells of, 0 when there was no answer."""
    return int(getattr(error, "status_code", None) or getattr(error, "http_status", None) or 0)


def _unanswered(error: Exception) -> bool:
    from keystoneauth1 import exceptions as keystone

    return isinstance(error, keystone.RetriableConnectionFailure | keystone.UnknownConnectionError)


def _words(error: Exception) -> str:
    from keystoneauth1 import exceptions as keystone

    if status := _status(error):
        return f"answered {status}"
    if isinstance(error, keystone.ConnectTimeout):
        return "did not answer in time"
    return "broke the connection or refused it"


def _retry_after(error: Exception) -> float:
    """Seconds that the cloud asks to wait for, 0 when it does not (or names a date)."""
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    text = str(headers.get("Retry-After", ""))
    return float(text) if text.isascii() and text.isdigit() else 0.0
