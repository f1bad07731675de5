"""Templates in the real Infrastructure Manager: deployed, and the roles get what a direct creation gives them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from provision.configure import platform_variables
from provision.framework import Framework
from provision.record import Record
from provision.spec import make_spec
from provision.tosca.check import check
from provision.tosca.render import CLIENT_TYPE, Portfolio, render
from tests.debian import do_without
from tests.manager import environment

SHARED = {"service": "shared", "domain": "ml.example.org", "iam": "https://iam.example.org/", "client_id": "platform"}
TOKEN = "eyJ-registration-access-token"
WORKER = "mlaas4hep_workers_workers"
OWN = {**SHARED, "tls": "internal"}


@dataclass(frozen=True)
class Case:
    """A template of a spec, the inputs that somebody chose, and the spec of a direct creation that is the same."""

    wishes: dict[str, Any]
    values: dict[str, Any] = field(default_factory=dict)
    direct: dict[str, Any] = field(default_factory=dict)


NEEDED = {"domain": SHARED["domain"], "client_id": SHARED["client_id"]}
CASES = {
    "personal": Case({}),
    "large": Case(
        {
            "cpus": 12,
            "memory": "1536MB",
            "ports": [6006],
            "idle_stop": "3h",
            "monitoring": "prometheus",
            "jupyter": True,
        }
    ),
    "gpu": Case({"gpu": "A100:2/2x3g.40gb", "frameworks": ["torch"], "cvmfs": ["cms.cern.ch"]}),
    "acme": Case(SHARED, NEEDED),
    "registered": Case(
        {**OWN, "client_id": "registered", "groups": ["/cms"]}, {"domain": SHARED["domain"]}, {"client_id": "by-iam"}
    ),
    "slurm": Case({**OWN, "executor": "slurm", "endpoints": ["eos.example.org:1094"]}, NEEDED),
    "cluster": Case({"workers": 2, "worker_flavor": "m1.large", "cloud": "site"}, {"workers": 4}, {"workers": 4}),
    "chosen": Case(
        {**OWN, "gpu": "any"},
        {
            "domain": "other.example.org",
            "issuer": "https://other.example.org/",
            "client_id": "other",
            "endpoints": ["one.example.org:1094", "two.example.org:443"],
            "num_gpus": 2,
            "gpu_model": "A100",
            "gpu_partitions": "7x1g.10gb",
            "cvmfs_repositories": ["sft.cern.ch", "atlas-condb.cern.ch"],
            "cvmfs_proxy": "http://squid.example.org:3128|DIRECT",
            "monitoring": "exporters",
            "iam_groups": ["/cms/higgs"],
            "iam_admin_groups": ["/cms/admins"],
            "num_cpus": 8,
            "mem_size": "16 GiB",
            "idle_seconds": 7200,
            "ports": {"ssh": {"protocol": "tcp", "source": 22}, "mine": {"protocol": "tcp", "source": 8888}},
            "users": [
                {"os_user_name": "ada", "os_user_add_to_sudoers": True, "os_user_ssh_public_key": "ssh-rsa AAAA"}
            ],
        },
        {
            "domain": "other.example.org",
            "iam": "https://other.example.org/",
            "client_id": "other",
            "endpoints": ["one.example.org:1094", "two.example.org:443"],
            "gpu": ":2/7x1g.10gb",
            "cvmfs": ["sft.cern.ch", "atlas-condb.cern.ch"],
            "cvmfs_proxy": "http://squid.example.org:3128|DIRECT",
            "monitoring": "exporters",
            "groups": ["/cms/higgs"],
            "admin_groups": ["/cms/admins"],
            "idle_stop": "2h",
        },
    ),
}


@dataclass(frozen=True)
class Deployed:
    """What the manager made of the templates (`CASE` and `CASE-private`), and the role that they name."""

    outcomes: dict[str, dict[str, Any]]
    role: Path
    framework: Framework

    def settings(self, name: str, machine: str = "platform") -> dict[str, str]:
        """The RADL of a machine and of the networks: feature -> value."""
        networks, *systems = self.outcomes[name]["radl"].partition("configure ")[0].split("system ")
        head = networks + next(system for system in systems if system.startswith(f"{machine} ("))
        lines = [line.strip(" )").removesuffix(" and") for line in head.replace("(", "\n").splitlines()]
        pairs = [line.replace(">=", "=").partition(" = ") for line in lines if "=" in line]
        return {key.strip(): value.strip(" '") for key, _, value in pairs}

    def play(self, name: str, node: str = "mlaas4hep_platform") -> dict[str, Any]:
        """The play that the RADL has for a node."""
        text = self.outcomes[name]["radl"].partition(f"configure {node}_conf")[2]
        text = text.partition("@begin\n")[2].partition("@end")[0]
        (play,) = yaml.safe_load(text)
        return dict(play)


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Deployed:
    if reason := environment.inability():
        do_without(reason)
    folder, work = tmp_path_factory.mktemp("portfolio"), tmp_path_factory.mktemp("manager")
    wheel = work / "mlaas4hep-1.2.3-py3-none-any.whl"
    wheel.write_bytes(b"stands for a wheel: nothing looks into it")
    framework = Framework(wheel, "1.2.3")
    templates = []
    for name, case in CASES.items():
        portfolio = Portfolio(
            types=f"{environment.ADDRESS}/{name}",
            role=f"file://{folder}/personal/ansible-role-mlaas4hep",
            tag="v1.0.0",
            guide="https://guides.example.org/mlaas4hep",
            icon="https://guides.example.org/mlaas4hep.png",
        )
        spec = make_spec({"name": name, **case.wishes})
        for template in render(spec, framework, portfolio, folder / name):
            values = folder / f"{name}.values.yaml"
            values.write_text(yaml.safe_dump(case.values))
            assert check(template, values)[1] == []
            templates.append(work / template.name)
            templates[-1].write_text(with_values(template, case.values))
    templates.append(work / "spoilt.yaml")
    templates[-1].write_text((work / "personal.yaml").read_text().replace("count: 1", "count: one"))
    return Deployed(environment.deploy(folder, templates, work), folder / "personal/ansible-role-mlaas4hep", framework)


def with_values(template: Path, values: dict[str, Any]) -> str:
    """The template as the orchestrator hands it to the manager: with all inputs, and the client that it registered."""
    document = yaml.safe_load(template.read_text())
    for node in document["topology_template"]["node_templates"].values():
        if node["type"] == CLIENT_TYPE:
            node["properties"] |= {"client_id": "by-iam", "registration_access_token": TOKEN}
    for name, value in values.items():
        document["topology_template"]["inputs"][name]["default"] = value
    return yaml.safe_dump(document)


@pytest.mark.parametrize("name", [*CASES, *(f"{name}-private" for name in CASES if name != "acme")])
def test_every_template_is_deployed(name: str, deployed: Deployed):
    outcome = deployed.outcomes[f"{name}.yaml"]
    assert "error" not in outcome, outcome
    # the machine is made up, so that the manager gives up to configure it, sooner or later
    assert outcome["state"]["state"] in ("running", "unconfigured")
    workers = 4 if name.startswith("cluster") else 0
    assert len(outcome["state"]["vm_states"]) == 1 + workers
    machines = outcome["estimate"]["dummy"]["compute"]
    reached = 0 if name.endswith("-private") else 1
    assert sorted(machine.get("publicIP", 0) for machine in machines) == [0] * workers + [reached]
    if name.endswith("-private"):  # the address that Dummy makes up is a private one
        assert outcome["outputs"]["node_ip"] == "10.0.0.1"


def test_the_manager_refuses_a_spoilt_template(deployed: Deployed):
    assert '"one" is not an integer' in json.loads(deployed.outcomes["spoilt.yaml"]["error"])["message"]


def test_the_machine_is_the_one_that_was_chosen(deployed: Deployed):
    large, chosen = deployed.settings("large.yaml"), deployed.settings("chosen.yaml")
    assert (large["cpu.count"], large["memory.size"]) == ("12", f"{1536 * 2**20}B")
    assert (chosen["cpu.count"], chosen["memory.size"]) == ("8", f"{16 * 2**30}B")
    assert (chosen["gpu.count"], chosen["gpu.model"]) == ("2", "A100")
    assert (chosen["disk.0.os.flavour"], chosen["disk.0.os.version"]) == ("ubuntu", "22.04")
    slurm = deployed.settings("slurm.yaml")
    assert (slurm["disk.0.os.flavour"], slurm["disk.0.os.version"]) == ("debian", "12")
    ports = {name: deployed.settings(f"{name}.yaml")["outports"].split(",") for name in CASES}
    assert sorted(ports["large"]) == ["22/tcp-22/tcp", "6006/tcp-6006/tcp"]
    assert sorted(ports["acme"]) == ["22/tcp-22/tcp", "443/tcp-443/tcp", "80/tcp-80/tcp"]
    assert sorted(ports["chosen"]) == ["22/tcp-22/tcp", "8888/tcp-8888/tcp"]


def test_workers_are_machines_of_their_own_in_the_private_network(deployed: Deployed):
    for name in ("cluster.yaml", "cluster-private.yaml"):
        worker = deployed.settings(name, "workers")
        assert (worker["instance_type"], worker["disk.0.os.flavour"]) == ("m1.large", "debian")
        networks = {feature: value for feature, value in worker.items() if feature.startswith("net_interface")}
        assert networks == {"net_interface.0.connection": "private_network"}
        # they get the same roles with the same inputs, and are told apart by the group that the manager has them in
        assert deployed.play(name, WORKER) == deployed.play(name)
    steps = deployed.outcomes["cluster.yaml"]["radl"].partition("contextualize")[2]
    found = dict(re.findall(r"configure (\w+)_conf step (\d+)", steps))
    assert int(found["mlaas4hep_platform"]) < int(found[WORKER])


def test_the_address_of_the_service_is_told(deployed: Deployed):
    assert deployed.outcomes["chosen.yaml"]["outputs"]["service_url"] == "https://other.example.org"
    assert "service_url" not in deployed.outcomes["personal.yaml"]["outputs"]


def test_the_registered_client_goes_to_the_roles_and_nowhere_else(deployed: Deployed):
    outcome = deployed.outcomes["registered.yaml"]
    assert deployed.play("registered.yaml")["vars"]["mlaas4hep_registration_token"] == TOKEN
    assert TOKEN not in json.dumps({key: value for key, value in outcome.items() if key != "radl"})
    assert deployed.play("acme.yaml")["vars"]["mlaas4hep_registration_token"] == ""


def test_roles_get_what_a_direct_creation_gives_them(deployed: Deployed, tmp_path: Path):
    """Ansible itself says which inputs a role has, with the play of the RADL and the role from its git repository."""
    expected = {}
    for name, case in CASES.items():
        spec = make_spec({"name": name, **case.wishes, **case.direct})
        record = Record(name=name, uid="", owner="", toolkit="", spec=spec)
        variables = platform_variables(record, deployed.framework)
        expected[name] = {key: value for key, value in variables.items() if key != "platform_digest"}
    found = inputs_of_roles(deployed, expected, tmp_path)
    # on the machines of a cluster, which the manager has in groups; none sees what the others can limit
    expected["cluster"]["slurm_limits"] = "required"
    groups = {"platform_is_worker": True, "slurm_controller": "front"}
    assert {name: found["worker"][name] for name in groups} == groups
    groups |= {"platform_is_worker": False}
    assert {name: found["cluster"].pop(name) for name in groups} == groups
    for name, variables in expected.items():
        for file in ("mlaas4hep_installer", "mlaas4hep_lock", "mlaas4hep_wheel"):
            there = Path(found[name].pop(file))
            assert there.is_relative_to(tmp_path / "roles")
            assert there.read_bytes() == Path(variables.pop(file)).read_bytes()
        assert found[name] == variables


def inputs_of_roles(deployed: Deployed, wanted: dict[str, Any], folder: Path) -> dict[str, dict[str, Any]]:
    """The values that the `wanted` variables have inside of the role of each case; no task of a role is run."""
    programs = Path(sys.executable).parent
    settings = {"ANSIBLE_ROLES_PATH": str(folder / "roles"), "ANSIBLE_LOCALHOST_WARNING": "false"}
    variables = {**os.environ, **settings, "ANSIBLE_HOME": str(folder / "ansible"), "LC_ALL": "C.UTF-8"}

    def run(*words: str | Path, cwd: Path = folder) -> None:
        done = subprocess.run(words, cwd=cwd, env=variables, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    role = deployed.role
    author = ("-c", "user.name=Portfolio", "-c", "user.email=portfolio@example.org", "-c", "commit.gpgsign=false")
    run("git", "init", "--quiet", cwd=role)
    run("git", "add", "--all", cwd=role)
    run("git", *author, "commit", "--quiet", "--message", "First", cwd=role)
    run("git", "tag", "v1.0.0", cwd=role)
    (application,) = {
        line.partition("ansible.roles.")[2].rstrip("')")
        for outcome in deployed.outcomes.values()
        for line in outcome.get("radl", "").splitlines()
        if "ansible.roles." in line
    }
    run(programs / "ansible-galaxy", "role", "install", application.removesuffix(" and").rstrip("')"))
    probe = {
        "name": "Tell the inputs",
        "ansible.builtin.copy": {
            "content": "{{ dict(wanted | zip(query('ansible.builtin.vars', *wanted))) | to_json }}",
            "dest": "{{ target }}",
            "mode": "0600",
        },
        "tags": ["inputs"],
    }
    (folder / "roles/ansible-role-mlaas4hep/roles/mlaas4hep/tasks/probe.yml").write_text(yaml.safe_dump([probe]))
    plays = []
    parts = [(name, name, "mlaas4hep_platform", "front" if name == "cluster" else "localhost") for name in wanted]
    for name, case, node, host in [*parts, ("worker", "cluster", WORKER, "worker")]:
        play = deployed.play(f"{case}.yaml", node)
        more = ["platform_is_worker", "slurm_controller"] if case == "cluster" else []
        asked = {"wanted": [*wanted[case], *more], "target": str(folder / f"{name}.json")}
        called = {"name": "ansible-role-mlaas4hep/roles/mlaas4hep", "tasks_from": "probe.yml"}
        told = [{"ansible.builtin.include_role": called, "tags": ["inputs"]}]
        machine = {
            "hosts": host,
            "connection": "local",
            "become": False,
            "gather_facts": host != "localhost" or not plays,
        }
        plays.append({**play, **machine, "vars": {**play["vars"], **asked}, "post_tasks": told})
    (folder / "plays.yml").write_text(yaml.safe_dump(plays))
    local = {"ansible_python_interpreter": sys.executable}
    hosts = {"platform": {"hosts": {"front": local}}, "workers": {"hosts": {"worker": local, "other": local}}}
    (folder / "inventory.yml").write_text(yaml.safe_dump(hosts))
    run(programs / "ansible-playbook", "--inventory", "inventory.yml", "--tags", "inputs", "plays.yml")
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in [*wanted, "worker"]}
