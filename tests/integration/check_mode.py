"""Whether check mode changes nothing, and tells exactly what is changed without it.

`STATE` is a program that tells the state of a machine: of each file of its settings and data, of packages, units and
accounts. What changes by itself is left out of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable

STATE = r"""
import hashlib, json, os, re, subprocess
from pathlib import Path
TOPS = ("/etc", "/opt", "/srv", "/usr/local", "/var/lib/mlaas4hep", "/var/lib/platform-backup")
# the service's own counting, what jobs do, what Python compiles, and what restic remembers of a repository
LEFT = re.compile(
    r"/__pycache__/|[.]pyc$|/var/lib/mlaas4hep/(metrics|cache)/|[.]sqlite|[.]lock$"
    r"|/var/lib/mlaas4hep/jobs/[^/]+/(usage[.]json$|work/)|/var/lib/platform-backup/(cache/|lock)|/etc/ld.so.cache|/srv/.*/locks/"
)
state = {}
for top in TOPS:
    for folder, _, names in os.walk(top):
        for path in [folder, *(f"{folder}/{name}" for name in names)]:
            if LEFT.search(path + "/") or LEFT.search(path):
                continue
            try:
                facts = os.lstat(path)
                told = [oct(facts.st_mode), facts.st_uid, facts.st_gid]
                if os.path.islink(path):
                    told.append(os.readlink(path))
                elif os.path.isfile(path):
                    told.append(facts.st_size)
                    if not re.match("/opt/[^/]+/venv-", path) and facts.st_size < 2**24:
                        told.append(hashlib.sha256(Path(path).read_bytes()).hexdigest())
            except FileNotFoundError:
                continue
            state[path] = told
def said(*words):
    try:
        return subprocess.run(words, capture_output=True, text=True).stdout
    except OSError:
        return ""
for line in said("dpkg-query", "--show", "--showformat=${Package} ${Version} ${db:Status-Status}\n").splitlines():
    state["package " + line.split()[0]] = line
for line in said("systemctl", "list-unit-files", "--plain", "--no-legend").splitlines():
    if line.split()[1] != "transient":
        state["unit " + line.split()[0]] = line.split()[1]
for unit in ("mlaas4hep", "platform-jupyter", "nginx", "ssh", "fail2ban", "platform-firewall", "platform-backup.timer"):
    state["start of " + unit] = said("systemctl", "show", "-p", "ActiveEnterTimestampMonotonic", unit)
for name in ("passwd", "group", "shadow"):
    state["accounts in " + name] = said("getent", name)
state["firewall"] = said("nft", "list", "ruleset")
print(json.dumps(state))
"""


def the_same(before: str, after: str) -> None:
    """Fails unless two states are equal, with what was and is of each thing that differs."""
    one, other = json.loads(before), json.loads(after)
    differs = {name: (one.get(name), other.get(name)) for name in {*one, *other} if one.get(name) != other.get(name)}
    assert not differs, differs


def compared(
    state: Callable[[], str],
    run: Callable[..., list[str]],
    unpredicted: set[str] = frozenset(),
    again: set[str] = frozenset(),
) -> list[str]:
    """Run something in check mode, then for real, then again; returns what it changed.

    Args:
        state: tells the machine's state, by STATE.
        run: runs it, with `--check` if that is given; returns the names of the tasks that changed something.
        unpredicted: tasks that check mode cannot foresee.
        again: tasks that change something each time.
    """
    before = state()
    predicted = run("--check")
    the_same(before, state())
    done = run()
    differs = {"only predicted": sorted(set(predicted) - set(done)), "only done": sorted(set(done) - set(predicted))}
    assert differs == {"only predicted": [], "only done": sorted(unpredicted)}, differs
    left = [task for task in run() if task not in again]
    assert not left, left
    return done
