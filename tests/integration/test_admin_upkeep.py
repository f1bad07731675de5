"""Accounts, hardening, certificates, cleaning, secrets and records of a whole platform on this computer: each verb is
predicted by check mode, done, done again without changing anything, and repairs a real fault."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from provision.record import Home
from provision.remote import make_key
from tests.conftest import REPOSITORY, Command, long
from tests.slurm.cluster import wait_until

pytestmark = [pytest.mark.machine, long]

DOMAIN = "upkeep.example.org"
WAITING = "4 vulnerabilities: no security update waits"
"""That depends on what the packages' archive has today."""


class Platform:
    """The platform `upkeep`, and what its administrator does."""

    def __init__(self, provision: Command) -> None:
        self.provision = provision

    def admin(self, verb: str, *words: str, status: int = 0) -> dict[str, Any]:
        """Run a verb and return its outcome."""
        done = self.provision.run("admin", verb, "upkeep", *words, "--yes", "--json")
        assert done.returncode == status, f"{done.stdout}{done.stderr}"
        outcome: dict[str, Any] = json.loads(done.stdout)["platforms"][0]
        return outcome

    def bad(self, outcome: dict[str, Any]) -> list[str]:
        """The checks of a report that are not good."""
        return [finding["check"] for finding in outcome["report"]["findings"] if not finding["good"]]

    def run(self, *words: str) -> str:
        """Run a command on the machine."""
        return self.provision("ssh", "upkeep", "--", *words)

    def root(self, script: str) -> str:
        """Run a script as root on the machine."""
        return self.run("sudo", "sh", "-ec", script)

    def ssh(self, user: str, key: Path, *words: str) -> list[str]:
        """The command that logs in to the machine as somebody else."""
        config = self.provision("ssh", "upkeep", "--print-config").strip()
        own = ["-i", str(key), "-o", f"User={user}", "-o", "ControlPath=none", "-o", "BatchMode=yes"]
        return ["ssh", "-F", config, *own, "upkeep", "--", *words]

    def login(self, user: str, key: Path, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command on the machine as somebody else."""
        command = self.ssh(user, key, *words)
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)

    @property
    def address(self) -> str:
        """Of the machine."""
        access = Home(self.provision.home / "provision").folder("upkeep").load().access
        assert access is not None
        return access.host


@pytest.fixture(scope="module")
def platform(computer_with_machines: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    home = tmp_path_factory.mktemp("home")
    provision = Command(home)
    provision("create", "upkeep", "--cloud", "local", "--yes")
    try:
        yield Platform(provision)
    finally:
        provision("delete", "upkeep", "--yes")


def test_a_machine_is_found_fit_unless_its_packages_cannot_be_fetched(platform: Platform):
    assert platform.bad(platform.admin("precheck")) == []
    bad = "/etc/apt/sources.list.d/bad.list"
    platform.root(f"echo 'deb http://127.0.0.1:9/ stable main' > {bad}")
    assert platform.bad(platform.admin("precheck", status=1)) == ["package sources"]
    platform.root(f"rm {bad}")
    assert platform.bad(platform.admin("precheck")) == []


def test_people_are_added_locked_and_removed(platform: Platform, tmp_path: Path):
    public = make_key(tmp_path / "alice", "alice")
    accounts = tmp_path / "accounts.yml"
    accounts.write_text(yaml.safe_dump([{"name": "alice", "ssh_keys": [public], "sudo": True}, {"name": "bob"}]))

    predicted = platform.admin("users", "--accounts", str(accounts), "--check")
    assert platform.login("alice", tmp_path / "alice", "true").returncode != 0
    done = platform.admin("users", "--accounts", str(accounts))
    # the folder of keys is not there yet when the keys are predicted, and handlers are not predicted
    assert set(predicted["changed"]) <= set(done["changed"])
    assert set(done["changed"]) - set(predicted["changed"]) <= {"users : Write the keys"}
    assert done["report"]["administrators"] == "alice, physicist"
    assert platform.login("alice", tmp_path / "alice", "sudo", "-n", "id", "-un").stdout == "root\n"
    assert platform.admin("users", "--accounts", str(accounts))["changed"] == []

    left = subprocess.Popen(platform.ssh("alice", tmp_path / "alice", "sleep", "100000"), stdin=subprocess.DEVNULL)
    owners = "stat -c %U /proc/[0-9]* || true"
    wait_until(lambda: "alice" in platform.root(owners))
    platform.admin("users", "--lock", "alice")
    assert left.wait() != 0
    assert "alice" not in platform.root(owners)
    assert platform.login("alice", tmp_path / "alice", "true").returncode != 0
    assert platform.admin("users", "--lock", "alice")["changed"] == []
    platform.admin("users", "--add", "alice")
    assert platform.login("alice", tmp_path / "alice", "tee thesis < /etc/hostname").returncode == 0

    for words in (["--remove", "physicist"], ["--lock", "root"], ["--add", "physicist", "--no-sudo"]):
        assert "Nothing was changed" in platform.admin("users", *words, status=1)["failure"]
    platform.admin("users", "--remove", "alice", "--home", "archive")
    assert platform.login("alice", tmp_path / "alice", "true").returncode != 0
    assert "alice/thesis" in platform.root("cat /var/backups/homes/alice-*.tar.gz | tar tz")
    assert platform.root("ls -A /etc/ssh/authorized_keys.d /etc/sudoers.d; ls /home").count("alice") == 0
    platform.admin("users", "--remove", "bob")
    assert platform.root("stat -c '%U %a' /home/bob") == "root 700\n"
    assert platform.admin("users", "--remove", "alice", "--remove", "bob")["changed"] == []


@pytest.fixture
def own_firewall(platform: Platform) -> Iterator[None]:
    """The machine may set rules for its network, as others may; a container of this computer may not by itself."""
    uid = json.loads(platform.provision("show", "upkeep", "--json"))["uid"]
    settings = Path(f"/run/systemd/nspawn/provision-{uid}.nspawn")
    settings.parent.mkdir(exist_ok=True)
    settings.write_text("[Exec]\nCapability=CAP_NET_ADMIN\n")
    try:
        platform.provision("stop", "upkeep")
        platform.provision("start", "upkeep")
        yield
    finally:
        settings.unlink()


def reached(address: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(5)
        return probe.connect_ex((address, port)) == 0


def test_a_machine_is_hardened_and_nobody_is_shut_out(platform: Platform, own_firewall: None):
    platform.root("systemd-run --unit=other python3 -m http.server 9999")
    wait_until(lambda: reached(platform.address, 9999))

    predicted = platform.admin("hardening", "--check", status=1)
    assert reached(platform.address, 9999)
    done = platform.admin("hardening", status=(1 if _updates_wait(platform) else 0))
    assert set(predicted["changed"]) <= set(done["changed"])
    assert set(platform.bad(done)) <= {WAITING}
    assert not reached(platform.address, 9999)
    program, *words = platform.ssh("physicist", Path(os.devnull), "true")
    by_password = [program, "-o", "PubkeyAuthentication=no", *words]
    said = subprocess.run(by_password, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert "Permission denied (publickey)" in said.stderr
    again = platform.admin("hardening", status=(1 if _updates_wait(platform) else 0))
    assert again["changed"] == []

    # rules that admit other computers only: without anybody's doing the former ones come back
    rules = platform.root("nft list table inet platform")
    shut = platform.admin("hardening", "--source", "192.0.2.0/24", status=1)
    assert "the former ones are there again" in shut["failure"]
    assert platform.root("nft list table inet platform") == rules
    assert platform.run("true") == ""

    # what somebody has undone is told and repaired
    platform.root("rm /etc/ssh/sshd_config.d/00-platform-hardening.conf && systemctl reload ssh")
    platform.root("systemctl disable --now platform-firewall")
    predicted = platform.admin("hardening", "--port", "9999", "--check", status=1)
    assert "8 network: the firewall drops what is not admitted" in platform.bad(predicted)
    mended = platform.admin("hardening", "--port", "9999", status=(1 if _updates_wait(platform) else 0))
    assert set(platform.bad(mended)) <= {WAITING}
    assert set(predicted["changed"]) <= set(mended["changed"])
    assert reached(platform.address, 9999)
    platform.root("systemctl stop other")

    # a restart of the machine leaves it as it is
    platform.provision("stop", "upkeep")
    platform.provision("start", "upkeep")
    assert "policy drop" in platform.root("nft list table inet platform")


def _updates_wait(platform: Platform) -> bool:
    return "ecurity" in platform.root("apt-get --simulate --quiet upgrade | grep ^Inst || true")


def test_a_machine_that_may_not_set_rules_says_so(platform: Platform):
    platform.provision("stop", "upkeep")
    platform.provision("start", "upkeep")
    outcome = platform.admin("hardening", "--check", status=(1 if _updates_wait(platform) else 0))
    unknown = [finding["check"] for finding in outcome["report"]["findings"] if not finding["known"]]
    assert "8 network: the firewall drops what is not admitted" in unknown
    assert outcome["changed"] == []


def test_a_certificate_that_ends_is_renewed_and_served(platform: Platform, tmp_path: Path):
    playbook = [{"hosts": "platform", "become": True, "gather_facts": False,
                 "roles": [{"role": "web_proxy", "web_proxy_domain": DOMAIN}]}]  # fmt: skip
    (tmp_path / "proxy.yml").write_text(yaml.safe_dump(playbook))
    playbooks, program = REPOSITORY / "playbooks", Path(sys.executable).parent / "ansible-playbook"
    settings = {"ANSIBLE_CONFIG": str(playbooks / "ansible.cfg"), "LC_ALL": "C.UTF-8"}
    subprocess.run(
        [program, tmp_path / "proxy.yml", "-i", playbooks / "admin" / "inventory.sh"],
        env={**platform.provision.environment, **settings},
        check=True,
        capture_output=True,
    )
    assert platform.bad(platform.admin("certificates")) == []
    platform.root(
        f"cd /etc/web-proxy/internal/{DOMAIN}; openssl req -new -key server.pem -subj / -out request.pem;"
        " openssl x509 -req -in request.pem -CA ca.pem -CAkey ca.key -set_serial 7 -days 10 -out short.pem 2>/dev/null;"
        " openssl pkey -in server.pem >> short.pem; mv short.pem server.pem; systemctl reload nginx"
    )
    answer = f"openssl s_client -connect 127.0.0.1:443 -servername {DOMAIN} </dev/null 2>/dev/null"
    served = f"{answer} | openssl x509 -noout -serial"
    wait_until(lambda: platform.root(served) == "serial=07\n")

    predicted = platform.admin("certificates", "--check", status=1)
    assert platform.bad(predicted) == ["certificate of the web proxy"]
    assert platform.root(served) == "serial=07\n"
    renewed = platform.admin("certificates")
    assert "Renew the internal CA's certificate" in renewed["changed"]
    assert set(predicted["changed"]) <= set(renewed["changed"])
    wait_until(lambda: platform.root(served) != "serial=07\n")
    assert platform.admin("certificates")["changed"] == []


def test_what_is_old_goes_and_what_runs_stays(platform: Platform, tmp_path: Path):
    subprocess.run(["mlaas4hep", "example-data", tmp_path / "higgs", "--events", "300"],
                   env=platform.provision.environment, check=True, capture_output=True)  # fmt: skip
    platform.provision("train", "upkeep", str(tmp_path / "higgs"))
    job = json.loads(platform.run("sudo", "mlaas4hep", "job", "list", "--json"))[0]["identifier"]
    platform.root(f"touch -d '100 days ago' /var/lib/mlaas4hep/jobs/{job}/result.json")
    platform.root("echo old > /var/log/lab.log.1; touch -d '100 days ago' /var/log/lab.log.1")

    predicted = platform.admin("clean", "--jobs-days", "90", "--check")
    names = [finding["check"] for finding in predicted["report"]["findings"]]
    assert {f"job {job}", "log /var/log/lab.log.1"} <= set(names)
    assert all(finding["bytes"] > 0 for finding in predicted["report"]["findings"])
    assert platform.root(f"ls -d /var/lib/mlaas4hep/jobs/{job} /var/log/lab.log.1")
    assert platform.admin("clean")["changed"] and job in platform.run("sudo", "mlaas4hep", "job", "list")

    # somebody looks after the job: it is not touched, however old
    hold = "import pathlib, time; from mlaas4hep.service.attempts import hold"
    hold += f"; hold(pathlib.Path('/var/lib/mlaas4hep/jobs/{job}')); time.sleep(100000)"
    platform.root(f'systemd-run --unit=holder /opt/mlaas4hep/venv/bin/python -I -c "{hold}"')
    wait_until(lambda: not platform.admin("clean", "--jobs-days", "90", "--check")["report"]["findings"])
    platform.root("systemctl stop holder")
    platform.admin("clean", "--jobs-days", "90")
    assert job not in platform.run("sudo", "mlaas4hep", "job", "list")
    assert platform.admin("clean", "--jobs-days", "90")["changed"] == []


ASKED = (
    "curl -s -o /dev/null -w '%{http_code}' -H \"Authorization: Bearer $(cat FILE)\" http://127.0.0.1:8080/api/v1/me"
)


def test_a_new_token_counts_and_the_former_one_does_not(platform: Platform):
    token = "/var/lib/mlaas4hep/token"
    platform.root(f"cp {token} /run/former")
    assert platform.root(ASKED.replace("FILE", "/run/former")) == "200"
    assert platform.admin("rotate", "--check")["changed"] == ["Renew the token"]
    assert platform.root(ASKED.replace("FILE", "/run/former")) == "200"

    assert platform.bad(platform.admin("rotate")) == []
    assert platform.root(ASKED.replace("FILE", "/run/former")) == "401"
    assert platform.root(ASKED.replace("FILE", token)) == "200"
    assert platform.root(f"stat -c '%U %a' {token}") == "mlaas4hep 600\n"
    assert platform.provision("client", "upkeep", "me")

    # a service that does not start keeps its token
    settings, token_now = "/run/systemd/system/mlaas4hep.service.d", platform.root(f"sha256sum {token}")
    platform.root(f"mkdir -p {settings}; echo '[Service]' > {settings}/x.conf")
    platform.root(f"echo ExecStartPre=/bin/false >> {settings}/x.conf; systemctl daemon-reload")
    assert "former one counts again" in platform.admin("rotate", status=1)["failure"]
    assert platform.root(f"sha256sum {token}") == token_now
    platform.root(f"rm -r {settings}; systemctl daemon-reload; systemctl reset-failed; systemctl start mlaas4hep")


def test_what_differs_from_what_was_declared_is_told_and_not_changed(platform: Platform):
    clean = platform.admin("audit")
    assert any("physicist from" in line for line in clean["report"]["logins"])
    assert any(line.endswith("physicist as root: /bin/sh") for line in clean["report"]["sudo"])

    platform.root("echo '# by hand' >> /etc/mlaas4hep/service.toml")
    changed = platform.root("sha256sum /etc/mlaas4hep/service.toml")
    told = platform.admin("audit")
    # a checkout that was changed since is another framework, which is told each time
    assert set(told["changed"]) - set(clean["changed"]) >= {"mlaas4hep : Write the settings"}
    assert "-# by hand" in Path(told["log"]).read_text()
    assert platform.root("sha256sum /etc/mlaas4hep/service.toml") == changed
