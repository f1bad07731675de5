"""Whether new jobs are taken: a file in the service's data folder says that they are not, and until when.

    {"reason": "An update.", "until": 1790000000}

Whoever may write there drains the service; it needs no restart and survives one. `until`, in seconds since 1970, is
optional: an update that is broken off does not keep jobs waiting for ever.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

from mlaas4hep.errors import MlaasError

FILE = "drained.json"
_RETRY_SECONDS = 300
_MOST_BYTES = 4096


@dataclass(frozen=True)
class Drain:
    """No new jobs are taken, and none that waits is started.

    Attributes:
        reason: why, for users.
        until: end of it, in seconds since 1970; None when it is not known.
    """

    reason: str
    until: float | None

    @property
    def retry_after(self) -> int:
        """Seconds after which it is worth to try again."""
        return _RETRY_SECONDS if self.until is None else max(1, math.ceil(self.until - time.time()))


class DrainedError(MlaasError):
    """No new jobs are taken now."""

    def __init__(self, drain: Drain) -> None:
        why = f": {drain.reason.rstrip('.')}" if drain.reason else ""
        super().__init__(f"No new jobs are taken now{why}.", f"Try again in {drain.retry_after} s.")
        self.drain = drain


def drain_of(data: Path) -> Drain | None:
    """What the file in the data folder says, None when jobs are taken.

    A file that cannot be understood drains, too: somebody wanted that.
    """
    try:
        with (data / FILE).open(encoding="utf-8", errors="replace") as stream:
            text = stream.read(_MOST_BYTES)
    except FileNotFoundError:
        return None
    try:
        said = json.loads(text)
        until = said.get("until")
        drain = Drain(str(said.get("reason", "")), None if until is None else float(until))
    except (ValueError, TypeError, AttributeError):
        return Drain("", None)
    return None if drain.until is not None and drain.until <= time.time() else drain
