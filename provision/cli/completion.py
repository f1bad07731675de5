"""What a shell completes beyond commands and options, from this computer's files only."""

from __future__ import annotations


def platform_names(incomplete: str) -> list[str]:
    """Names of the recorded platforms that begin so."""
    from provision.record import Home

    return [folder.name for folder in Home().folders() if folder.name.startswith(incomplete)]
