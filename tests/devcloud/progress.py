"""What the user sees while the cloud is built, and waiting."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.devcloud.commands import DevcloudError


@contextmanager
def stage(name: str) -> Iterator[None]:
    """One line a stage, with the seconds it took."""
    begin = time.monotonic()
    print(f"{name:<36}", end="", flush=True)
    try:
        yield
    except BaseException:
        print(f"failed after {time.monotonic() - begin:.1f} s", flush=True)
        raise
    print(f"{time.monotonic() - begin:6.1f} s", flush=True)


def until(what: str, test: Callable[[], bool], log: Path, seconds: float = 90, every: float = 0.3) -> None:
    """Wait until the test holds.

    Raises:
        DevcloudError: it did not hold within so many seconds.
    """
    end = time.monotonic() + seconds
    while not test():
        if time.monotonic() > end:
            raise DevcloudError(f"{what}: not within {seconds:.0f} s", log)
        time.sleep(every)
