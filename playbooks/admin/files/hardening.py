"""What holds of a machine that is open to the world: prints a JSON list of findings.

Each has the area of AgID's minimum measures (circular 2/2017) that it belongs to, what is asked, whether it is `known`,
and if so whether it is `good`, and words about it. What runs counts, not what files say.
"""

import json
import os
import subprocess
from pathlib import Path

CONFIGURATION = "3 secure configuration"
VULNERABILITIES = "4 vulnerabilities"
PRIVILEGES = "5 administrators"
RECORDS = "5 records"
NETWORK = "8 network"
BACKUP = "10 backup"
DATA = "13 data"

SSHD = {
    "passwordauthentication": ("no",),
    "kbdinteractiveauthentication": ("no",),
    "permitemptypasswords": ("no",),
    "permitrootlogin": ("no", "without-password", "prohibit-password"),
}
SECRETS = (
    "/etc/ssh/ssh_host_*_key",
    "/etc/mlaas4hep/service.toml",
    "/etc/web-proxy/*.pem",
    "/var/lib/mlaas4hep/token",
    "/var/lib/xcache/userkey.pem",
)
PUBLIC = ("/etc/web-proxy/acme-ca.pem", "/etc/web-proxy/certificate.pem")


def run(*words):
    """Exit status and output of a command; status None where it is missing."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False, env=ENVIRONMENT)
    except (OSError, subprocess.TimeoutExpired):
        return None, ""
    return done.returncode, done.stdout


ENVIRONMENT = {
    **os.environ,
    "LC_ALL": "C.UTF-8",
    "PATH": "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin",
}


def item(area, asked, state, found):
    """One finding; state True, False, or None where it cannot be known."""
    words = f"not verified: {found}" if state is None else found
    return {"check": f"{area}: {asked}", "good": state is not False, "known": state is not None, "words": words}


def sshd(output):
    """From what `sshd -T` prints: nobody comes in by a password."""
    settings = dict(line.partition(" ")[::2] for line in output.splitlines())
    wrong = [f"{name} {settings.get(name, 'unknown')}" for name, good in SSHD.items() if settings.get(name) not in good]
    return item(PRIVILEGES, "SSH admits by key only", not wrong, ", ".join(wrong) or "as sshd -T says")


def accounts(passwd, shadow):
    """From /etc/passwd and /etc/shadow: one root, which has no password; nobody has an empty one."""
    roots = [line.split(":")[0] for line in passwd.splitlines() if line.split(":")[2] == "0"]
    passwords = {line.split(":")[0]: line.split(":")[1] for line in shadow.splitlines()}
    empty = [name for name, password in passwords.items() if not password]
    locked = passwords.get("root", "").startswith(("!", "*"))
    return [
        item(PRIVILEGES, "root is the only account with its rights", roots == ["root"], ", ".join(roots)),
        item(PRIVILEGES, "root has no password", locked, "locked" if locked else "a password, or none is needed"),
        item(PRIVILEGES, "no account has an empty password", not empty, ", ".join(empty) or "none"),
    ]


def firewall(table, enabled, ports):
    """From `nft list chain`, whether its unit is enabled, and the ports at which something listens for others.

    table: None where the machine may not set rules.
    """
    asked = "the firewall drops what is not admitted", "the firewall is loaded at each start"
    if table is None:
        found = "this machine may not set rules: the firewall is its host's"
        return [item(NETWORK, words, None, found) for words in asked]
    held = "policy drop" in table
    admitted = set()
    for line in table.splitlines():
        if "tcp dport" in line and "accept" in line:
            admitted |= {
                int(word)
                for word in line.replace("{", " ").replace("}", " ").replace(",", " ").split()
                if word.isdigit()
            }
    closed = sorted(set(ports) - admitted)
    found = (
        f"open {', '.join(map(str, sorted(admitted)))}; listening behind it {', '.join(map(str, closed)) or 'nothing'}"
    )
    return [
        item(NETWORK, asked[0], held, found if held else "no table `platform`"),
        item(
            NETWORK,
            asked[1],
            enabled,
            "enabled" if enabled else "platform-firewall.service is not enabled",
        ),
    ]


def listening(texts):
    """TCP ports of /proc/net/tcp and tcp6 that other computers could reach."""
    found = set()
    for text in texts:
        for line in text.splitlines()[1:]:
            address, _, port = line.split()[1].rpartition(":")
            own = address.endswith("7F") or address == "0" * 24 + "01000000"
            if line.split()[3] == "0A" and not own:
                found.add(int(port, 16))
    return found


def updates(settings, timed, simulated):
    """From `apt-config dump`, whether the timer runs, and `apt-get --simulate upgrade`."""
    on = timed and 'APT::Periodic::Unattended-Upgrade "1"' in settings
    waiting = [line.split()[1] for line in simulated.splitlines() if line.startswith("Inst ") and "ecurity" in line]
    few = ", ".join(waiting[:5]) + (f" and {len(waiting) - 5} more" if len(waiting) > 5 else "")
    return [
        item(
            VULNERABILITIES,
            "security updates come by themselves",
            on,
            "every day" if on else "unattended-upgrades is off",
        ),
        item(
            VULNERABILITIES, "no security update waits", not waiting, few or "none, by the package lists that are there"
        ),
    ]


def secrets(patterns, root="/"):
    """Files with secrets that others than their owner and group can read."""
    paths = [path for pattern in patterns for path in Path(root).glob(pattern.lstrip("/"))]
    told = [str(path) for path in paths if str(path) not in PUBLIC and path.stat().st_mode & 0o007]
    return item(DATA, "nobody else can read files with secrets", not told, ", ".join(told) or f"{len(paths)} looked at")


def audit(container):
    """Whether the kernel records what auditd was told."""
    asked = "changes of accounts, rights and settings are recorded"
    if container:
        return item(RECORDS, asked, None, "this machine is a container: the kernel's audit is its host's")
    status, rules = run("auditctl", "-l")
    active = run("systemctl", "is-active", "auditd.service")[0] == 0
    good = status == 0 and "-k accounts" in rules.replace("key=accounts", "-k accounts") and active
    return item(RECORDS, asked, good, "auditd" if good else "auditd does not run with the rules of this role")


def clock(container):
    """Whether something keeps the clock right."""
    asked = "the clock is kept right"
    if container:
        return item(CONFIGURATION, asked, None, "this machine is a container: the clock is its host's")
    _, output = run("timedatectl", "show", "--property=NTPSynchronized", "--value")
    good = output.strip() == "yes"
    return item(CONFIGURATION, asked, good, "synchronised" if good else "not synchronised")


BEYOND = (
    (NETWORK, "the cloud's own security groups are as narrow", "the machine cannot see them: provision show NAME"),
    (PRIVILEGES, "each administrator is named, and no key is shared", "only people know whose keys these are"),
    (BACKUP, "a backup has been restored", "no machine can show it: provision admin backup, restore"),
)


def main():
    """Look at everything."""
    container = Path("/run/systemd/container").exists()
    jail = run("fail2ban-client", "status", "sshd")[0] == 0
    journal = Path("/var/log/journal").is_dir() or Path("/var/log/auth.log").is_file()
    waiting = Path("/run/reboot-required").exists()
    timed = run("systemctl", "is-active", "--quiet", "apt-daily-upgrade.timer")[0] == 0
    denied = run("nft", "list", "tables")[0] not in (0, None)
    table = None if denied else run("nft", "list", "chain", "inet", "platform", "input")[1]
    enabled = run("systemctl", "is-enabled", "--quiet", "platform-firewall.service")[0] == 0
    nets = [Path(path).read_text() for path in ("/proc/net/tcp", "/proc/net/tcp6") if Path(path).exists()]
    items = [
        sshd(run("sshd", "-T")[1]),
        *accounts(Path("/etc/passwd").read_text(), Path("/etc/shadow").read_text()),
        item(
            PRIVILEGES,
            "who guesses passwords is kept out",
            jail,
            "fail2ban watches sshd" if jail else "fail2ban does not watch sshd",
        ),
        *firewall(table, enabled, listening(nets)),
        *updates(run("apt-config", "dump")[1], timed, run("apt-get", "--simulate", "--quiet", "upgrade")[1]),
        item(
            VULNERABILITIES,
            "what was updated is in use",
            not waiting,
            "the machine waits for a restart" if waiting else "no restart waits",
        ),
        item(
            RECORDS,
            "records of logins outlive a restart",
            journal,
            "/var/log" if journal else "the journal is in memory only",
        ),
        audit(container),
        clock(container),
        secrets(SECRETS),
        *(item(area, asked, None, found) for area, asked, found in BEYOND),
    ]
    print(json.dumps(items))


if __name__ == "__main__":
    main()
