"""Records that are made again from a cloud's marks, and what counts as an orphan."""

from __future__ import annotations

import json
import subprocess
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from provision.adoption import adopt, judge, unrecorded
from provision.clouds._marks import found_platforms, mark, metadata, resource_name, tags
from provision.clouds.base import Found, Platform
from provision.errors import UsageError
from provision.plan import to_remove
from provision.record import Folder, Home, Record, Resource, now
from provision.spec import make_spec

USER = "a" * 64


def platform(**wishes: Any) -> Platform:
    spec = make_spec({"name": "higgs", "cloud": "site", **wishes})
    record = Record(
        name="higgs",
        uid="0123456789",
        owner="mary@laptop",
        toolkit="1.0",
        spec=spec,
        facts={"flavor": "m1.large"},
        values={"mode": "new", "network": "", "words": "x" * 400},
    )
    return Platform(record, Folder(Path("nowhere")))


def conn(user: str = USER, **collections: list[Any]) -> Any:
    """What `found_platforms` asks a connection for."""
    of: dict[str, Any] = dict.fromkeys(("security_groups", "networks", "subnets", "routers", "ips"), list)
    network = SimpleNamespace(**{name: lambda project_id, name=name: collections.get(name, []) for name in of})
    compute = SimpleNamespace(
        servers=lambda details: collections.get("servers", []),
        keypairs=lambda: collections.get("keypairs", []),
        get_keypair=lambda name: SimpleNamespace(name=name, created_at="2026-01-02T00:00:00"),
    )
    return SimpleNamespace(network=network, compute=compute, current_user_id=user, current_project_id="p")


def thing(made: Platform, user: str = USER, at: str = "2026-01-01T00:00:00Z") -> Any:
    return SimpleNamespace(description=mark(made), tags=tags(made, user), created_at=at)


def server(made: Platform, user: str = USER, **more: str) -> Any:
    facts = metadata(made, user) | more
    return SimpleNamespace(name=made.machine_name, metadata=facts, created_at="2026-01-03T00:00:00Z")


def test_marks_fit_into_what_the_services_take() -> None:
    made = platform(ports=tuple(range(2000, 2400)))
    assert all(len(tag) <= 60 and "," not in tag for tag in tags(made, USER))
    assert all(len(name) <= 255 and len(value) <= 255 for name, value in metadata(made, USER).items())


def test_marks_are_read_as_they_were_written() -> None:
    made = platform(cpus=8, gpu="T4:2", ttl="7d", ports=(8888,))
    pair = SimpleNamespace(name=resource_name(made))
    [found] = found_platforms(
        conn(servers=[server(made, provision_host_key="ssh-ed25519 AAAA")], networks=[thing(made)], keypairs=[pair])
    )
    assert (found.name, found.uid, found.owner) == ("higgs", "0123456789", "mary@laptop")
    assert (found.mine, found.machine, found.resources) == (True, True, 3)
    assert found.newest and found.newest.day == 3
    assert found.host_key == "ssh-ed25519 AAAA"
    assert make_spec({**found.wishes["spec"]}) == made.spec
    assert found.wishes["values"] == made.record.values


def test_workers_are_of_their_platform_and_bring_their_host_keys(tmp_path: Path) -> None:
    made = platform(workers=2)
    servers = [server(one, provision_host_key=f"ssh-ed25519 {one.worker}AAA") for one in made.machines]
    [found] = found_platforms(conn(servers=servers[::-1]))
    assert (found.name, found.resources, found.host_key) == ("higgs", 3, "ssh-ed25519 0AAA")
    assert found.worker_keys == {1: "ssh-ed25519 1AAA", 2: "ssh-ed25519 2AAA"}
    home = Home(tmp_path)
    assert adopt(found, "site", home).spec.workers == 2
    known = home.folder("higgs").worker(2).known_hosts.read_text()
    assert known == "provision-higgs-w2-0123456789 ssh-ed25519 2AAA\n"


def test_what_is_of_others_or_bears_no_mark_is_not_ours() -> None:
    made = platform()
    stranger = thing(made, user="b" * 64)
    [found] = found_platforms(conn(networks=[stranger]))
    assert not found.mine
    foreign = SimpleNamespace(description="provision me a network", tags=[], created_at="")
    plain = SimpleNamespace(name="higgs", metadata={}, created_at="")
    named = SimpleNamespace(name="provision-higgs")
    assert found_platforms(conn(networks=[foreign], servers=[plain], keypairs=[named])) == []


def test_a_record_is_made_again(tmp_path: Path) -> None:
    made = platform(cpus=8, ports=(8888,))
    [found] = found_platforms(conn(servers=[server(made, provision_host_key="ssh-ed25519 AAAA x")]))
    home = Home(tmp_path)
    key = tmp_path / "kept"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    record = adopt(found, "site", home, key)
    folder = home.folder("higgs")
    assert folder.load() == record
    assert (record.spec, record.values, record.facts) == (made.spec, made.record.values, made.record.facts)
    assert folder.key.read_bytes() == key.read_bytes()
    assert folder.key.stat().st_mode & 0o077 == 0
    assert folder.key.with_suffix(".pub").read_text().split()[:2] == key.with_suffix(".pub").read_text().split()[:2]
    assert "ssh-ed25519 AAAA" in folder.known_hosts.read_text()
    # it is known now; one of the same name that is another one stays beside it
    cloud: Any = SimpleNamespace(platforms=lambda: [found])
    assert unrecorded(cloud, home) == []
    other = Found("higgs", "9876543210")
    adopt(other, "site", home)
    assert [folder.name for folder in home.folders()] == ["higgs", "higgs-9876543210"]


def test_without_a_ledger_the_last_made_is_removed_first() -> None:
    made = platform()
    kinds = ["key pair", "security group", "network", "subnet", "server", "floating IP"]
    cloud: Any = SimpleNamespace(discover=lambda _: [Resource(kind=kind, id=kind) for kind in kinds])
    assert [resource.kind for resource in to_remove(cloud, made)] == kinds[::-1]


@pytest.mark.parametrize("damage", ["", "[1]", "{", json.dumps({"spec": {"cpus": "all", "shell": "rm"}, "values": 3})])
def test_wishes_that_somebody_damaged_are_left_out(tmp_path: Path, damage: str) -> None:
    made = platform(cpus=8)
    facts = {name: value for name, value in metadata(made, USER).items() if not name.startswith("provision_wishes")}
    broken = SimpleNamespace(name="higgs", metadata=facts | {"provision_wishes_00": damage}, created_at="")
    [found] = found_platforms(conn(servers=[broken]))
    record = adopt(found, "site", Home(tmp_path))
    assert record.spec == make_spec({"name": "higgs", "cloud": "site"})
    assert record.values == {}


def test_a_file_that_is_no_key_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("no key")
    with pytest.raises(UsageError, match="no private key"):
        adopt(Found("higgs", "0123456789"), "site", Home(tmp_path), tmp_path / "key")
    assert not Home(tmp_path).folders()


def test_orphans_are_mine_old_and_without_a_machine() -> None:
    hour = timedelta(hours=1)
    old, young = now() - 2 * hour, now()

    def orphan(with_machines: bool = False, **facts: Any) -> bool:
        return judge([Found("a", "0123456789", **facts)], hour, with_machines)[0].orphan

    assert orphan(mine=True, newest=old)
    assert orphan(mine=True)
    assert not orphan(mine=False, newest=old)
    assert not orphan(mine=True, newest=young)
    assert not orphan(mine=True, newest=old, machine=True)
    assert orphan(with_machines=True, mine=True, newest=old, machine=True)
