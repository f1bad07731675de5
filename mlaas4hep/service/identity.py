"""Who asks, and what they may do: what authentication hands to everything else."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Protocol


class Role(StrEnum):
    """What a user may do; a policy gives roles to groups and clients."""

    SUBMIT = "submit"  # workspaces, jobs, own models
    SERVE = "serve"  # predictions with models that the user may see
    ADMINISTER = "administer"  # everybody's things


@dataclass(frozen=True)
class User:
    """An authenticated user.

    Attributes:
        issuer: `iss` of the token; `local` for the one user of a personal platform.
        subject: `sub` of the token.
        name: what people call the user; only shown, never compared.
        groups: groups as the issuer writes them (`/cms/higgs`).
        roles: what the policy allows.
        client: `client_id` of a robot's own token, "" for people.
    """

    issuer: str
    subject: str
    name: str = ""
    groups: tuple[str, ...] = ()
    roles: frozenset[Role] = frozenset()
    client: str = ""

    @cached_property
    def key(self) -> str:
        """Names the user in the database, in folders and in names of models: 16 hexadecimal digits after `u`."""
        return "u" + hashlib.sha256(f"{self.issuer}\n{self.subject}".encode()).hexdigest()[:16]


class AuthenticationError(Exception):
    """There is no valid proof of who asks (HTTP 401); the text says why, without anything of the token."""


class NotPermittedError(Exception):
    """The user may not do this (HTTP 403)."""


class Authenticator(Protocol):
    """Finds out who asks; fails closed."""

    async def authenticate(self, authorization: str) -> User:
        """The user of an `Authorization` header ("" without one).

        Raises AuthenticationError.
        """
