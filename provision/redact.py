"""Secrets are registered once and masked wherever the toolkit prints or logs."""

from __future__ import annotations

_MINIMUM_LENGTH = 4
_secrets: set[str] = set()


def register(secret: str | None) -> None:
    """Mask this string from now on. Shorter ones than four characters would mask ordinary words and are left."""
    if secret and len(secret) >= _MINIMUM_LENGTH:
        _secrets.add(secret)


def redact(text: str) -> str:
    """`text` with every registered secret replaced by stars."""
    for secret in sorted(_secrets, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text
