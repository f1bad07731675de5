"""A cluster made by one command: on a real OpenStack, and on this computer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import Command, long
from tests.devcloud.fixtures import TestCloud, listing
from tests.e2e.cluster import it_becomes_smaller, it_is_looked_after, torch_wheel, two_workers_train_one_model

_WORKERS = ("--workers", "2", "--cpus", "2", "--memory", "4GB")


@long
@pytest.mark.cloud
def test_two_workers_train_one_model_on_openstack(user_home: Path, openstack_cloud: TestCloud, tmp_path: Path):
    provision = Command(user_home, OS_CLIENT_CONFIG_FILE=str(openstack_cloud.config))
    before = listing(openstack_cloud)
    torch = str(torch_wheel(tmp_path / "wheel"))
    create = ["create", "pair", "--cloud", openstack_cloud.name, *_WORKERS, "--framework", torch, "--yes"]
    try:
        provision(*create)
        again = provision.run(*create)
        assert again.returncode == 0 and "  done " not in again.stderr, again.stderr
        two_workers_train_one_model(provision, "pair", tmp_path)
        it_becomes_smaller(provision, "pair", tmp_path)
    finally:
        provision.run("delete", "pair", "--yes")
    assert listing(openstack_cloud) == before


@long
@pytest.mark.machine
def test_a_cluster_of_this_computer_is_looked_after_and_trains(
    computer_with_machines: None, user_home: Path, tmp_path: Path
):
    provision = Command(user_home)
    torch = str(torch_wheel(tmp_path / "wheel"))
    try:
        provision("create", "pair", "--cloud", "local", *_WORKERS, "--framework", torch, "--yes")
        it_is_looked_after(provision, "pair", tmp_path)
        two_workers_train_one_model(provision, "pair", tmp_path)
        it_becomes_smaller(provision, "pair", tmp_path)
    finally:
        provision.run("delete", "pair", "--yes")
    assert json.loads(provision("list", "--json")) == []
