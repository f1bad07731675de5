"""The role `monitoring`: rules and dashboard are examined by Prometheus' own programs, and by what is really told."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import jinja2
import pytest
import yaml

from provision.configure import run_playbook
from provision.record import Folder, Home
from provision.remote import Remote
from provision.top import Looks, lines, look
from tests.conftest import REPOSITORY, Command, long
from tests.debian import do_without, lacking
from tests.integration.data_servers import PROGRAMS, nginx_server, xrootd_server
from tests.pages.packages import fetch
from tests.platform_programs import Programs
from tests.unit.mlaas4hep.service_parts import running, until

ROLE = REPOSITORY / "roles/monitoring"
DASHBOARD = json.loads((ROLE / "files/platform.dashboard.json").read_text())
RULES = [
    rule
    for group in yaml.safe_load((ROLE / "files/platform.rules.yml").read_text())["groups"]
    for rule in group["rules"]
]
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]
NEEDED = {"promtool": "prometheus", "prometheus-node-exporter": "prometheus-node-exporter"}
PATIENCE = 300.0


@pytest.fixture(scope="module", autouse=True)
def _programs() -> None:
    """Skips where Prometheus' programs cannot be had; under CI that is a failure."""
    if reason := lacking(NEEDED | PROGRAMS | {"xrdfs": "xrootd-client"}):
        do_without(reason)


def promtool(folder: Path, *words: str) -> None:
    done = subprocess.run(["promtool", *words], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_are_raised_when_they_should_be(tmp_path: Path):
    shutil.copy(ROLE / "files/platform.rules.yml", tmp_path)
    shutil.copy(Path(__file__).parent / "monitoring/platform.rules.test.yml", tmp_path)
    promtool(tmp_path, "check", "rules", "platform.rules.yml")
    promtool(tmp_path, "test", "rules", "platform.rules.test.yml")


def test_every_query_of_the_dashboard_is_one(tmp_path: Path):
    queries = [query.replace("$instance", ".*") for query in QUERIES]
    rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(queries)]
    (tmp_path / "queries.yml").write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    promtool(tmp_path, "check", "rules", "queries.yml")
    assert len(rules) > 30
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    squares = [
        (x, y)
        for grid in (panel["gridPos"] for panel in panels)
        for x in range(grid["x"], grid["x"] + grid["w"])
        for y in range(grid["y"], grid["y"] + grid["h"])
    ]
    assert len(set(squares)) == len(squares), "panels lie on each other"


@pytest.fixture(scope="module")
def grafana_types(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with Grafana's own types of dashboards, and TypeScript."""
    if reason := lacking({"node": "nodejs", "npm": "npm"}):
        do_without(reason)
    folder = tmp_path_factory.mktemp("grafana")
    for name, pin in json.loads((Path(__file__).parent / "monitoring/grafana.json").read_text()).items():
        with tarfile.open(fetch(name, pin["version"], pin["integrity"])) as archive:
            archive.extractall(folder / Path(name).name, filter="data")
    return folder


def mistakes(dashboard: dict[str, Any], folder: Path) -> list[str]:
    """What Grafana's types refuse of a dashboard: unknown names, wrong values, and what is missing."""
    head = (Path(__file__).parent / "monitoring/dashboard.ts").read_text()
    (folder / "dashboard.ts").write_text(head + json.dumps(dashboard, indent=1))
    words = ["--noEmit", "--strict", "--skipLibCheck", "--module", "esnext", "--moduleResolution", "bundler"]
    compiler = ["node", "typescript/package/bin/tsc", *words, "dashboard.ts"]
    done = subprocess.run(compiler, cwd=folder, capture_output=True, text=True, check=False)
    assert bool(done.returncode) == bool(done.stdout), done.stderr
    return done.stdout.splitlines()


def test_the_dashboard_is_one_by_the_types_of_grafana(grafana_types: Path):
    assert mistakes(DASHBOARD, grafana_types) == []
    for one in (mistaken := json.loads(json.dumps(DASHBOARD)))["panels"]:
        if one["type"] == "stat":
            one["fieldConfig"]["defaults"]["minimum"] = 0
    mistaken["templating"]["list"][0]["type"] = "datasources"
    said = "\n".join(mistakes(mistaken, grafana_types))
    assert all(word in said for word in ("minimum", "datasources"))


@pytest.mark.parametrize("chosen", [{}, {"monitoring_service": False, "monitoring_alertmanagers": ["192.0.2.7:9093"]}])
def test_the_settings_are_those_of_a_prometheus(chosen: dict[str, Any], tmp_path: Path):
    engine = jinja2.Environment(trim_blocks=True, undefined=jinja2.StrictUndefined)
    engine.filters["to_json"] = json.dumps
    variables = yaml.safe_load((ROLE / "defaults/main.yml").read_text())
    variables |= {"ansible_managed": "Ansible", "monitoring_platform": "higgs", "monitoring_service": True, **chosen}
    text = engine.from_string((ROLE / "templates/platform.yml.j2").read_text()).render(variables)
    (tmp_path / "platform.yml").write_text(text)
    promtool(tmp_path, "check", "config", "--syntax-only", "platform.yml")
    assert ("8080" in text, "9093" in text) == (not chosen, bool(chosen))


@pytest.fixture(scope="module")
def emitted(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names of all figures that a node exporter and a service tell, both of them running."""
    folder = tmp_path_factory.mktemp("figures")
    programs = Programs(folder)
    programs.put_all()
    environment = {**os.environ, "PATH": f"{programs.folder}:{os.environ['PATH']}"}
    with xrootd_server() as xrootd, nginx_server() as nginx:
        words = ["--xrootd", f"localhost:{xrootd.ports['root']}", "--tls-port", str(nginx.ports["tls"])]
        collector = [sys.executable, "-I", str(ROLE / "files/platform-metrics"), *words, str(folder / "platform.prom")]
        subprocess.run(collector, env=environment, check=True)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    options = [f"--web.listen-address=127.0.0.1:{port}", f"--collector.textfile.directory={folder}"]
    with subprocess.Popen(
        ["prometheus-node-exporter", *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as exporter:
        try:
            text = until(lambda: scraped(f"http://127.0.0.1:{port}/metrics") or exporter.poll(), lambda found: found)
        finally:
            exporter.terminate()
    assert isinstance(text, str), "the node exporter has ended"
    assert "node_textfile_scrape_error 0" in text
    with running(folder) as service:
        text += scraped(f"{service.url}/metrics")
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)", text, re.MULTILINE))
    histograms = [name for name, kind in kinds.items() if kind == "histogram"]
    return {*kinds, *(f"{name}_{part}" for name in histograms for part in ("bucket", "count", "sum"))}


def scraped(address: str) -> str:
    try:
        return httpx.get(address, trust_env=False, timeout=PATIENCE).text
    except httpx.ConnectError:
        return ""


def test_every_figure_that_rules_and_dashboard_use_is_told(emitted: set[str]):
    known = emitted | {"up", "ALERTS"} | {rule["record"] for rule in RULES if "record" in rule}
    names = re.compile(r"\b(?:node|mlaas4hep|platform)_\w+|\bplatform:[\w:]+|\bup\b|\bALERTS\b")
    for query in [*QUERIES, *(rule["expr"] for rule in RULES)]:
        used = names.findall(query)
        assert used, query
        assert set(used) <= known, f"{set(used) - known} of {query}"


@pytest.fixture(scope="module")
def watched(computer_with_machines: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Folder]:
    """A machine of this computer with a Prometheus; its service is not there."""
    provision = Command(tmp_path_factory.mktemp("home"))
    folder = Home(provision.home / "provision").folder("watched")
    try:
        provision("create", "watched", "--cloud", "local", "--disk", "10GB", "--bare", "--yes")
        applied(folder)
        yield folder
    finally:
        provision("delete", "watched", "--yes")


def applied(folder: Folder, check: bool = False) -> list[str]:
    """Apply the role as a creation does; returns the tasks of it that have changed something."""
    variables = {"platform_name": "watched", "monitoring_kind": "prometheus", "mlaas4hep_service": "personal"}
    tags = ("base", "monitoring")
    result = run_playbook(folder, "platform.yml", variables, lambda _: None, check=check, tags=tags)
    return [task for task in result.changed_tasks if task.startswith("monitoring")]


@pytest.fixture
def remote(watched: Folder) -> Iterator[Remote]:
    with Remote(watched) as found:
        yield found


def asked(remote: Remote, path: str) -> Any:
    """What the platform's Prometheus answers."""
    address = f"http://127.0.0.1:9090/api/v1/{path}"
    return json.loads(remote.run(["curl", "-s", "--noproxy", "*", address], check=False) or "{}").get("data")


def patiently(ask: Callable[[], Any], true: Callable[[Any], object]) -> Any:
    end = time.monotonic() + PATIENCE
    while not true(answer := ask()):
        assert time.monotonic() < end, answer
        time.sleep(2)
    return answer


def health(remote: Remote) -> dict[str, str]:
    targets = (asked(remote, "targets") or {}).get("activeTargets", [])
    return {target["labels"]["job"]: target["health"] for target in targets}


def property_of(remote: Remote, unit: str, name: str) -> str:
    return remote.run(["systemctl", "show", "--value", f"--property={name}", unit]).strip()


@long
@pytest.mark.machine
class TestOnThisComputer:
    """The role on a machine, of which a Prometheus watches everything but the service, which is down."""

    def test_everything_is_asked_and_only_by_the_machine_itself(self, remote: Remote):
        wanted = {"node": "up", "mlaas4hep": "down", "prometheus": "up"}
        patiently(lambda: health(remote), lambda found: found == wanted)
        assert len(asked(remote, "rules")["groups"]) == 5
        listening = remote.run(["ss", "-Hltn"]).split()
        assert {"127.0.0.1:9100", "127.0.0.1:9090"} <= set(listening)
        assert not [word for word in listening if word.endswith((":9100", ":9090")) and "127.0.0.1" not in word]
        for unit in ("prometheus-node-exporter", "prometheus"):
            assert property_of(remote, unit, "User") == "prometheus"
        found = patiently(lambda: asked(remote, "query?query=platform_jobs_running")["result"], bool)
        assert found[0]["metric"]["instance"] == "watched"
        assert len(patiently(lambda: asked(remote, "query?query=platform:disk_free:ratio")["result"], bool)) == 1

    def test_the_role_changes_nothing_when_it_is_applied_again(self, watched: Folder):
        assert applied(watched, check=True) == []
        assert applied(watched) == []

    @pytest.mark.parametrize("unit", ["prometheus-node-exporter", "prometheus"])
    def test_what_is_killed_comes_back(self, unit: str, remote: Remote):
        before = property_of(remote, unit, "MainPID")
        remote.run(["sudo", "systemctl", "kill", "--signal=KILL", "--kill-whom=main", unit])
        patiently(lambda: property_of(remote, unit, "MainPID"), lambda found: found not in ("0", before))
        patiently(lambda: health(remote), lambda found: found.get("node") == "up")

    def test_a_service_that_is_down_is_told_and_seen(self, remote: Remote):
        def firing() -> list[str]:
            found = (asked(remote, "alerts") or {}).get("alerts", [])
            return [alert["labels"]["alertname"] for alert in found if alert["state"] == "firing"]

        patiently(firing, lambda names: "ServiceDown" in names)
        view = Looks(look(remote), look(remote)).view()
        assert "ServiceDown" in view.alerts and view.queue is None
        assert view.cpu_percent is not None and 0 <= view.cpu_percent <= 101
        assert "does not answer" in "\n".join(lines("watched", view))
