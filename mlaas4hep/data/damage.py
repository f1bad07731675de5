"""What is wrong with a file, in one sentence: findings of our own checks, and failures of reading libraries."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from mlaas4hep.errors import MlaasError

GET_AGAIN = "The file is damaged there: get it again, or add the branch to exclude_branches."


class DamageError(ValueError):
    """Something in a file contradicts something else in it."""


@contextmanager
def explained(what: str, remedy: str = "Check the file and where it came from.") -> Iterator[None]:
    """Turn any failure of a reading library into one sentence about `what`.

    A damaged file can make such a library raise whatever there is, RecursionError and MemoryError among it.
    """
    try:
        yield
    except MlaasError:
        raise
    except Exception as error:
        if _beyond_the_end(error):
            raise MlaasError(f"{what} is truncated.", "Get the file again: its end is missing.") from error
        raise MlaasError(f"{what} cannot be read ({reason(error)}).", remedy) from error


def reason(error: BaseException) -> str:
    """The first line of what an exception says, with its class unless it is a finding of ours."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = re.sub(r"[^\x20-\x7e]+", "?", lines[0]).rstrip("?.,: ") if lines else ""
    if _beyond_the_end(error):
        return "the file ends before its data"
    if isinstance(error, DamageError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _beyond_the_end(error: BaseException) -> bool:
    """Whether uproot asked for bytes that the file does not have."""
    return isinstance(error, OSError) and "expected Chunk of length" in str(error)
