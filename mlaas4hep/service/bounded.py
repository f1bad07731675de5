"""Questions on users' files, each answered by a process of its own with bounded memory and time.

Such files can bring the libraries down that read them, or keep them busy for ever.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from typing import IO, Any, cast

from pydantic import BaseModel

from mlaas4hep.errors import MlaasError

# numba takes seconds to load, and writes what it compiles
ENVIRONMENT = {"MLAAS4HEP_KERNELS": "numpy"}
_MEMORY = 4 * 2**30  # address space
_SECONDS = 30
_LARGEST_ANSWER = 8 * 2**20
_SLOTS = threading.BoundedSemaphore(2)  # of each process of the service


class NoAnswerError(Exception):
    """The process has died, or was ended for its memory, its time or the size of its answer."""


def ask(words: Sequence[str], told: bytes = b"") -> dict[str, Any]:
    """What a process tells with `answer`.

    Args:
        words: its command.
        told: its standard input.

    Returns the object that it found, or `error` and `remedy` in its place.
    Raises NoAnswerError, and MlaasError when too many ask at once.
    """
    if not _SLOTS.acquire(timeout=_SECONDS):
        raise MlaasError("Too many files are being looked at now.", "Try again later.")
    try:
        said = _said(words, told)
    finally:
        _SLOTS.release()
    try:
        found = json.loads(said)
    except ValueError as error:
        raise NoAnswerError from error
    return cast("dict[str, Any]", found)


def _said(words: Sequence[str], told: bytes) -> bytes:
    """What a process writes, cut off where it is too much or too late."""
    with tempfile.TemporaryFile() as given:
        given.write(told)
        given.seek(0)
        process = subprocess.Popen(
            words, stdin=given, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=ENVIRONMENT, cwd="/"
        )
    timer = threading.Timer(2 * _SECONDS, process.kill)
    timer.start()
    try:
        return cast("IO[bytes]", process.stdout).read(_LARGEST_ANSWER)
    finally:
        timer.cancel()
        process.kill()
        process.communicate()


def answer(find: Callable[[], BaseModel], writes: int = 0) -> None:
    """In the process: limit it, find the answer and tell it.

    Args:
        find: gives the answer, or raises MlaasError.
        writes: bytes that each file may have that it writes.
    """
    for limit, value in (
        (resource.RLIMIT_AS, _MEMORY),
        (resource.RLIMIT_CPU, _SECONDS),
        (resource.RLIMIT_FSIZE, writes),
    ):
        resource.setrlimit(limit, (value, value))
    try:
        text = find().model_dump_json()
    except MlaasError as error:
        text = json.dumps({"error": error.message, "remedy": error.remedy})
    sys.stdout.write(text)
