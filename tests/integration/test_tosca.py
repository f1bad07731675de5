"""Templates in the real Infrastructure Manager: deployed, and the roles get what a direct creation gives them."""

from __future__ import annotations

import json
import os
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
from provision.tosca.render import Portfolio, render
from tests.manager import environment

SHARED = {"service": "shared", "domain": "ml.example.org", "iam": "https://iam.example.org/", "client_id": "platform"}
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
    "gpu": Case({"gpu": "T4:2", "frameworks": ["torch"]}),
    "acme": Case(SHARED, NEEDED),
    "slurm": Case({**OWN, "executor": "slurm", "endpoints": ["eos.example.org:1094"]}, NEEDED),
    "chosen": Case(
        {**OWN, "gpu": "any"},
        {
            "domain": "other.example.org",
            "issuer": "https://other.example.org/",
            "client_id": "other",
            "endpoints": ["one.example.org:1094", "two.example.org:443"],
            "num_gpus": 2,
            "gpu_model": "A100",
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
            "gpu": ":2",
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

    def settings(self, name: str) -> dict[str, str]:
        """The RADL of the machine and its networks: feature -> value."""
        head = self.outcomes[name]["radl"].partition("configure ")[0]
        lines = [line.strip(" )").removesuffix(" and") for line in head.replace("(", "\n").splitlines()]
        pairs = [line.replace(">=", "=").partition(" = ") for line in lines if "=" in line]
        return {key.strip(): value.strip(" '") for key, _, value in pairs}

    def play(self, name: str) -> dict[str, Any]:
        """The play that the RADL has for the machine."""
        text = self.outcomes[name]["radl"].partition("@begin\n")[2].partition("@end")[0]
        (play,) = yaml.safe_load(text)
        return dict(play)


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Deployed:
    if reason := environment.inability():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
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
    """The template as the orchestrator hands it to the manager: with all inputs."""
    document = yaml.safe_load(template.read_text())
    for name, value in values.items():
        document["topology_template"]["inputs"][name]["default"] = value
    return yaml.safe_dump(document)


@pytest.mark.parametrize("name", [*CASES, *(f"{name}-private" for name in CASES if name != "acme")])
def test_every_template_is_deployed(name: str, deployed: Deployed):
    outcome = deployed.outcomes[f"{name}.yaml"]
    assert "error" not in outcome, outcome
    # the machine is made up, so that the manager gives up to configure it, sooner or later
    assert outcome["state"]["state"] in ("running", "unconfigured")
    assert list(outcome["state"]["vm_states"]) == ["0"]
    (machine,) = outcome["estimate"]["dummy"]["compute"]
    assert machine.get("publicIP", 0) == (0 if name.endswith("-private") else 1)
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


def test_the_address_of_the_service_is_told(deployed: Deployed):
    assert deployed.outcomes["chosen.yaml"]["outputs"]["service_url"] == "https://other.example.org"
    assert "service_url" not in deployed.outcomes["personal.yaml"]["outputs"]


def test_roles_get_what_a_direct_creation_gives_them(deployed: Deployed, tmp_path: Path):
    """Ansible itself says which inputs a role has, with the play of the RADL and the role from its git repository."""
    expected = {}
    for name, case in CASES.items():
        spec = make_spec({"name": name, **case.wishes, **case.direct})
        record = Record(name=name, uid="", owner="", toolkit="", spec=spec)
        variables = platform_variables(record, deployed.framework)
        expected[name] = {key: value for key, value in variables.items() if key != "platform_digest"}
    found = inputs_of_roles(deployed, expected, tmp_path)
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
    for name, names in wanted.items():
        play = deployed.play(f"{name}.yaml")
        asked = {"wanted": list(names), "target": str(folder / f"{name}.json")}
        called = {"name": "ansible-role-mlaas4hep/roles/mlaas4hep", "tasks_from": "probe.yml"}
        told = [{"ansible.builtin.include_role": called, "tags": ["inputs"]}]
        machine = {"hosts": "localhost", "connection": "local", "become": False, "gather_facts": not plays}
        plays.append({**play, **machine, "vars": {**play["vars"], **asked}, "post_tasks": told})
    (folder / "plays.yml").write_text(yaml.safe_dump(plays))
    run(programs / "ansible-playbook", "--tags", "inputs", "plays.yml")
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in wanted}
