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
from provision.usage import _activity, read_prices, with_former

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


STOPPED, STARTED = ("stop", "12:00"), ("start", "18:00")
RESIZED, KEPT = ("resize", "13:00"), ("confirmResize", "13:10")


@pytest.mark.parametrize(
    ("actions", "launched", "hours", "former"),
    [
        ((("create", "10:00"), RESIZED, KEPT), "13:05", 10, (3,)),
        ((("create", "10:00"), STOPPED, RESIZED, KEPT, STARTED), "13:05", 4, (2,)),
        ((("create", "10:00"), RESIZED, KEPT, ("resize", "19:00"), ("confirmResize", "19:02")), "19:01", 10, (3, 6)),
        ((("create", "10:00"), RESIZED, ("revertResize", "13:20")), "13:25", 10, ()),
        ((("create", "10:00"), ("resize", "11:00"), RESIZED, KEPT), "13:05", 10, (3,)),
        ((("create", "10:00"), RESIZED), "13:05", 10, ()),
    ],
    ids=["kept", "while it was off", "twice", "taken back", "after one that failed", "not confirmed yet"],
)
def test_hours_are_told_apart_by_the_size_that_the_machine_had(
    actions: tuple[tuple[str, str], ...], launched: str, hours: float, former: tuple[float, ...]
):
    found = used("ACTIVE", *actions, launched=f"2026-05-01T{launched}:00.000000")
    assert (found.hours, found.former) == (hours, former)


def test_the_price_is_that_of_the_flavor(tmp_path: Path):
    prices = tmp_path / "prices.toml"
    assert read_prices(prices).cost(record("m1.large"), Usage(hours=10)) == ""
    prices.write_text('unit = "EUR"\n[flavors]\n"m1.large" = 0.125\n')
    assert read_prices(prices).cost(record("m1.large"), Usage(hours=10)) == "1.25 EUR"
    assert read_prices(prices).cost(record("m1.large"), Usage()) == ""
    assert read_prices(prices).cost(record("m1.small"), Usage(hours=10)) == ""


def test_hours_before_a_resize_have_the_price_of_the_flavor_of_that_time(tmp_path: Path):
    prices = tmp_path / "prices.toml"
    prices.write_text('unit = "EUR"\n[flavors]\n"m1.large" = 0.5\n"m1.small" = 0.125\n')
    small = record("m1.small")
    chosen = {"flavor": "m1.large (8 CPU)"}
    large = small.model_copy(update={"facts": with_former(small.facts, chosen)})
    assert read_prices(prices).cost(large, Usage(hours=10, former=(8.0,))) == "2.00 EUR"
    assert with_former(large.facts, chosen) == large.facts
    again = large.model_copy(update={"facts": with_former(large.facts, {"flavor": "m1.small (4 CPU)"})})
    assert read_prices(prices).cost(again, Usage(hours=18, former=(8.0, 2.0))) == "3.00 EUR"


@pytest.mark.parametrize("former", [(), (8.0, 1.0)])
def test_hours_with_flavors_that_nobody_noted_have_no_estimate(former: tuple[float, ...], tmp_path: Path):
    prices = tmp_path / "prices.toml"
    prices.write_text('[flavors]\n"m1.large" = 0.5\n"m1.small" = 0.125\n')
    facts = with_former(record("m1.small").facts, {"flavor": "m1.large (8 CPU)"})
    large = record("m1.large").model_copy(update={"facts": facts})
    assert read_prices(prices).cost(large, Usage(hours=10, former=former)) == ""
    unpriced = record("m1.tiny").facts | with_former(record("m1.tiny").facts, {"flavor": "m1.large (8 CPU)"})
    resized = large.model_copy(update={"facts": unpriced})
    assert read_prices(prices).cost(resized, Usage(hours=10, former=(8.0,))) == ""


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
