"""The verbs of `provision admin`: which platforms are meant, what playbooks get, what is told of the outcome."""

from __future__ import annotations

import json
import re
import socket
import subprocess
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from provision.admin import REPORT, VERBS, Option, Outcome, Verb, _Watch, chosen, inventory, run_verb, variables_of
from provision.cli import app
from provision.errors import UsageError
from provision.record import Access, Home, Record
from provision.remote import make_key, write_known_hosts, write_ssh_config
from provision.spec import make_spec
from tests.conftest import REPOSITORY
from tests.unit.roles.test_interfaces import run_playbook

PLAYBOOKS = REPOSITORY / "playbooks" / "admin"


@pytest.fixture
def home(user_home: Path) -> Home:
    """Three platforms of this computer: two are ready, none answers."""
    home = Home()
    for name, state in (("lab1", "ready"), ("lab2", "ready"), ("raw", "bare")):
        folder = home.folder(name)
        spec = make_spec({"name": name})
        access = Access(host="127.0.0.1", user="physicist", port=closed_port())
        folder.save(
            Record(name=name, uid=f"{name}uid", owner="test", toolkit="0", spec=spec, state=state, access=access)
        )
        write_known_hosts(folder, f"{name}uid", make_key(folder.key, name))
        write_ssh_config(folder, f"{name}uid", access)
    return home


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(
    ("names", "limit", "meant"),
    [
        ([], "", ["lab1", "lab2"]),
        (["lab2", "lab1", "lab2"], "", ["lab1", "lab2"]),
        ([], "lab*,!lab2", ["lab1"]),
        ([], "!lab1", ["lab2"]),
        (["lab1"], "lab?", ["lab1"]),
    ],
)
def test_names_and_patterns_tell_which_platforms_are_meant(home: Home, names: list[str], limit: str, meant: list[str]):
    assert [folder.name for folder in chosen(home, names, limit)] == meant


@pytest.mark.parametrize(
    ("names", "limit", "words"),
    [(["lab9"], "", "no platform 'lab9'"), (["raw"], "", "raw is not ready"), ([], "web*", "No platform is meant")],
)
def test_platforms_that_cannot_be_meant_are_refused(home: Home, names: list[str], limit: str, words: str):
    with pytest.raises(UsageError, match=words):
        chosen(home, names, limit)


def test_a_platform_that_is_not_configured_can_be_looked_at(home: Home):
    assert [folder.name for folder in chosen(home, ["raw"], unready=True)] == ["raw"]


VERB = Verb(
    "try",
    "Try.",
    (
        Option("packages", "try_packages", "Which.", choices=("all", "security")),
        Option("wait", "try_wait", "Seconds.", int),
        Option("file", "try_file", "A file.", Path),
        Option("add", "try_add", "Words.", list),
        Option("reboot", "try_reboot", "Whether.", bool),
    ),
)


def test_only_options_that_are_given_become_variables(tmp_path: Path):
    (tmp_path / "key").write_text("")
    given = {"try_packages": "all", "try_wait": 0, "try_file": tmp_path / "key", "try_add": [], "try_reboot": False}
    assert variables_of(VERB, given) == {
        "try_packages": "all",
        "try_wait": 0,
        "try_file": str(tmp_path / "key"),
        "try_reboot": False,
    }
    assert variables_of(VERB, {"try_add": ("a", "b")}) == {"try_add": ["a", "b"]}
    assert variables_of(VERB, {}) == {}


def test_wrong_options_are_refused_before_anything_is_done(tmp_path: Path):
    with pytest.raises(UsageError, match=r"--packages is 'some'\. Give one of all, security"):
        variables_of(VERB, {"try_packages": "some"})
    with pytest.raises(UsageError, match=r"nowhere \(--file\) does not exist"):
        variables_of(VERB, {"try_file": tmp_path / "nowhere"})


def test_the_inventory_groups_platforms_and_checks_host_keys(home: Home):
    listing = inventory(home, chosen(home, []))
    assert listing["platform"]["hosts"] == listing["cloud_local"]["hosts"] == ["lab1", "lab2"]
    assert listing["service_personal"]["hosts"] == listing["executor_local"]["hosts"] == ["lab1", "lab2"]
    folder = home.folder("lab1")
    host = listing["_meta"]["hostvars"]["lab1"]
    assert host["ansible_ssh_common_args"] == f'-F "{folder.ssh_config}"'
    assert (host["platform_name"], host["platform_uid"]) == ("lab1", "lab1uid")
    assert "StrictHostKeyChecking yes" in folder.ssh_config.read_text()


def test_the_inventory_script_is_what_ansible_reads(home: Home, tmp_path: Path):
    (tmp_path / "provision").symlink_to("/nonexistent")
    done = CliRunner().invoke(app, ["admin", "inventory", "--list"])
    assert done.exit_code == 0
    script = tmp_path / "inventory.py"
    script.write_text(f"#!/bin/sh\ncat <<'END'\n{done.stdout}\nEND\n")
    script.chmod(0o755)
    look = tmp_path / "look.yml"
    look.write_text(
        yaml.safe_dump([{"hosts": "platform", "gather_facts": False, "connection": "local", "tasks": [
            {"ansible.builtin.debug": {"msg": "{{ platform_name }} of {{ group_names | sort }}"}}]}])
    )  # fmt: skip
    done_there = run_playbook(tmp_path, "-i", str(script), str(look))
    assert "lab2 of ['cloud_local', 'executor_local', 'platform', 'service_personal']" in done_there.stdout
    assert (
        json.loads(CliRunner().invoke(app, ["admin", "inventory", "--host", "lab1"]).stdout)["platform_name"] == "lab1"
    )
    assert "provision admin inventory" in (PLAYBOOKS / "inventory.sh").read_text()
    assert (PLAYBOOKS / "inventory.sh").stat().st_mode & 0o111


def test_platforms_that_are_not_reached_are_told_one_by_one(home: Home):
    told: list[Outcome] = []
    folders = chosen(home, [])
    outcomes = run_verb(home, VERBS[0], folders, {}, lambda _: None, told.append, serial=1, max_failures=0)
    assert told == outcomes
    assert [(outcome.name, outcome.state) for outcome in outcomes] == [("lab1", "unreachable"), ("lab2", "not tried")]
    assert "the machine was not reached" in outcomes[0].failure
    assert "UNREACHABLE" in Path(outcomes[0].log).read_text()
    assert not any(outcome.good for outcome in outcomes)


def test_the_command_tells_its_outcome_as_json_and_by_its_status(provision, home: Home):
    done = provision.run("admin", "health", "--all", "--json")
    assert done.returncode == 1
    assert "health failed on 2 of 2 platforms; on lab1: the machine was not reached" in done.stderr
    told = json.loads(done.stdout)
    assert [(one["name"], one["state"]) for one in told["platforms"]] == [
        ("lab1", "unreachable"),
        ("lab2", "unreachable"),
    ]
    assert "Name the platforms, or give --all" in provision.fails("admin", "health", status=2)
    assert "Name the platforms, or give --all" in provision.fails("admin", "health", "lab1", "--all", status=2)


def test_a_bad_finding_is_no_success():
    outcome = Outcome("lab", report={"findings": [{"check": "disk", "good": False, "words": "full"}]})
    assert not outcome.good
    assert Outcome("lab", report={"findings": [{"check": "disk", "good": True}]}).good


def test_what_handlers_do_is_told_as_it_begins(tmp_path: Path):
    told: list[str] = []
    watch = _Watch({"lab": Outcome("lab", log=str(tmp_path / "log"))}, {"lab": ["lab"]}, told.append)
    for event in ("playbook_on_task_start", "playbook_on_handler_task_start"):
        watch({"event": event, "event_data": {"task": "Restart the service", "role": "mlaas4hep"}})
    assert told == ["mlaas4hep : Restart the service"] * 2


def test_what_a_worker_does_is_told_of_its_platform(tmp_path: Path):
    outcomes = {name: Outcome(name, log=str(tmp_path / name)) for name in ("pair", "lab")}
    watch = _Watch(outcomes, {"pair": ["pair", "pair-w1"], "lab": ["lab"]}, lambda _: None)
    for host in ("pair-w1", "pair", "pair-w1"):
        watch({"event": "runner_on_ok", "event_data": {"host": host, "task": "Set", "res": {"changed": True}}})
    watch({"event": "runner_on_failed", "event_data": {"host": "pair-w1", "task": "Go", "res": {"msg": "no room"}}})
    watch({"event": "runner_on_failed", "event_data": {"host": "pair", "task": "Check", "res": {"msg": "not all"}}})
    watch({"event": "playbook_on_stats", "event_data": {"failures": {"pair-w1": 1}}})
    pair, lab = watch.outcomes(2, 1)
    assert (pair.state, pair.changed, pair.failure) == ("failed", ["Set"], "pair-w1: Go: no room; Check: not all")
    assert (lab.state, lab.changed, lab.failure) == ("ok", [], "")


def test_machines_of_a_cluster_know_each_other_among_many_platforms(home: Home):
    folder = home.folder("lab2")
    record = folder.load()
    record.spec = record.spec.model_copy(update={"workers": 2})
    folder.save(record)
    listing = inventory(home, chosen(home, []))
    known = listing["_meta"]["hostvars"]
    assert listing["platform"]["hosts"] == ["lab1", "lab2"]
    assert listing["workers"]["hosts"] == ["lab2-w1", "lab2-w2"]
    told = {name: (facts["platform_machine"], facts["platform_workers"]) for name, facts in known.items()}
    cluster = ("lab2", ["lab2-w1", "lab2-w2"])
    assert told == {"lab1": ("lab1", []), "lab2": cluster, "lab2-w1": cluster, "lab2-w2": cluster}


def test_every_playbook_is_a_verb_and_is_parsed(tmp_path: Path):
    names = {verb.name for verb in VERBS}
    assert names == {path.stem for path in PLAYBOOKS.glob("*.yml")}
    inventory = tmp_path / "inventory.yml"
    inventory.write_text("platform: {hosts: {machine: {}}}\n", encoding="utf-8")
    files = [str(PLAYBOOKS / f"{name}.yml") for name in sorted(names)]
    done = run_playbook(tmp_path, "--syntax-check", "-i", str(inventory), *files)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_options_of_a_verb_are_variables_of_its_playbook(verb: Verb):
    words = (PLAYBOOKS / f"{verb.name}.yml").read_text()
    roles = [path.read_text() for role in re.findall(r"(?:name|role): (\w+)$", words, re.M)
             for path in (REPOSITORY / "roles" / role).rglob("*.yml")]  # fmt: skip
    for option in verb.options:
        assert any(re.search(rf"\b{option.variable}\b", text) for text in (words, *roles)), option.variable
    if REPORT in words:
        assert f"- name: {REPORT}\n" in words


def test_every_verb_is_documented():
    text = (REPOSITORY / "docs" / "administration.md").read_text(encoding="utf-8")
    for verb in VERBS:
        assert f"`{verb.name}`" in text, verb.name
        for option in verb.options:
            assert f"--{option.name}" in text, f"{verb.name} --{option.name}"


def test_the_playbooks_folder_is_in_the_wheel():
    configuration = (REPOSITORY / "pyproject.toml").read_text()
    assert '"playbooks" = "provision/_share/playbooks"' in configuration
    done = subprocess.run(["git", "check-ignore", PLAYBOOKS / "health.yml"], cwd=REPOSITORY, check=False)
    assert done.returncode == 1
