"""The roles' interfaces: what `meta/argument_specs.yml` promises is what `defaults` and `vars` hold."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml

from mlaas4hep.service.settings import load_settings

CHECKOUT = Path(__file__).parents[3]
ROLES = sorted(path for path in (CHECKOUT / "roles").iterdir() if path.is_dir())
PLAYBOOKS = sorted((CHECKOUT / "playbooks").glob("*.yml"))

each_role = pytest.mark.parametrize("role", ROLES, ids=lambda path: path.name)


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}


def options(role: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = read(role / "meta/argument_specs.yml")["argument_specs"]["main"]["options"]
    return found


def tasks(blocks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All tasks, those inside of blocks too."""
    found = []
    for task in blocks:
        inner = [item for key in ("block", "rescue", "always") for item in task.get(key, [])]
        found += tasks(inner) if inner else [task]
    return found


@each_role
def test_every_default_is_documented_and_every_option_has_a_default(role: Path) -> None:
    assert set(read(role / "defaults/main.yml")) == set(options(role))


@each_role
def test_documented_defaults_are_the_real_ones(role: Path) -> None:
    for name, value in read(role / "defaults/main.yml").items():
        if "{{" not in str(value):  # a computed default is described in words
            assert options(role)[name]["default"] == value, name


@each_role
def test_every_option_has_a_type_and_a_description(role: Path) -> None:
    def check(found: dict[str, dict[str, Any]]) -> None:
        for name, option in found.items():
            assert option.get("type"), name
            assert option.get("description"), name
            check(option.get("options", {}))

    check(options(role))


@each_role
def test_public_variables_bear_the_name_of_their_role(role: Path) -> None:
    assert all(name.startswith(f"{role.name}_") for name in options(role))


@each_role
def test_private_variables_bear_underscores_and_the_name_of_their_role(role: Path) -> None:
    files = [role / "vars/main.yml", *(role / "tasks").glob("*.yml")]
    private = set(read(files[0]))
    for path in files[1:]:
        for task in tasks(read(path)):
            private |= {task["register"]} if "register" in task else set()
            private |= set(task.get("ansible.builtin.set_fact", {}))
    assert all(name.startswith(f"__{role.name}_") for name in private), private


@each_role
def test_a_role_needs_no_collection(role: Path) -> None:
    words = {"name", "when", "register", "loop", "loop_control", "notify", "vars", "delegate_to", "become",
             "changed_when", "failed_when", "check_mode", "environment", "no_log", "tags", "diff"}  # fmt: skip
    for path in [*(role / "tasks").glob("*.yml"), *(role / "handlers").glob("*.yml")]:
        for task in tasks(read(path)):
            assert [word.rpartition(".")[0] for word in task if word not in words] == ["ansible.builtin"], task["name"]


@each_role
def test_a_role_says_what_it_does(role: Path) -> None:
    assert (role / "README.md").read_text(encoding="utf-8").startswith(f"# {role.name}\n")


def run_playbook(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """ansible-playbook as by hand from the checkout; programs in `home` go before all others."""
    environment = {
        "PATH": os.pathsep.join([str(home), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "HOME": str(home),
        "LC_ALL": "C.UTF-8",
        "ANSIBLE_CONFIG": str(CHECKOUT / "playbooks" / "ansible.cfg"),
    }
    return subprocess.run(["ansible-playbook", *words], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("playbook", PLAYBOOKS, ids=lambda path: path.name)
def test_playbooks_and_all_that_they_import_can_be_parsed(playbook: Path, tmp_path: Path) -> None:
    inventory = tmp_path / "inventory.yml"
    inventory.write_text("platform: {hosts: {machine: {}}}\n", encoding="utf-8")
    done = run_playbook(tmp_path, "--syntax-check", "-i", str(inventory), str(playbook))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("branch", "packages", "chosen"),
    [
        (0, "nvidia-headless-535-server nvidia-headless-550-server nvidia-headless-no-dkms-570-server", 550),
        (0, "nvidia-headless-575 nvidia-headless-580-server-open nvidia-headless-535-server", 535),
        (535, "nvidia-headless-535-server nvidia-headless-550-server", 535),
        (0, "nvidia-headless-575", None),
    ],
)
def test_on_ubuntu_the_newest_or_the_wished_server_driver_is_chosen(
    branch: int, packages: str, chosen: int | None, tmp_path: Path
) -> None:
    listing = tmp_path / "apt-cache"  # in the place of Ubuntu's package lists
    listing.write_text(f"#!/bin/sh\nprintf '%s\\n' {packages}\n", encoding="utf-8")
    listing.chmod(0o755)
    choose = {"name": "gpu_driver", "tasks_from": "ubuntu.yml"}
    driver = f"nvidia-headless-{chosen}-server"
    play = {
        "hosts": "localhost",
        "connection": "local",
        "gather_facts": False,
        "vars": {"gpu_driver_branch": branch},
        "tasks": [
            {"ansible.builtin.include_role": choose},
            {"ansible.builtin.assert": {"that": f"{driver!r} in __gpu_driver_packages"}},
        ],
    }
    playbook = tmp_path / "choose.yml"
    playbook.write_text(yaml.safe_dump([play]), encoding="utf-8")
    variables = ["--extra-vars", f"ansible_python_interpreter={sys.executable} __gpu_driver_ubuntu_flavour=generic"]
    done = run_playbook(tmp_path, *variables, str(playbook))
    if chosen is None:
        assert "enable the component restricted" in " ".join((done.stdout + done.stderr).split())
    else:
        assert done.returncode == 0, done.stdout


def test_the_job_unit_is_what_the_executor_expects() -> None:
    lines = (CHECKOUT / "roles/mlaas4hep/templates/mlaas4hep-job@.service.j2").read_text(encoding="utf-8").splitlines()
    variables = read(CHECKOUT / "roles/mlaas4hep/vars/main.yml")
    filled = [line.replace("{{ __mlaas4hep_prefix }}", variables["__mlaas4hep_prefix"]) for line in lines]
    filled = [line.replace("{{ __mlaas4hep_home }}", variables["__mlaas4hep_home"]) for line in filled]
    supervisor = "/opt/mlaas4hep/venv/bin/python -I -m mlaas4hep.service.supervisor /var/lib/mlaas4hep/jobs/%i"
    assert f"ExecStart={supervisor}" in filled
    # it tells when it holds the lock, makes groups in the unit's, records what used up its memory, and makes sandboxes
    assert {"Type=notify", "Delegate=cpu memory pids", "OOMPolicy=continue", "User=mlaas4hep"} <= set(filled)
    masking = (
        "ProtectControlGroups",
        "ProtectKernelTunables",
        "ProtectKernelLogs",
        "ProtectHostname",
        "RestrictNamespaces",
    )
    assert not [line for line in filled if line.startswith(masking)]


SHARED = {"mlaas4hep_service": "shared", "mlaas4hep_domain": "ml.example.org", "mlaas4hep_client_id": "ml"}
SHARED |= {"mlaas4hep_issuer": "https://iam.example.org/"}


@pytest.mark.parametrize(
    ("chosen", "kind", "cores", "gpus"),
    [
        ({"mlaas4hep_service": "personal", "mlaas4hep_gpus": 2}, "local", os.cpu_count(), 2),
        (SHARED, "local", os.cpu_count(), 0),
        ({**SHARED, "mlaas4hep_executor": "slurm", "mlaas4hep_cpus": 64}, "slurm", 64, 0),
        ({**SHARED, "mlaas4hep_endpoints": ["eos.example:1094"]}, "local", os.cpu_count(), 0),
    ],
)
def test_the_service_can_be_started_with_the_settings_that_the_role_writes(
    chosen: dict[str, Any], kind: str, cores: int, gpus: int, tmp_path: Path
) -> None:
    role = CHECKOUT / "roles/mlaas4hep"
    variables = {
        **read(role / "defaults/main.yml"),
        **read(role / "vars/main.yml"),
        "ansible_managed": "Ansible",
        **chosen,
    }
    engine = jinja2.Environment(trim_blocks=True, undefined=jinja2.StrictUndefined)
    engine.filters["to_json"] = json.dumps
    written = tmp_path / "service.toml"
    written.write_text(engine.from_string((role / "templates/service.toml.j2").read_text()).render(variables))
    settings = load_settings(written)
    assert (settings.executor.kind, settings.jobs.cpus, settings.jobs.gpus) == (kind, cores, gpus)
    # others than its one user must not be able to take the machine's memory
    personal = chosen["mlaas4hep_service"] == "personal"
    assert settings.executor.local.limits == ("where possible" if personal else "required")
    assert settings.jobs.network == ("all" if personal else "endpoints")
    assert settings.jobs.endpoints == tuple(chosen.get("mlaas4hep_endpoints", ()))
