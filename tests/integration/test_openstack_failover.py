"""Several clouds in an order: the first that serves is taken, and the plan tells why not the others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from provision.errors import ProvisionError, UsageError
from provision.plan import Plan, plan_among
from provision.record import Home
from provision.spec import make_specs
from tests.conftest import Command
from tests.devcloud.fixtures import TestCloud

# the SDK warns of fields that the answers of older clouds still have
pytestmark = [pytest.mark.cloud, pytest.mark.filterwarnings("ignore::openstack.warnings.RemovedFieldWarning")]

SMALL = {"name": "higgs", "cpus": 1, "memory": "1GB", "disk": "10GB"}


@pytest.fixture
def clouds(openstack_cloud: TestCloud, user_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clouds.yaml with a site that is down, one that lets nobody in, and the real one under two names."""
    entry = yaml.safe_load(Path(openstack_cloud.config).read_text())["clouds"][openstack_cloud.name]
    down = {**entry, "auth": {**entry["auth"], "auth_url": "http://127.0.0.1:9/v3"}}
    secret = next(key for key in ("password", "application_credential_secret") if key in entry["auth"])
    closed = {**entry, "auth": {**entry["auth"], secret: "wr0ng-canary-secret"}}
    wide = {**entry, "regions": [entry["region_name"], "RegionTwo"]}
    del wide["region_name"]
    file = tmp_path / "clouds.yaml"
    names = {"down": down, "closed": closed, "real": entry, "spare": entry, "wide": wide}
    file.write_text(yaml.safe_dump({"clouds": names}))
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(file))
    return file


def planned(cloud: object, **wishes: object) -> Plan:
    return plan_among(make_specs({**SMALL, "cloud": cloud, **wishes}), Home(), bare=True)


def considered(plan: Plan) -> list[tuple[str, str, bool]]:
    return [(c.name, c.verdict, c.chosen) for c in plan.offer.choices if c.kind == "cloud"]


def test_the_first_that_serves_is_taken(clouds: Path, user_home: Path):
    command = Command(user_home, OS_CLIENT_CONFIG_FILE=str(clouds))
    create = ["create", "higgs", "--cloud", "down,closed,real,spare", "--cpus", "1", "--memory", "1", "--disk", "5"]
    plan = json.loads(command(*create, "--dry-run", "--json", "--bare"))
    tried = {c["name"]: (c["verdict"], c["chosen"]) for c in plan["considered"] if c["kind"] == "cloud"}
    assert list(tried) == ["down", "closed", "real", "spare"]
    assert "cannot be reached" in tried["down"][0]
    assert "does not accept the credentials" in tried["closed"][0]
    assert tried["real"] == ("the first that serves", True)
    assert tried["spare"] == ("not asked: real serves", False)
    assert [name for name, (_, chosen) in tried.items() if chosen] == ["real"]
    assert plan["spec"]["cloud"] == "real"
    assert "wr0ng-canary-secret" not in command.logs()


def test_where_none_serves_each_says_why(clouds: Path):
    with pytest.raises(ProvisionError, match="None of the clouds down, real serves") as caught:
        planned(["down", "real"], gpu="H100")
    down, real = caught.value.details.splitlines()
    assert down.startswith("down: ") and "cannot be reached" in down
    assert real.startswith("real: ") and "no flavor" in real
    assert Home().folders() == []


def test_an_unknown_name_is_a_mistake_before_anything_is_asked(clouds: Path):
    with pytest.raises(UsageError, match="no cloud 'reel'"):
        planned("down,reel")


def test_a_creation_goes_on_where_it_began(clouds: Path):
    plan = planned("real")
    assert considered(plan) == []  # one cloud is no choice
    plan.platform.folder.save(plan.record)
    resumed = planned("down,closed,real")
    assert (resumed.resumed, resumed.record.spec.cloud) == (True, "real")
    with pytest.raises(UsageError, match="created with another cloud"):
        planned("closed,spare")


def test_regions_are_alternatives(clouds: Path):
    """The real cloud has nothing in RegionTwo."""
    here = f"wide/{yaml.safe_load(clouds.read_text())['clouds']['real']['region_name']}"
    plan = planned(["wide/RegionTwo", here])
    refused, taken = considered(plan)
    assert refused[0] == "wide/RegionTwo" and "not found" in refused[1]
    assert taken == (here, "the first that serves", True)
    assert plan.record.spec.cloud == here
    assert "export OS_CLOUD=wide\nexport OS_REGION_NAME=" in plan.explain()


@pytest.mark.parametrize("cloud", ["wide/Atlantis", "real/RegionTwo"])
def test_a_region_that_the_entry_does_not_list_is_a_mistake(clouds: Path, cloud: str):
    with pytest.raises(UsageError, match=f"'{cloud}'.*not a valid region"):
        planned(f"{cloud},real")
