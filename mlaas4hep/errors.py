"""Errors of the framework: what happened, where, and what to do, in one or two sentences."""

from __future__ import annotations


class MlaasError(Exception):
    """A failure that the user can understand and mend; shown as one sentence, never as a traceback.

    Args:
        message: what happened and where (file, tree, branch).
        remedy: what to do about it.
    """

    exit_code = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".strip()


class UsageError(MlaasError):
    """The request itself is wrong: an unknown name, a missing file, contradictory options. Exit status 2."""

    exit_code = 2
