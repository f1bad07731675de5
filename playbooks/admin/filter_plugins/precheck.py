"""Filters of precheck.yml: what `provision create` asks a machine that exists, and how it judges the answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from provision.clouds._precheck import PROBE, examine


def platform_probe(_: object) -> str:
    """The script for sh that looks at a machine."""
    return PROBE


def platform_findings(output: str, before: float, after: float) -> list[dict[str, Any]]:
    """What the script printed, judged; before and after are the controller's clock around it."""
    host = examine(output, before, after)
    return [
        {"check": check.name, "good": check.good, "words": check.found, "remedy": "" if check.good else check.needed}
        for check in host.checks
    ]


class FilterModule:
    """Gives the filters to Ansible."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """By name."""
        return {"platform_probe": platform_probe, "platform_findings": platform_findings}
