"""Errors of the toolkit: message, details, remedy and exit status."""

from __future__ import annotations


class ProvisionError(Exception):
    """A failure shown to the user as one or two sentences, never as a traceback.

    Args:
        message: what happened and where.
        remedy: what to do about it.
        details: longer text worth seeing (the end of a log, the cloud's own words).
    """

    exit_code = 1

    def __init__(self, message: str, remedy: str = "", details: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.details = details

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".strip()


class UsageError(ProvisionError):
    """The request itself is wrong: an unknown name, contradictory options, a name that is taken. Exit status 2."""

    exit_code = 2
