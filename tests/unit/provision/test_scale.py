"""A cluster's number of workers: what is refused, what quotas are asked for, and that a kill is made good."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from provision.clouds._choosing import Choosing
from provision.clouds.base import Offer, Platform
from provision.clouds.existing import ExistingHost
from provision.errors import ProvisionError, UsageError
from provision.plan import ensure_unchanging
from provision.record import Home, Record, Resource
from provision.remote import Access, write_ssh_config
from provision.scale import Scale, plan_scale
from provision.spec import make_spec
from tests.conftest import Silent


class _Cloud(ExistingHost):
    """Has whatever workers it is told of, and fails at removing those that are in `stuck`."""

    kind = "model"

    def __init__(self, home: Home, servers: set[str]) -> None:
        super().__init__("ssh:ada@higgs.example.org", home)
        self.servers, self.stuck = servers, set[str]()

    def check_workers(self, platform: Platform, spec: Any) -> Offer:
        return Offer(facts={"worker flavor": "small"}, values={"worker_flavor": "small"})

    def discover(self, platform: Platform) -> list[Resource]:
        mine = {platform.machine_name} & self.servers if platform.worker else self.servers
        return [Resource(kind="server", id=name) for name in sorted(mine)]

    def remove(self, platform: Platform, resource: Resource) -> None:
        if resource.id in self.stuck:
            raise ProvisionError("The cloud is away.")
        self.servers.discard(resource.id)


def cluster(tmp_path: Path, workers: int) -> tuple[_Cloud, Record, Any]:
    """A bare platform with its workers on the model."""
    home = Home(tmp_path)
    spec = make_spec({"name": "higgs", "cloud": "site", "workers": workers})
    record = Record(name="higgs", uid="0123456789", owner="o", toolkit="0", spec=spec, state="bare")
    folder = home.folder("higgs")
    folder.save(record)
    names = {machine.machine_name for machine in Platform(record, folder).machines}
    for number in range(1, workers + 1):
        folder.worker(number).path.mkdir(parents=True)
        record.note(f"worker-{number}", "done", Resource(kind="server", id=f"higgs-w{number}"))
    return _Cloud(home, names), record, folder


def plan(cloud: _Cloud, record: Record, folder: Any, workers: int | None) -> Scale:
    return plan_scale(cloud, record, folder, folder.path, workers)


@pytest.mark.parametrize(
    ("workers", "words"), [(None, "No number"), (0, "1 to 32 workers"), (33, "1 to 32"), (3, "has 3 workers already")]
)
def test_a_number_that_cannot_be_is_refused(tmp_path: Path, workers: int | None, words: str):
    with pytest.raises(UsageError, match=words):
        plan(*cluster(tmp_path, 3), workers)


def test_workers_that_go_are_gone_and_what_a_failure_left_the_same_command_ends(tmp_path: Path):
    cloud, record, folder = cluster(tmp_path, 3)
    cloud.stuck = {"higgs-w2"}
    with pytest.raises(ProvisionError, match="away"):
        plan(cloud, record, folder, 1).execute(Silent())
    record = folder.load()
    assert (cloud.servers, record.spec.workers) == ({"higgs", "higgs-w1", "higgs-w2"}, 3)
    with pytest.raises(UsageError, match="A scale of the platform higgs is unfinished"):
        ensure_unchanging(record)
    with pytest.raises(UsageError, match="to 1 workers is unfinished"):
        plan(cloud, record, folder, 2)
    cloud.stuck = set()
    plan(cloud, record, folder, None).execute(Silent())
    record = folder.load()
    assert (cloud.servers, record.spec.workers, record.unfinished) == ({"higgs", "higgs-w1"}, 1, "")
    assert [path.name for path in folder.workers.iterdir()] == ["higgs-w1"]
    assert [entry.state for entry in record.ledger if entry.step.startswith("worker-")] == [
        "done",
        "removed",
        "removed",
    ]


def test_after_a_kill_behind_the_record_the_workers_still_go(tmp_path: Path):
    cloud, record, folder = cluster(tmp_path, 2)
    first = plan(cloud, record, folder, 1)
    first.begin("scale", "workers", "1", former="2")
    first.keep()
    again = plan(cloud, folder.load(), folder, None)
    assert again.resumed and again.fewer
    again.execute(Silent())
    assert cloud.servers == {"higgs", "higgs-w1"}


def test_the_quota_is_that_of_the_workers_that_come():
    compute = SimpleNamespace(instances=4, instances_used=2, total_cores=8, total_cores_used=2)
    compute.total_ram, compute.total_ram_used = -1, 0
    small = SimpleNamespace(id="s", name="small", vcpus=1, ram=1024, disk=10, extra_specs={})
    names = ("security_groups", "floating_ips", "networks", "subnets", "routers", "ports")
    conn = SimpleNamespace(
        current_project_id="p",
        compute=SimpleNamespace(flavors=lambda **_: [small], get_limits=lambda: SimpleNamespace(absolute=compute)),
        network=SimpleNamespace(get_quota=lambda *_, **__: SimpleNamespace(**dict.fromkeys(names))),
    )
    spec = make_spec({"name": "higgs", "cloud": "site", "workers": 1})
    record = Record(name="higgs", uid="0123456789", owner="o", toolkit="0", spec=spec, values={"flavor": "s"})
    here, choosing = Platform(record, Home(Path("nowhere")).folder("higgs")), Choosing("site", lambda: conn)
    offer = choosing.workers(here, spec.model_copy(update={"workers": 3}))
    assert {quota.name: quota.needed for quota in offer.quotas} == {"servers": 2, "CPUs": 2, "memory": 2048, "ports": 2}
    assert offer.values == {"worker_flavor": "s"}
    with pytest.raises(ProvisionError, match="servers 2 of 4 used and 3 more needed"):
        choosing.workers(here, spec.model_copy(update={"workers": 4}))


def test_a_worker_is_reached_through_the_platforms_own_machine(tmp_path: Path):
    _, record, folder = cluster(tmp_path, 1)
    write_ssh_config(folder, record.uid, Access(host="192.0.2.1", user="u"))
    write_ssh_config(folder.worker(1), record.uid, Access(host="10.0.0.2", user="u"), gateway=folder)
    own, worker = folder.ssh_config.read_text(), folder.worker(1).ssh_config.read_text()
    assert own.startswith(f"Include {folder.workers}/*/ssh_config\nHost higgs\n")
    assert f"ProxyCommand ssh -F {folder.ssh_config} -o BatchMode=yes -o ConnectTimeout=15 -W [%h]:%p higgs\n" in worker
    assert f"IdentityFile {folder.key}\n" in worker and "HostKeyAlias provision-higgs-w1-0123456789" in worker
