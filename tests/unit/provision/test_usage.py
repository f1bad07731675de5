"""Hours, prices, and what a machine tells of itself."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from provision.clouds._usage import usage
from provision.clouds.base import Usage
from provision.errors import UsageError
from provision.record import Record
from provision.spec import PlatformSpec
from provision.usage import _activity, read_prices

LAUNCHED = "2026-05-01T10:00:00.000000"


def at(hour: int) -> datetime:
    return datetime(2026, 5, 1, hour, tzinfo=UTC)


def used(status: str, *actions: tuple[str, str], launched: str | None = LAUNCHED) -> Usage:
    """The usage until 20:00, of what Nova answers (newest first)."""
    told = [SimpleNamespace(action=action, start_time=f"2026-05-01T{when}:00.000000") for action, when in actions]
    compute = SimpleNamespace(server_actions=lambda _: iter(told[::-1]))
    server: Any = SimpleNamespace(launched_at=launched, status=status)
    return usage(SimpleNamespace(compute=compute), server, at(20))


@pytest.mark.parametrize(
    ("found", "since", "hours"),
    [
        (used("ACTIVE", ("create", "09:59")), at(10), 10),
        (used("SHUTOFF", ("create", "09:59"), ("stop", "12:00")), None, 2),
        (used("ACTIVE", ("create", "09:59"), ("stop", "12:00"), ("start", "18:00")), at(18), 4),
        (used("SHUTOFF", ("create", "09:59"), ("stop", "12:00"), ("stop", "13:00")), None, 2),
        (used("ACTIVE", ("create", "09:59"), ("reboot", "11:00")), at(10), 10),
        (used("SHELVED_OFFLOADED", ("create", "09:59"), ("shelve", "11:00"), ("shelveOffload", "11:05")), None, 1),
        (used("ACTIVE", ("create", "08:00"), ("resize", "09:58")), at(8), 12),
        (used("ACTIVE", ("create", "08:00"), ("shelve", "09:00"), ("unshelve", "10:00")), at(10), 11),
        (used("BUILD", launched=None), None, 0),
    ],
)
def test_hours_are_those_in_which_the_machine_ran(found: Usage, since: datetime | None, hours: float):
    assert found == Usage(since, hours)


def test_the_price_is_that_of_the_flavor(tmp_path: Path):
    prices = tmp_path / "prices.toml"
    assert read_prices(prices).cost(record("m1.large"), 10) == ""
    prices.write_text('unit = "EUR"\n[flavors]\n"m1.large" = 0.125\n')
    assert read_prices(prices).cost(record("m1.large"), 10) == "1.25 EUR"
    assert read_prices(prices).cost(record("m1.large"), None) == ""
    assert read_prices(prices).cost(record("m1.small"), 10) == ""


@pytest.mark.parametrize("text", ["unit = ", "unit = 3", "[flavors]\nsmall = 'cheap'", "currency = 'EUR'"])
def test_prices_that_cannot_be_read_are_told(tmp_path: Path, text: str):
    prices = tmp_path / "prices.toml"
    prices.write_text(text)
    with pytest.raises(UsageError, match=r"prices\.toml"):
        read_prices(prices)


@pytest.mark.parametrize("told", [None, [], {"idle_since": "now"}, {"idle_since": -1}, {"idle_since": 2**40}])
def test_what_a_machine_tells_is_not_trusted(told: object):
    assert _activity(told) == ("", None)


def record(flavor: str) -> Record:
    return Record(
        name="one",
        uid="0123456789",
        owner="me",
        toolkit="1",
        spec=PlatformSpec(name="one"),
        facts={"flavor": f"{flavor} (4 CPU)"},
    )
