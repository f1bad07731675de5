#!/usr/bin/python3
"""Looks at everything that a platform needs, and prints what it found as JSON; changes nothing.

It uses nothing but the standard library: it has to work where the framework does not.

    health.py FACTS     FACTS: JSON with `now` (the asker's time in seconds since 1970) and the limits below
"""

import glob
import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from datetime import datetime
from pathlib import Path

LIMITS = {"free_gb": 2, "free_percent": 5, "certificate_days": 20, "backup_hours": 36, "clock_seconds": 60}
DATA = "/var/lib/mlaas4hep"
VENV = "/opt/mlaas4hep/venv"
BACKUP = "/var/lib/platform-backup/last.json"
CERTIFICATES = ("/etc/web-proxy/own.pem", "/etc/web-proxy/internal/*/server.pem", "/etc/letsencrypt/live/*/cert.pem",
                "/etc/grid-security/hostcert.pem")  # fmt: skip
# unit -> the file without which the platform does not need it
UNITS = {
    "mlaas4hep.service": "/etc/systemd/system/mlaas4hep.service",
    "nginx.service": "/etc/web-proxy",
    "slurmctld.service": "/etc/systemd/system/slurmctld.service.d/mlaas4hep.conf",
    "slurmd.service": "/etc/systemd/system/slurmd.service.d/mlaas4hep.conf",
    "slurmrestd.service": "/etc/systemd/system/slurmrestd.service.d/mlaas4hep.conf",
    "platform-jupyter.service": "/etc/systemd/system/platform-jupyter.service",
    "platform-jupyterhub.service": "/etc/systemd/system/platform-jupyterhub.service",
    "platform-jupyter-ports.service": "/etc/systemd/system/platform-jupyter-ports.service",
    "platform-backup.timer": "/etc/platform-backup/backup.json",
}
NODES_AT_WORK = {"idle", "mixed", "allocated", "completing"}


def output(*words):
    """What a command prints; nothing where it is missing or hangs."""
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def finding(check, good, words, remedy=""):
    """One finding."""
    return {"check": check, "good": bool(good), "words": words, "remedy": "" if good else remedy}


def get(path, port=8080):
    """Status and text that the service answers, 0 and the reason when it does not."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
            return answer.status, answer.read(2**22).decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read(2000).decode(errors="replace")
    except (OSError, ValueError) as error:
        return 0, str(error)


def services(root):
    """Units that the platform needs, and those that failed."""
    for unit, needed in UNITS.items():
        if (root / needed.lstrip("/")).exists():
            state = output("systemctl", "is-active", unit) or "unknown"
            yield finding(
                unit, state == "active", state, f"`journalctl --unit {unit}` tells why; `systemctl start {unit}`"
            )
    failed = [line.split()[0] for line in output("systemctl", "--failed", "--plain", "--no-legend").splitlines()]
    yield finding("failed units", not failed, ", ".join(failed) or "none", "`systemctl status UNIT` tells why.")


def service(root):
    """What the service says of itself, of its queue, and of which framework it is."""
    if not (root / UNITS["mlaas4hep.service"].lstrip("/")).exists():
        return
    status, said = get("/ready")
    words = "ready" if status == 200 else f"{status or 'no answer'}: {said[:200].strip()}"
    yield finding("service", status == 200, words, "`journalctl --unit mlaas4hep.service` tells why.")
    status, said = get("/v2/health/ready", 8081)
    yield finding("inference", status == 200, "ready" if status == 200 else f"{status or 'no answer'}: {said[:200].strip()}",
                  "`journalctl --unit mlaas4hep.service` tells why.")  # fmt: skip
    yield from queue(root, get("/metrics"))
    yield framework(root)


def queue(root, answer):
    """How many jobs wait and run."""
    status, text = answer
    if status != 200:
        return
    phases = {
        phase: int(float(count)) for phase, count in re.findall(r'^mlaas4hep_jobs\{phase="(\w+)"\} (\S+)', text, re.M)
    }
    running = sum(phases.get(phase, 0) for phase in ("handing", "handed"))
    held = ", held: the service is drained" if drained(root) else ""
    yield finding("queue", True, f"{running} running, {phases.get('waiting', 0)} waiting{held}")


def nodes(root):
    """The nodes of a Slurm that is controlled here."""
    if not (root / UNITS["slurmctld.service"].lstrip("/")).exists():
        return
    states = [line.split() for line in output("sinfo", "--noheader", "--Node", "--format=%N %T").splitlines()]
    # a mark behind the state tells more: * is a node that does not answer
    lacking = [f"{node} is {state}" for node, state in states if state not in NODES_AT_WORK]
    words = ", ".join(lacking) or f"{len(states)} at work"
    yield finding(
        "nodes", states and not lacking, words, "`scontrol show node NAME` tells why; `systemctl status slurmd` there."
    )


def drained(root):
    """Whether no new jobs are taken (see `mlaas4hep.service.draining`)."""
    try:
        until = json.loads((root / DATA.lstrip("/") / "drained.json").read_text()).get("until")
    except FileNotFoundError:
        return False
    except (OSError, ValueError, AttributeError):
        return True
    return until is None or until > time.time()


def framework(root):
    """Whether the running service is the installed one: an update that was broken off may not have restarted it."""
    link = root / VENV.lstrip("/")
    installed = os.path.basename(os.readlink(link)) if link.is_symlink() else ""
    loaded = environments(output("systemctl", "show", "--property=MainPID", "--value", "mlaas4hep.service"))
    good = bool(installed) and loaded <= {installed}
    words = installed or "none is installed"
    if not good and installed:
        words = f"{installed}, but the service runs {', '.join(sorted(loaded))}"
    return finding("framework", good, words, "`provision admin update NAME` completes what was broken off.")


def environments(pid):
    """The virtual environments out of which a process and its children have loaded libraries."""
    found = set()
    if pid and pid != "0":
        try:
            maps = Path(f"/proc/{pid}/maps").read_text()
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        except OSError:
            return found
        found |= set(re.findall(r"/opt/mlaas4hep/(venv-\w+)/", maps))
        for child in children:
            found |= environments(child)
    return found


def disks(root, limits):
    """Free space and inodes."""
    seen = set()
    for place in ("/", DATA):
        path = root / place.lstrip("/")
        if not path.exists() or path.stat().st_dev in seen:
            continue
        seen.add(path.stat().st_dev)
        room = os.statvfs(path)
        free, share = room.f_bavail * room.f_frsize / 2**30, 100 * room.f_bavail / max(room.f_blocks, 1)
        inodes = 100 * room.f_favail / room.f_files if room.f_files else 100
        good = free >= limits["free_gb"] and share >= limits["free_percent"] and inodes >= limits["free_percent"]
        words = f"{free:.1f} GB free ({share:.0f} %)" + (f", inodes {inodes:.0f} %" if inodes < 20 else "")
        yield finding(f"disk of {place}", good, words, "Remove old jobs or data, or give the machine a larger disk.")


def memory(root):
    """Memory that programs can still have."""
    facts = dict(re.findall(r"^(\w+):\s+(\d+)", (root / "proc/meminfo").read_text(), re.M))
    free, whole = int(facts["MemAvailable"]) / 2**20, int(facts["MemTotal"]) / 2**20
    return finding(
        "memory", free > 0.02 * whole, f"{free:.1f} of {whole:.1f} GB free", "See what uses it: `systemd-cgtop`."
    )


def gpus(root):
    """Each GPU of the machine, and whether the driver has it."""
    vendors = [Path(path) for path in glob.glob(str(root / "sys/bus/pci/devices/*/vendor"))]
    # classes 0x03 are displays and 3D controllers
    wanted = [v for v in vendors if v.read_text().strip() == "0x10de"
              and v.with_name("class").read_text().startswith("0x03")]  # fmt: skip
    if not wanted:
        return
    fields = "name,temperature.gpu,ecc.errors.uncorrected.volatile.total"
    lines = output("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits").splitlines()
    cells = [[cell.strip() for cell in line.split(",")] for line in lines if line.count(",") == 2]
    errors = [name for name, _, count in cells if count.isdigit() and int(count)]
    good = len(cells) >= len(wanted) and not errors
    words = ", ".join(f"{name} {degrees} C" for name, degrees, _ in cells) or "the driver shows none"
    yield finding("GPU", good, words + (f", memory errors on {', '.join(errors)}" if errors else ""),
                  "`nvidia-smi` and `dmesg` tell more; `provision admin gpu` looks after the driver.")  # fmt: skip


def certificates(root, limits, now):
    """Days that each certificate is still valid."""
    for pattern in CERTIFICATES:
        for path in sorted(glob.glob(str(root / pattern.lstrip("/")))):
            end = output("openssl", "x509", "-noout", "-enddate", "-in", path).removeprefix("notAfter=")
            try:
                days = (datetime.strptime(end, "%b %d %H:%M:%S %Y GMT") - datetime(1970, 1, 1)).total_seconds() / 86400
                days -= now / 86400
            except ValueError:
                yield finding(f"certificate {path}", False, "it cannot be read", "See what is in the file.")
                continue
            good = days >= limits["certificate_days"]
            yield finding(
                f"certificate {path}", good, f"{days:.0f} days left", "`provision admin certificates` renews it."
            )


def backup(root, limits, now):
    """When the last backup ended, and how."""
    if not (root / UNITS["platform-backup.timer"].lstrip("/")).exists():
        return finding("backup", True, "none is set up")
    again = "`provision admin backup NAME` makes one; `journalctl --unit platform-backup.service` tells of the last."
    try:
        last = json.loads((root / BACKUP.lstrip("/")).read_text())
        hours = (now - last["ended"]) / 3600
    except (OSError, ValueError, KeyError):
        return finding("backup", False, "there was none yet", again)
    if not last.get("ok"):
        return finding("backup", False, f"the last one failed: {last.get('reason', '')[:300]}", again)
    return finding("backup", hours <= limits["backup_hours"], f"{hours:.1f} hours old", again)


def clock(limits, now):
    """How far the machine's clock is from the asker's."""
    off = time.time() - now
    good = abs(off) <= limits["clock_seconds"]
    return finding(
        "clock", good, f"{off:+.0f} s off", "`timedatectl` tells whether the machine takes its time from a server."
    )


def health(facts, root=Path("/")):
    """All findings."""
    limits = {**LIMITS, **facts}
    now = float(facts.get("now") or time.time())
    found = [clock(limits, now)]  # first of all, for `now` gets older
    return [
        *services(root),
        *service(root),
        *nodes(root),
        *disks(root, limits),
        memory(root),
        *gpus(root),
        *certificates(root, limits, now),
        backup(root, limits, now),
        *found,
    ]


if __name__ == "__main__":
    print(json.dumps(health(json.loads(sys.argv[1]) if len(sys.argv) > 1 else {})))
