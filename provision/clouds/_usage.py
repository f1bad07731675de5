"""How long a server has run, of what Nova notes of every action on it.

A machine that powers itself off is noted, too: Nova finds it off and stops it. A change of size counts from its begin,
if it was confirmed in the end; one that failed or was taken back counts as none.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

from provision.clouds._marks import time_of
from provision.clouds.base import Usage

_HOUR = timedelta(hours=1)
_ENDS = {"stop", "shelve", "shelveOffload", "suspend", "pause", "delete"}
_RELAUNCHES = {"rebuild", "resize", "unshelve"}
"""Actions after which Nova tells of a later launch, as if the server had not run before."""
_BEGINS = {"start", "unshelve", "resume", "unpause", "restore", "rebuild"}


def usage(conn: Any, server: Any, at: datetime) -> Usage:
    """Since when the server runs and for how many hours it has run until `at`."""
    began = time_of(getattr(server, "launched_at", None))
    if began is None:
        return Usage(hours=0.0)
    actions = sorted((when, a.action) for a in conn.compute.server_actions(server) if (when := time_of(a.start_time)))
    if any(action in _RELAUNCHES for _, action in actions):
        began = next((when for when, action in actions if action == "create"), began)
    total = timedelta()
    running: datetime | None = began
    resized = timedelta()
    changes: list[timedelta] = []
    for when, action in actions:
        if action == "resize":
            resized = total + (max(when - running, timedelta()) if running else timedelta())
        elif action == "confirmResize":
            changes.append(resized)
        if action in _ENDS and running is not None:
            total, running = total + max(when - running, timedelta()), None
        elif action in _BEGINS and running is None:
            running = when
    if running is not None and server.status == "ACTIVE":
        total += max(at - running, timedelta())
    else:
        running = None
    former = tuple((end - begin) / _HOUR for begin, end in pairwise([timedelta(), *changes]))
    return Usage(running, total / _HOUR, former)
