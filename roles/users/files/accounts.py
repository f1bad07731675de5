"""Reads what accounts the machine has, and says which of the wished changes are refused.

python3 -I - WISHED    (a JSON object with accounts, locked and removed, as the role's variables); prints a JSON object
"""

import json
import os
import pwd
import subprocess
import sys
import time
from pathlib import Path

KEYS = "/etc/ssh/authorized_keys.d/%u"
FIRST_UID = 1000
NO_LOGIN = ("nologin", "false", "sync")


def output(*words):
    """What a command prints; nothing where it is missing."""
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False).stdout
    except OSError:
        return ""


def expired(shadow, today):
    """Names of the accounts of /etc/shadow that have expired; today in days since 1970."""
    found = set()
    for line in shadow.splitlines():
        fields = line.split(":")
        if len(fields) > 7 and fields[7].isdigit() and int(fields[7]) <= today:
            found.add(fields[0])
    return found


def has_key(name, home, patterns):
    """Whether a file of authorised keys of the account has one."""
    for pattern in patterns:
        path = Path(home, pattern.replace("%u", name).replace("%h", home))
        try:
            lines = path.read_text(errors="replace").splitlines()
        except OSError:
            continue
        if any(line.strip() and not line.lstrip().startswith("#") for line in lines):
            return True
    return False


def read():
    """The machine's accounts as `refusals` takes them, and where sshd looks for keys."""
    settings = dict(line.partition(" ")[::2] for line in output("/usr/sbin/sshd", "-T").splitlines())
    patterns = settings.get("authorizedkeysfile", ".ssh/authorized_keys").split()
    gone = expired(Path("/etc/shadow").read_text(), time.time() // 86400)
    accounts = {}
    for entry in pwd.getpwall():
        login = Path(entry.pw_shell).name not in NO_LOGIN and entry.pw_name not in gone
        login = login and has_key(entry.pw_name, entry.pw_dir, patterns)
        if entry.pw_uid == 0:
            root = login and settings.get("permitrootlogin") != "no"
        else:
            root = login and "NOPASSWD: ALL" in output("sudo", "-l", "-U", entry.pw_name)
        accounts[entry.pw_name] = {"uid": entry.pw_uid, "home": entry.pw_dir, "administers": root}
    return accounts, patterns


def refusals(wished, accounts, connected, is_folder):
    """Why the wished changes must not be made, a sentence each; and who administers the machine after them.

    accounts: by name, with uid, home and administers. connected: the account in use. is_folder: tells it of a path.
    """
    found = []
    withdrawn = {account["name"] for account in wished["accounts"] if account.get("sudo") is False}
    ending = withdrawn | set(wished["locked"]) | set(wished["removed"])
    for name in [account["name"] for account in wished["accounts"]] + wished["locked"] + wished["removed"]:
        there = accounts.get(name)
        if there and there["uid"] < FIRST_UID:
            found.append(f"{name} is an account of the system.")
        elif name == connected and name in ending:
            found.append(f"{name} is the account that this connection uses: it stays, with sudo.")
        elif not there and name in wished["locked"]:
            found.append(f"{name} is to be locked, but there is no such account.")
        elif not there and name not in wished["removed"] and is_folder(f"/home/{name}"):
            found.append(f"/home/{name} of a former account is there: move it away before {name} is added.")
    left = {name for name, account in accounts.items() if account["administers"]} - ending
    left |= {account["name"] for account in wished["accounts"] if account.get("sudo") and account.get("ssh_keys")}
    if not found and not left:
        found.append("Nobody would be left who can log in with a key and become root.")
    return found, sorted(left)


def main():
    """Read, judge, print."""
    accounts, patterns = read()
    wished = json.loads(sys.argv[1])
    refused, left = refusals(wished, accounts, os.environ.get("SUDO_USER", "root"), os.path.isdir)
    homes = {name: accounts[name]["home"] for name in wished["locked"] + wished["removed"] if name in accounts}
    key_files = [pattern for pattern in patterns if pattern != KEYS] + [KEYS]
    print(json.dumps({"refused": refused, "administrators": left, "homes": homes, "key_files": key_files}))


if __name__ == "__main__":
    main()
