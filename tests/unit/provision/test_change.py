"""What a machine can become: flavors for one that is there, marks that change, and changes that are unfinished."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from provision.clouds._choosing import Choosing
from provision.clouds._glance import DIGEST
from provision.clouds._marks import changed_metadata, metadata
from provision.clouds.base import Offer, Platform
from provision.clouds.existing import ExistingHost
from provision.configure import image_digest
from provision.errors import ProvisionError, UsageError
from provision.framework import find_framework
from provision.plan import ensure_unchanging
from provision.rebuild import plan_rebuild
from provision.record import Folder, Home, Record, Resource
from provision.resize import _wishes, plan_resize
from provision.spec import make_spec

FLAVORS = {"small": (1, 1024, 10), "tall": (1, 4096, 5), "medium": (2, 4096, 20), "large": (8, 16384, 40)}


def flavor(name: str) -> Any:
    cpus, ram, disk = FLAVORS[name]
    return SimpleNamespace(id=f"id-{name}", name=name, vcpus=cpus, ram=ram, disk=disk, extra_specs={})


def choosing(cores: int) -> Choosing:
    """Of a cloud with those flavors and a quota of cores, of which the server uses one."""
    limits = SimpleNamespace(instances=5, instances_used=1, total_ram=-1, total_ram_used=1024)
    limits.total_cores, limits.total_cores_used = cores, 1
    conn = SimpleNamespace(current_project_id="project")
    conn.compute = SimpleNamespace(
        flavors=lambda **_: [flavor(name) for name in FLAVORS], get_limits=lambda: SimpleNamespace(absolute=limits)
    )
    conn.network = SimpleNamespace(
        get_quota=lambda *_, **__: SimpleNamespace(
            security_groups=None, floating_ips=None, networks=None, subnets=None, routers=None, ports=None
        )
    )
    return Choosing("site", lambda: conn)


def server(told: str) -> Any:
    """A server with the flavor `small`; older clouds tell its id, newer ones its name."""
    return SimpleNamespace(name="higgs", image=None, flavor=SimpleNamespace(id=told, name=told))


@pytest.mark.parametrize("told", ["id-small", "small"])
def test_the_flavor_has_no_smaller_disk_and_the_quota_is_of_the_difference(told: str):
    offer = choosing(cores=2).size(make_spec({"name": "higgs", "cpus": 1, "memory": 2, "disk": 1}), server(told))
    assert offer.values == {"flavor": "id-medium"}
    verdicts = {choice.name: choice.verdict for choice in offer.choices}
    assert "a disk cannot shrink" in verdicts["tall"] and "over the quota of CPUs" not in verdicts["medium"]
    assert {quota.name: (quota.used, quota.needed) for quota in offer.quotas} == {
        "CPUs": (1, 1),
        "memory": (1024, 3072),
    }


def test_a_size_that_the_cloud_cannot_give_is_refused_with_what_there_is():
    with pytest.raises(ProvisionError, match=r"no flavor for higgs with 4 CPU.*large .*over the quota of CPUs"):
        choosing(cores=2).size(make_spec({"name": "higgs", "cpus": 4}), server("small"))


def image(name: str, **more: Any) -> Any:
    told = {"min_disk": 2, "min_ram": 512, "owner": "project", "properties": {}, **more}
    return SimpleNamespace(id=f"id-{name}", name=name, os_distro="debian", os_version="12", created_at="2026", **told)


@pytest.mark.parametrize(
    ("least", "digest", "values"),
    [
        (10, "d1", {"image": "id-baked", "baked": "baked"}),
        (10, "d2", {"image": "id-plain", "baked": ""}),
        (10, "", {"image": "id-plain", "baked": ""}),
        (20, "d1", {"image": "id-plain", "baked": ""}),  # the server's disk is too small for it
    ],
)
def test_a_system_is_made_anew_of_the_image_that_a_creation_would_take(least: int, digest: str, values: dict[str, str]):
    choice = choosing(cores=2)
    images = [image("plain"), image("baked", min_disk=least, properties={DIGEST: "d1"})]
    choice.conn.image = SimpleNamespace(images=lambda **_: images)
    offer = choice.system(make_spec({"name": "higgs"}), server("small"), digest)
    assert offer.values == values
    assert offer.facts["image"].endswith(", baked)") == bool(values["baked"])


def platform(tmp_path: Path, **wishes: object) -> Platform:
    record = Record(name="higgs", uid="0123456789", owner="o", toolkit="0", spec=make_spec({"name": "higgs", **wishes}))
    record.state = "ready"
    return Platform(record, Folder(tmp_path / "higgs"))


def test_pieces_of_wishes_that_are_no_more_become_empty(tmp_path: Path):
    before = metadata(platform(tmp_path, image="i" * 300), "user")
    after = before | changed_metadata(platform(tmp_path), "user", before)
    assert "provision_wishes_01" in before and after["provision_wishes_01"] == ""
    text = "".join(after[key] for key in sorted(after) if key.startswith("provision_wishes_"))
    assert "image" not in json.loads(text)["spec"]


def test_a_host_that_was_there_before_is_not_changed(tmp_path: Path, wheel: Path):
    here = platform(tmp_path, mlaas4hep=str(wheel))
    host = ExistingHost("ssh:ada@higgs.example.org", Home(tmp_path))
    with pytest.raises(UsageError, match="not made by the toolkit"):
        plan_resize(host, here.record, here.folder, tmp_path, {"cpus": 4})
    with pytest.raises(UsageError, match="not made by the toolkit"):
        plan_rebuild(host, here.record, here.folder, tmp_path, None)


class _Cloud(ExistingHost):
    """Offers whatever is asked for, and says whether a resize is under way."""

    under_way = False

    def check_size(self, platform: Platform, spec: Any) -> Offer:
        return Offer(facts={"flavor": f"{spec.cpus} CPU"}, values={"flavor": str(spec.cpus)})

    def check_image(self, platform: Platform, spec: Any, *, baked: str = "") -> Offer:
        return Offer(facts={"image": str(spec.image)}, values={"baked": baked})

    def resizing(self, platform: Platform) -> bool:
        return self.under_way


def test_an_unfinished_change_is_ended_before_another_begins(tmp_path: Path):
    here, cloud = platform(tmp_path), _Cloud("ssh:ada@higgs.example.org", Home(tmp_path))
    record, folder = here.record, here.folder

    def resized(**changes: object) -> Any:
        return plan_resize(cloud, record, folder, tmp_path, changes)

    with pytest.raises(UsageError, match="No size was named"):
        resized()
    first = resized(cpus=4)
    first.begin("resize", "size", _wishes(first.spec))
    assert resized().resumed and resized().spec.cpus == 4
    assert resized(cpus=4).resumed and not resized(cpus=8).resumed
    cloud.under_way = True
    with pytest.raises(UsageError, match="Another resize of higgs is unfinished"):
        resized(cpus=8)
    with pytest.raises(UsageError, match="A resize of the platform higgs is unfinished"):
        plan_rebuild(cloud, record, folder, tmp_path, None)
    with pytest.raises(UsageError, match="provision resize higgs"):
        ensure_unchanging(record)
    record.note("resize", "done")
    with pytest.raises(UsageError, match="No size was named"):
        resized()
    record.state = "creating"
    record.note("rebuild", "intended", Resource(kind="system", id="a", details=_begun("other")))
    assert plan_rebuild(cloud, record, folder, tmp_path, "other").resumed
    with pytest.raises(UsageError, match="on another image is unfinished"):
        plan_rebuild(cloud, record, folder, tmp_path, "third")


def _begun(image: str) -> dict[str, str]:
    return {"wishes": image, "facts": "{}", "values": "{}", "roles": "no", "former": ""}


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """In place of one that would have to be built."""
    made = tmp_path / "mlaas4hep-0.1-py3-none-any.whl"
    made.touch()
    return made


def test_a_rebuild_asks_for_an_image_that_was_baked_for_such_a_platform(tmp_path: Path, wheel: Path):
    cloud = _Cloud("ssh:ada@higgs.example.org", Home(tmp_path))
    here = platform(tmp_path, mlaas4hep=str(wheel))
    plan = plan_rebuild(cloud, here.record, here.folder, tmp_path, None)
    assert plan.offer.values["baked"] == image_digest(here.spec, find_framework(str(wheel), tmp_path))
    assert "only what is the machine's own" in plan.steps(lambda _: None)[-1].title
    here.record.state = "bare"
    assert plan_rebuild(cloud, here.record, here.folder, tmp_path, None).offer.values["baked"] == ""


def test_only_what_is_named_changes_and_a_gpu_brings_its_roles(tmp_path: Path, wheel: Path):
    cloud = _Cloud("ssh:ada@higgs.example.org", Home(tmp_path))
    here = platform(tmp_path, cpus=2, memory="8GB", mlaas4hep=str(wheel))
    plain = plan_resize(cloud, here.record, here.folder, tmp_path, {"cpus": 4})
    assert (plain.spec.cpus, plain.spec.memory, plain.roles) == (4, 8.0, False)
    fast = plan_resize(cloud, here.record, here.folder, tmp_path, {"gpu": "T4:2"})
    assert fast.spec.gpu and fast.spec.gpu.count == 2 and fast.roles
    here.record.spec = fast.spec
    slow = plan_resize(cloud, here.record, here.folder, tmp_path, {"gpu": "none"})
    assert slow.spec.gpu is None and slow.roles
