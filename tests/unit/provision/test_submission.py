"""A template that is submitted means the spec that it was rendered of, with what somebody has chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from provision import __version__
from provision.configure import platform_variables
from provision.errors import UsageError
from provision.framework import Framework
from provision.plan import plan_among
from provision.record import Home, Record
from provision.spec import make_spec
from provision.tosca.orchestrator import MARK
from provision.tosca.render import Portfolio, template
from provision.tosca.submission import Submission

PORTFOLIO = Portfolio(
    types="https://git.example.org/tosca-types/raw/v4.0.0",
    role="https://git.example.org/ansible-role-mlaas4hep.git",
    tag="v1.0.0",
    guide="https://guides.example.org/mlaas4hep",
    icon="https://guides.example.org/mlaas4hep.png",
)
SHARED = {"service": "shared", "domain": "ml.example.org", "iam": "https://iam.example.org/", "client_id": "platform"}
CHOSEN = {"domain": SHARED["domain"], "client_id": SHARED["client_id"]}


def submission(wishes: dict[str, Any], values: dict[str, Any]) -> Submission:
    spec = make_spec({"name": "higgs", **wishes})
    record = Record(name="higgs", uid="", owner="", toolkit="", spec=spec)
    variables = platform_variables(record, Framework(None, __version__))
    return Submission(template(spec, variables, PORTFOLIO, private=False), values)


@pytest.mark.parametrize(
    ("wishes", "values", "meant"),
    [
        ({}, {}, {}),
        ({"cpus": 12, "memory": "1536MB", "disk": "100GB", "ports": [6006], "idle_stop": "3h"}, {}, {}),
        ({"gpu": "T4:2", "frameworks": ["torch"], "monitoring": "exporters"}, {}, {}),
        ({"jupyter": True}, {}, {}),
        (SHARED, CHOSEN, {}),
        ({**SHARED, "jupyter": True}, CHOSEN, {}),
        ({"workers": 2, "cvmfs": ["cms.cern.ch"]}, {"workers": 4}, {"workers": 4}),
        (
            {
                **SHARED,
                "cloud": "site",
                "client_id": "registered",
                "admin_groups": ["/cms/admins"],
                "workers": 1,
                "worker_flavor": "m1.large",
            },
            {"domain": SHARED["domain"], "worker_flavor": "m1.small", "certificate": "acme-staging"},
            {"worker_flavor": "m1.small", "tls": "acme-staging"},
        ),
        ({"gpu": "A100:2/2x3g.40gb"}, {"gpu_partitions": "7x1g.10gb"}, {"gpu": "A100:2/7x1g.10gb"}),
        ({**SHARED, "tls": "internal", "executor": "slurm", "endpoints": ["eos.example.org:1094"]}, CHOSEN, {}),
        (
            {"gpu": "any"},
            {"num_cpus": 8, "mem_size": "16 GiB", "num_gpus": 2, "gpu_model": "A100", "idle_seconds": 7200},
            {"cpus": 8, "memory": "16GB", "gpu": "A100:2", "idle_stop": "2h"},
        ),
        (
            {},
            {"ports": {"ssh": {"protocol": "tcp", "source": 22}, "mine": {"protocol": "tcp", "source": 8888}}},
            {"ports": [8888]},
        ),
    ],
)
def test_a_submission_means_a_spec(wishes: dict[str, Any], values: dict[str, Any], meant: dict[str, Any]):
    expected = make_spec({"name": "higgs", **wishes, **meant, "cloud": "paas:https://paas.example.org"})
    assert submission(wishes, values).spec("paas:https://paas.example.org") == expected


def test_another_name_is_that_of_the_machine_too():
    first = submission({}, {})
    second = first.named("tau")
    assert second.spec("local").name == "tau" and first.name == "higgs"
    assert "name: tau" in second.template("0123456789")
    assert "\n        name: higgs\n" not in submission({"workers": 1}, {}).named("tau").template("0123456789")


@pytest.mark.parametrize("uid", ["1234567890", "12345e6789", "abcdef0123"])
def test_the_mark_is_a_text_whatever_it_looks_like(uid: str):
    assert yaml.safe_load(submission({}, {}).template(uid))["metadata"][MARK] == uid


def test_a_client_is_registered_by_the_orchestrator_alone(user_home: Path):
    spec = make_spec({"name": "higgs", **SHARED, "client_id": "registered"})
    with pytest.raises(UsageError, match="Only the PaaS orchestrator registers a client"):
        plan_among([spec], Home())
