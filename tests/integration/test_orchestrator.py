"""Platforms by the PaaS orchestrator: its documented API over HTTP, a real oidc-agent, a machine with a real sshd."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from provision import cli
from provision.cli import context
from provision.clouds.base import LOGIN_USER
from provision.configure import MARKER
from provision.errors import ProvisionError, UsageError
from provision.framework import Framework
from provision.record import Folder, Home
from provision.remote import Remote
from provision.spec import make_spec
from provision.tosca import orchestrator
from provision.tosca.deployed import address_of
from provision.tosca.orchestrator import MARK, Deployment, Orchestrator, PassingError, cause_of, checked_url
from provision.tosca.render import BASIC_TYPES, TYPES, Portfolio, render
from tests.conftest import REPOSITORY, long
from tests.debian import do_without, lacking
from tests.federation.agent import PROGRAMS, Agent, oidc_agent
from tests.oidc.fixtures import need_provider
from tests.oidc.provider import OidcProvider, oidc_provider
from tests.orchestrator.server import Made, StandIn, stand_in

from .conftest import Sshd

AT = {"types": "https://git.example.org/types/raw/v1", "role": "https://git.example.org/role.git", "tag": "v1.0.0"}
SHOWN = {"guide": "https://guides.example.org/", "icon": "https://guides.example.org/icon.png"}
OPTIONS = [word for name, value in AT.items() for word in (f"--{name}", value)]
SPEC = {"name": "higgs", "cpus": 2, "memory": "4GB", "disk": "20GB", "ports": [6006], "mlaas4hep": "1.2.3"}
SHARED = {"service": "shared", "domain": "ml.example.org", "iam": "https://iam.example.org/", "client_id": "platform",
          "tls": "internal"}  # fmt: skip
CLIENT_PROGRAM = REPOSITORY / "roles/mlaas4hep/files/mlaas4hep-client"
REDIRECT = "https://ml.example.org/login/callback"
NOWHERE = "11e8ab3c-0000-4000-8000-0242ac120003"


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OidcProvider]:
    need_provider()
    if reason := lacking(PROGRAMS):
        do_without(reason)
    with oidc_provider(tmp_path_factory.mktemp("provider")) as running:
        yield running


@pytest.fixture(scope="module")
def agent(provider: OidcProvider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    with oidc_agent(tmp_path_factory.mktemp("agent") / "agent", "--no-autoreauthenticate") as running:
        running.add("alice", provider, "alice")
        yield running


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `provision tosca render` makes: a personal and a shared platform, and a cluster, each in its folder."""
    folder = tmp_path_factory.mktemp("rendered")
    portfolio = Portfolio(**AT, **SHOWN)
    for name, wishes in (("personal", SPEC), ("shared", {**SPEC, **SHARED}), ("cluster", {**SPEC, "workers": 2})):
        render(make_spec(wishes), Framework(None, "1.2.3"), portfolio, folder / name)
    return folder


@pytest.fixture
def paas(
    provider: OidcProvider, agent: Agent, rendered: Path, user_home: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[StandIn]:
    """The orchestrator of this user's environment; nobody waits for it."""
    monkeypatch.setattr(orchestrator, "PAUSES", (0.01,) * 4)
    monkeypatch.setattr(orchestrator, "FIRST_POLL", 0.01)
    monkeypatch.setenv("OIDC_SOCK", agent.environment["OIDC_SOCK"])
    monkeypatch.setenv("OIDC_ACCOUNT", "alice")
    with stand_in(
        provider.key, {f"{AT['types']}/{name}": rendered / "personal" / name for name in (TYPES, BASIC_TYPES)}
    ) as running:
        monkeypatch.setenv("ORCHENT_URL", running.url)
        yield running


@pytest.fixture
def client(paas: StandIn) -> Iterator[Orchestrator]:
    with Orchestrator(paas.url, "alice") as running:
        yield running


class Said(str):
    """What a command wrote, as its standard output, with the rest beside it."""

    status: int
    err: str


Provision = Callable[..., Said]


@pytest.fixture
def provision(
    user_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Provision:
    """The command, run in this process."""
    monkeypatch.chdir(tmp_path)
    context.home.cache_clear()
    context.console.cache_clear()

    def run(*words: str, status: int = 0) -> Said:
        monkeypatch.setattr("sys.argv", ["provision", *words])
        try:
            cli.main()
            ended: object = 0
        except SystemExit as end:
            ended = end.code or 0
        output = capsys.readouterr()
        assert ended == status, output.out + output.err
        assert "Traceback" not in output.out + output.err
        said = Said(output.out)
        said.err = output.err
        return said

    return run


@pytest.fixture
def machine(paas: StandIn, sshd: Sshd, user_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sshd:
    """The machine that deployments lead to; it admits the keys that they name, and says that the roles were applied."""
    ssh = user_home / ".ssh"
    ssh.mkdir(mode=0o700)
    programs, there = tmp_path / "bin", tmp_path / "there"
    real = {name: shutil.which(name) for name in ("ssh", "cat")}
    # OpenSSH finds its files by the user database: point it to this test's home, and to the server's port
    ours = f"exec {real['ssh']}"
    wrap(programs, "ssh", f'case " $* " in *" -F "*) {ours} "$@" ;; esac\n{ours} -o Port={sshd.port} "$@"')
    wrap(programs, "ssh-keygen", known_in(ssh / "known_hosts"))
    said = 'echo \'{"digest": "v1.0.0"}\''
    wrap(there, "cat", f'[ "$1" = {MARKER} ] && {said} && exit\nexec {real["cat"]} "$@"')
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")

    def deployed(parameters: dict[str, Any]) -> None:
        (user,) = parameters["users"]
        sshd.admit(user["os_user_ssh_public_key"])
        sshd.environment({"PATH": f"{there}:/usr/bin:/bin"})

    paas.deployed, paas.address = deployed, "127.0.0.1"
    return sshd


def wrap(folder: Path, name: str, script: str) -> None:
    """A program that a script stands before."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def known_in(known_hosts: Path) -> str:
    """A script that has ssh-keygen look for host keys in that file."""
    real = f"exec {shutil.which('ssh-keygen')}"
    return f'[ "$1" = -F ] && {real} "$@" -f {known_hosts}\n{real} "$@"'


def see_host_key(machine: Sshd, user_home: Path) -> None:
    """What a user does who connects by hand and compares the fingerprint."""
    (user_home / ".ssh" / "known_hosts").write_text(machine.known_hosts_line())


@pytest.fixture
def platform(paas: StandIn, machine: Sshd, user_home: Path, rendered: Path, provision: Provision) -> Made:
    """The deployment of a platform `higgs` that is ready."""
    see_host_key(machine, user_home)
    provision("orchestrator", "submit", str(rendered / "personal"), "--user", machine.user, "--yes")
    return next(iter(paas.made.values()))


@pytest.fixture
def deployment(paas: StandIn, rendered: Path, provision: Provision) -> Made:
    """That of a platform `higgs` whose machine nobody has connected to yet."""
    provision("orchestrator", "submit", str(rendered / "personal"), "--user", "ada", "--yes", status=1)
    return next(iter(paas.made.values()))


def test_a_deployment_becomes_a_platform(
    paas: StandIn, machine: Sshd, user_home: Path, rendered: Path, provision: Provision
):
    words = ("orchestrator", "submit", str(rendered / "personal"), "--user", machine.user, "--group", "cms", "--yes")
    said = provision(*words, status=1)
    assert "num_cpus" in said and "with the platform's own SSH key" in said
    # nobody has seen the machine's host key
    assert "The deployment is complete." in said.err and "compare the fingerprint" in said.err
    (made,) = paas.made.values()
    assert made.status == "CREATE_COMPLETE" and made.group == "cms"
    folder = Home().folder("higgs")
    assert made.parameters["users"][0]["os_user_ssh_public_key"] == folder.key.with_suffix(".pub").read_text().strip()
    assert yaml.safe_load(made.template)["metadata"][MARK] == folder.load().uid

    see_host_key(machine, user_home)
    assert "higgs is ready at 127.0.0.1" in provision(*words).err
    assert len(paas.made) == 1 and paas.asked("POST") == 1
    (row,) = json.loads(provision("list", "--json"))
    assert (row["name"], row["state"], row["machine"], row["address"]) == ("higgs", "ready", "running", "127.0.0.1")
    record = folder.load()
    assert record.spec == make_spec({**SPEC, "cloud": f"paas:{paas.url}"})
    with context.connected("higgs") as remote:
        assert remote.run(["echo", "hello"]) == "hello\n"
    assert made.uuid in provision("delete", "higgs", "--dry-run")
    written = "".join(path.read_text() for path in Home().path.rglob("*") if path.is_file())
    assert paas.tokens and not any(token in written for token in paas.tokens)
    provision("delete", "higgs", "--yes")
    assert paas.made == {} and Home().folders() == []


@pytest.fixture
def base(paas: StandIn, computer_with_machines: None, provision: Provision) -> Iterator[Folder]:
    """A machine of this computer with all roles; stands for one that the orchestrator would make."""
    provision("create", "base", "--cloud", "local", "--yes")
    yield Home().folder("base")
    provision("delete", "base", "--yes")


@long
@pytest.mark.machine
def test_a_deployed_machine_is_worked_on_like_any_other(
    paas: StandIn,
    base: Folder,
    user_home: Path,
    rendered: Path,
    tmp_path: Path,
    provision: Provision,
    monkeypatch: pytest.MonkeyPatch,
):
    paas.address = str(json.loads(provision("show", "base", "--json"))["access"]["host"])

    def deployed(parameters: dict[str, Any]) -> None:
        (user,) = parameters["users"]
        with Remote(base) as remote:
            words = ["sh", "-c", 'echo "$1" >>~/.ssh/authorized_keys', "sh", user["os_user_ssh_public_key"]]
            remote.run(words)

    paas.deployed = deployed
    known = user_home / "known_hosts"
    known.write_text(f"{paas.address} {base.known_hosts.read_text().partition(' ')[2]}")
    wrap(tmp_path / "bin", "ssh-keygen", known_in(known))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    provision("orchestrator", "submit", str(rendered / "personal"), "--user", LOGIN_USER, "--yes")
    folder = tmp_path / "training"
    subprocess.run([Path(sys.executable).parent / "mlaas4hep", "example-data", folder, "--events", "2000"], check=True)
    assert "test auc" in provision("train", "higgs", str(folder))
    provision("fetch", "higgs", "--to", str(tmp_path / "model"))
    assert (tmp_path / "model" / "metrics.json").exists()
    assert "BAD" not in provision("doctor", "higgs")
    rows = {row["name"]: row for row in json.loads(provision("list", "--json"))}
    assert (rows["higgs"]["machine"], rows["higgs"]["state"]) == ("running", "ready")
    provision("delete", "higgs", "--yes")
    assert paas.made == {} and [folder.name for folder in Home().folders()] == ["base"]


def test_a_machine_with_another_host_key_is_not_trusted(
    paas: StandIn, machine: Sshd, user_home: Path, rendered: Path, provision: Provision
):
    line = machine.known_hosts_line().split()
    other = "AAAAC3NzaC1lZDI1NTE5AAAAIEx" + "A" * 40 + "A"
    (user_home / ".ssh" / "known_hosts").write_text(f"{line[0]} ssh-ed25519 {other}\n")
    said = provision("orchestrator", "submit", str(rendered / "personal"), "--user", machine.user, "--yes", status=1)
    assert "a host key that is not its own" in said.err
    assert Home().folder("higgs").load().state == "creating"


def test_a_spec_is_submitted_as_it_would_be_rendered(paas: StandIn, tmp_path: Path, provision: Provision):
    spec = tmp_path / "higgs.yaml"
    spec.write_text(yaml.safe_dump({**SPEC, "name": "tau"}))
    assert "--types, --role and --tag" in provision("orchestrator", "submit", str(spec), status=2).err
    words = ("orchestrator", "submit", str(spec), *OPTIONS, "--dry-run")
    shown = json.loads(provision(*words, "--user", "ada", "--group", "cms", "--timeout", "90", "--json"))
    assert shown["userGroup"] == "cms" and shown["timeoutMins"] == 90 and shown["platform"] == "tau"
    assert shown["parameters"]["users"][0]["os_user_name"] == "ada"
    assert yaml.safe_load(shown["template"])["topology_template"]["node_templates"]["mlaas4hep"]
    assert (
        "Nothing was submitted"
        in provision("orchestrator", "submit", str(spec), *OPTIONS, "--user", "ada", status=2).err
    )
    assert paas.requests == [] and not Home().folders()
    private = json.loads(provision(*words, "--user", "ada", "--private", "--jump", "ada@bastion.example.org", "--json"))
    assert "public_network" not in private["template"]


def test_the_record_of_a_cluster_has_its_workers(paas: StandIn, rendered: Path, tmp_path: Path, provision: Provision):
    values = tmp_path / "values.yaml"
    words = ("orchestrator", "submit", str(rendered / "cluster"), "--inputs", str(values), "--user", "ada", "--yes")
    values.write_text("workers: 3\n")
    assert f"{values}:1: workers: " in provision(*words, status=1).err
    values.write_text("workers: 4\n")
    assert "The deployment is complete." in provision(*words, status=1).err
    (made,) = paas.made.values()
    assert made.parameters["workers"] == 4 and {"workers", "mlaas4hep_workers"} <= set(made.nodes)
    spec = Home().folder("higgs").load().spec
    assert spec == make_spec({**SPEC, "workers": 4, "cloud": f"paas:{paas.url}"}) and spec.slurm
    (row,) = json.loads(provision("list", "--json"))
    assert row["name"] == "higgs"
    provision("orchestrator", "delete", "higgs", "--yes")
    assert paas.made == {} and Home().folders() == []


def test_what_is_wrong_is_found_before_anything_is_sent(
    paas: StandIn, rendered: Path, tmp_path: Path, provision: Provision
):
    values = tmp_path / "values.yaml"
    values.write_text(yaml.safe_dump({"num_cpu": 4, "domain": "ml.example.org"}))
    said = provision("orchestrator", "submit", str(rendered / "shared"), "--inputs", str(values), "--yes", status=1)
    assert f"{values}:2: there is no input 'num_cpu'; did you mean 'num_cpus'?" in said.err
    assert "the input 'client_id' has no value" in said.err
    refused = provision("orchestrator", "submit", str(rendered / "personal"), "--user", "Ada L", "--yes", status=2)
    assert "--user" in refused.err
    assert paas.requests == [] and not Home().folders()


def test_the_cause_of_a_failure_is_told(paas: StandIn, rendered: Path, provision: Provision):
    paas.fates = ["FAILED"]
    paas.reason = "it.infn.DeploymentException: Error deploying on RECAS-BARI. Done.\n\tat it.infn.Deployer(D.java:1)"
    paas.log = 'TASK [base : Install packages] ***\nfatal: [front]: FAILED! => {"msg": "No package \\"nothing\\""}\n'
    words = ("orchestrator", "submit", str(rendered / "personal"), "--user", "ada", "--yes")
    said = provision(*words, status=1)
    cause = "the task 'base : Install packages' failed: No package \"nothing\""
    assert f"has failed (CREATE_FAILED): {cause}." in said.err
    assert cause in provision("orchestrator", "show", "higgs")
    assert json.loads(provision("list", "--json"))[0]["machine"] == "error"
    assert "TASK [base" in provision("orchestrator", "logs", "higgs")
    # the same again does not make another one
    assert cause in provision(*words, status=1).err and paas.asked("POST") == 1
    (uuid,) = paas.made
    assert "Nothing was deleted" in provision("orchestrator", "delete", uuid, status=2).err
    provision("orchestrator", "delete", uuid, "--yes")
    assert paas.made == {} and Home().folders() == []


def test_what_the_orchestrator_refuses_is_told(paas: StandIn, rendered: Path, provision: Provision):
    words = ("orchestrator", "submit", str(rendered / "personal"), "--user", "ada", "--yes")
    said = provision(*words, "--group", "atlas", status=1)
    assert "not a member of the group atlas" in said.err and "Are you a member" in said.err
    # nothing was made: the platform can be forgotten
    provision("delete", "higgs", "--yes")
    assert Home().folders() == []
    assert "has nothing at GET" in provision("orchestrator", "show", NOWHERE, status=1).err
    assert "There is no platform 'nobody'" in provision("orchestrator", "logs", "nobody", status=2).err


def test_a_token_that_has_ended_is_replaced(paas: StandIn, agent: Agent, client: Orchestrator, user_home: Path):
    paas.refused.add(ended := agent.token("alice"))
    assert list(client.deployments()) == []
    assert paas.tokens[-1] != ended and paas.asked("GET") == 2
    paas.trusting = False
    with pytest.raises(ProvisionError, match="does not accept the token of oidc-agent's account alice"):
        list(client.deployments())
    assert ended not in "".join(path.read_text() for path in user_home.rglob("*") if path.is_file())


def test_a_submission_whose_answer_is_lost_is_found(
    paas: StandIn, machine: Sshd, user_home: Path, rendered: Path, provision: Provision
):
    see_host_key(machine, user_home)
    paas.fault("POST", "/deployments", "after")
    said = provision("orchestrator", "submit", str(rendered / "personal"), "--user", machine.user, "--yes")
    assert "Looking whether the deployment was made" in said.err and "higgs is ready" in said.err
    assert len(paas.made) == 1 and paas.asked("POST") == 1


def test_a_submission_that_is_not_known_to_be_made_is_looked_for_first(
    paas: StandIn, rendered: Path, provision: Provision
):
    words = ("orchestrator", "submit", str(rendered / "personal"), "--user", "ada", "--yes")
    paas.fault("POST", "/deployments", "status", status=504)
    assert "but may make it still" in provision(*words, status=1).err
    assert paas.asked("POST") == 1 and not paas.made
    paas.fault("POST", "/deployments", "after")
    paas.fault("GET", "/deployments/", "status", times=5)  # as if it were killed before it could look
    assert "answered 503" in provision(*words, status=1).err
    assert len(paas.made) == 1 and Home().folder("higgs").load().resource("deployment") is None
    paas.fates = ["COMPLETE"]
    assert "The deployment is complete." in provision(*words, status=1).err
    assert paas.asked("POST") == 2 and len(paas.made) == 1


def test_a_submission_that_was_killed_is_removed(paas: StandIn, rendered: Path, provision: Provision):
    paas.fault("POST", "/deployments", "after")
    paas.fault("GET", "/deployments", "status", times=5)
    provision("orchestrator", "submit", str(rendered / "personal"), "--user", "ada", "--yes", status=1)
    (uuid,) = paas.made
    assert uuid in provision("delete", "higgs", "--yes")
    assert paas.made == {} and Home().folders() == []


def test_passing_failures_are_outlived(paas: StandIn, client: Orchestrator):
    paas.fault("GET", "/deployments", "status", status=503, headers={"Retry-After": "0"})
    paas.fault("GET", "/deployments", "status", status=502)
    paas.fault("GET", "/deployments", "before")
    assert list(client.deployments()) == []
    paas.fault("GET", "/deployments", "status", times=5)
    with pytest.raises(PassingError, match="answered 503: Service Unavailable: The database is away"):
        list(client.deployments())


def test_answers_are_bounded(paas: StandIn, client: Orchestrator, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(orchestrator, "_MOST_BYTES", 2**16)
    paas.fault("GET", "/deployments", "body", body=b" " * 4096, endless=True)
    with pytest.raises(ProvisionError, match="with more than"):
        list(client.deployments())
    for body in (b"[" * 20_000, b"<html>Welcome</html>", b"[1]"):
        paas.fault("GET", "/deployments", "body", body=body)
        with pytest.raises(ProvisionError, match="is no orchestrator"):
            list(client.deployments())
    paas.fault("GET", "/deployments", "body", body=b'{"content": [{"uuid": "../../x"}]}')
    with pytest.raises(ProvisionError, match="tells no uuid"):
        list(client.deployments())


def test_an_answer_that_never_ends_is_given_up(paas: StandIn, client: Orchestrator, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(orchestrator, "REQUEST_SECONDS", 0.0)
    with pytest.raises(PassingError, match="has not answered in time"):
        list(client.deployments())
    assert paas.asked("GET") == 2


def test_all_pages_are_read(paas: StandIn, provision: Provision):
    for number in range(120):
        uuid = f"{number:08x}-0000-4000-8000-000000000000"
        owner = "alice" if number % 12 else "bob"
        paas.made[uuid] = Made(uuid, owner, "", {}, "cms" if number % 2 else "", "CREATE_COMPLETE", 0, "")
    assert len(json.loads(provision("orchestrator", "list", "--json"))) == 110
    assert len(json.loads(provision("orchestrator", "list", "--all", "--json"))) == 120
    assert len(json.loads(provision("orchestrator", "list", "--group", "cms", "--json"))) == 60


def test_an_update_is_what_the_record_tells_afterwards(
    paas: StandIn, platform: Made, tmp_path: Path, provision: Provision
):
    values = tmp_path / "values.yaml"
    values.write_text(yaml.safe_dump({"num_cpus": 3}))
    words = ("orchestrator", "update", "higgs", "--inputs", str(values))
    assert "num_cpus" in provision(*words, status=1).err
    values.write_text(yaml.safe_dump({"num_cpus": 4}))
    shown = json.loads(provision(*words, "--dry-run", "--json"))
    assert shown["changes"] == [{"input": "num_cpus", "old": 2, "new": 4}]
    assert platform.updates == 0
    paas.fates = ["FAILED"]
    paas.reason = "Quota exceeded for cores."
    assert "(UPDATE_FAILED): Quota exceeded for cores." in provision(*words, "--yes", status=1).err
    assert Home().folder("higgs").load().spec.cpus == 2
    paas.fault("PUT", "/deployments", "after")  # and the answer is lost
    assert "higgs is updated, and ready" in provision(*words, "--yes").err
    assert platform.updates == 2 and platform.parameters["num_cpus"] == 4
    assert platform.parameters["users"][0]["os_user_ssh_public_key"]
    assert Home().folder("higgs").load().spec.cpus == 4
    with Remote(Home().folder("higgs")) as remote:
        assert remote.answers()


def test_a_deletion_that_fails_keeps_the_platform(paas: StandIn, deployment: Made, provision: Provision):
    shown = json.loads(provision("orchestrator", "delete", "higgs", "--dry-run", "--json"))
    assert shown["uuid"] == deployment.uuid and len(shown["resources"]) == len(deployment.nodes)
    paas.fates, paas.reason = ["FAILED"], "The provider does not answer."
    assert "The provider does not answer" in provision("delete", "higgs", "--yes", status=1).err
    assert Home().folder("higgs").load().state == "deleting" and deployment.status == "DELETE_FAILED"
    paas.fault("DELETE", "/deployments", "after")  # the second one finds it being deleted
    assert "is half deleted" in provision("orchestrator", "update", "higgs", "--yes", status=2).err
    provision("delete", "higgs", "--yes")
    assert paas.made == {} and Home().folders() == []


def test_a_deletion_that_is_stuck_is_begun_again(
    paas: StandIn, deployment: Made, provision: Provision, monkeypatch: pytest.MonkeyPatch
):
    paas.fates = ["STUCK"]
    monkeypatch.setattr(orchestrator, "WAIT_SECONDS", 0.05)
    assert "is DELETE_IN_PROGRESS for more than" in provision("delete", "higgs", "--yes", status=1).err
    monkeypatch.setattr(orchestrator, "WAIT_SECONDS", 300.0)
    provision("orchestrator", "delete", "higgs", "--stuck", "--yes")
    assert paas.made == {} and Home().folders() == []


def test_a_deployment_that_somebody_else_has_deleted(paas: StandIn, deployment: Made, provision: Provision):
    paas.made.clear()
    assert json.loads(provision("list", "--json"))[0]["machine"] == "missing"
    assert "`provision delete higgs` forgets it" in provision("orchestrator", "show", "higgs", status=2).err
    provision("delete", "higgs", "--yes")
    assert Home().folders() == []


def test_what_the_orchestrator_does_is_told_while_it_lasts(paas: StandIn, client: Orchestrator):
    paas.made[NOWHERE] = Made(NOWHERE, "alice", "", {}, "", "CREATE_IN_PROGRESS", 2, "COMPLETE")
    told: list[str] = []
    found = client.wait(NOWHERE, told.append)
    assert found is not None and found.status == "CREATE_COMPLETE"
    assert told == ["CREATE_IN_PROGRESS, BROKERING", "CREATE_IN_PROGRESS, NONE"]


@pytest.mark.parametrize(
    ("told", "address"),
    [("192.0.2.7", "192.0.2.7"), (["192.0.2.7", "10.0.0.1"], "192.0.2.7"), ("2001:db8::1", "[2001:db8::1]")],
)
def test_the_address_is_that_of_the_outputs(told: object, address: str):
    assert address_of(Deployment(uuid=NOWHERE, outputs={"node_ip": told})) == address


@pytest.mark.parametrize("outputs", [{}, {"node_ip": None}, {"node_ip": []}, {"node_ip": "-oProxyCommand=true"}])
def test_what_is_no_address_is_not_taken_for_one(outputs: dict[str, object]):
    with pytest.raises(ProvisionError, match="tells no address of its machine"):
        address_of(Deployment(uuid=NOWHERE, outputs=outputs))


@pytest.mark.parametrize(
    "url",
    ["http://paas.example.org/orchestrator", "paas.example.org", "https://user:secret@paas.example.org", "file:///etc"],
)
def test_tokens_go_to_no_address_but_an_encrypted_one(url: str):
    with pytest.raises(UsageError):
        checked_url(url)


@pytest.mark.parametrize(
    ("reason", "log", "cause"),
    [
        ("", "", "the orchestrator tells no reason"),
        ("No cloud providers available. Try later. Third sentence.", "", "No cloud providers available. Try later"),
        ("java.lang.RuntimeException: it.infn.OrchestratorException: No quota\n\tat a.b(C.java)", "", "No quota"),
        ("", 'TASK [a : b]\nfatal: [x]: FAILED! => {"msg": "no\\nroute"}', "the task 'a : b' failed: no route"),
        ("Away.", 'fatal: [x]: FAILED! => {"msg": "harmless"}\n...ignoring\n', "Away"),
        ("", "fatal: [x]: FAILED! => {" + "x" * 50_000, "the orchestrator tells no reason"),
        ("\x1b[31mred\x07", "", "[31mred"),
    ],
)  # fmt: skip
def test_causes_are_short(reason: str, log: str, cause: str):
    assert cause_of(reason, log) == cause


@pytest.fixture
def registered(provider: OidcProvider) -> dict[str, Any]:
    """A client as the PaaS orchestrator registers it, before it knows what it is for."""
    wanted = {
        "redirect_uris": ["https://another.client.example/oidc"],
        "client_name": "paas:11e8ab3c",
        "token_endpoint_auth_method": "client_secret_basic",
        "grant_types": ["refresh_token", "authorization_code"],
        "response_types": ["code"],
    }
    with provider.browser() as browser:
        answer = browser.post(f"{provider.issuer}/reg", json=wanted)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def complete(
    provider: OidcProvider, client: str, token: str, folder: Path, redirect: str = REDIRECT
) -> subprocess.CompletedProcess[str]:
    """Run the program of the role."""
    options = {"issuer": provider.issuer, "client": client, "redirect": redirect, "folder": folder}
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    command = [sys.executable, "-I", CLIENT_PROGRAM, *words, "--ca", provider.ca_file]
    return subprocess.run(command, input=token, capture_output=True, text=True, check=False)


def test_a_registered_client_leads_to_the_service(provider: OidcProvider, registered: dict[str, Any], tmp_path: Path):
    name, token = registered["client_id"], registered["registration_access_token"]
    assert complete(provider, name, token, tmp_path).stdout == "changed\n"
    assert (tmp_path / "client-secret").read_text() == registered["client_secret"]
    kept = json.loads((tmp_path / "client-registration.json").read_text())
    assert kept["token"] != token  # this provider replaces it at each change
    assert [oct(path.stat().st_mode)[-3:] for path in sorted(tmp_path.iterdir())] == ["600", "600"]
    with provider.browser() as browser:
        query = {"client_id": name, "redirect_uri": REDIRECT, "response_type": "code", "scope": "openid"}
        query |= {"code_challenge": "a" * 43, "code_challenge_method": "S256"}
        assert browser.get(f"{provider.issuer}/auth", params=query).is_redirect
    # the deployment's own token, as in a second run of the role
    assert complete(provider, name, token, tmp_path).stdout == "unchanged\n"
    assert complete(provider, name, token, tmp_path, "https://other.example.org/login/callback").stdout == "changed\n"


def test_a_refusal_is_told_without_the_token(provider: OidcProvider, registered: dict[str, Any], tmp_path: Path):
    done = complete(provider, registered["client_id"], "no-such-token", tmp_path)
    assert done.returncode == 1
    assert done.stderr == f"The issuer refuses the client {registered['client_id']!r} with status 401 (GET).\n"
    assert list(tmp_path.iterdir()) == []
