"""Tells who logged in, who used sudo and who failed to log in, from the machine's journal, as JSON.

    python3 -I - DAYS    how far to look back

Of commands under sudo only the program is told: their arguments may hold what is not meant for a report.
"""

import json
import re
import subprocess
import sys
from collections import Counter

LOGIN = re.compile(r"Accepted (\S+) for (\S+) from (\S+) port")
# one line for each failure: sshd tells of some in two
FAILED = re.compile(
    r"(?:Failed (?:password|keyboard\S+) for (?!invalid)|Invalid user |Connection \w+ by authenticating user )"
    r"(\S*) (?:from )?(\S+) port"
)
SUDO = re.compile(r"\s*(\S+) : .*?USER=(\S+) ; .*?COMMAND=(\S+)")
REFUSED = re.compile(r"\s*(\S+) : (user NOT in sudoers|command not allowed|\d+ incorrect password attempt)")
MOST = 20


def entries(days):
    """Time in seconds since 1970, program and text of each line of sshd and sudo."""
    words = ["journalctl", f"--since=-{days}d", "--output=json", "--output-fields=MESSAGE,SYSLOG_IDENTIFIER"]
    words += [f"--identifier={name}" for name in ("sshd", "sshd-session", "sudo")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, errors="replace") as journal:
        for line in journal.stdout:
            entry = json.loads(line)
            text = entry.get("MESSAGE")
            # a text that is no UTF-8 comes as a list of numbers
            text = bytes(text).decode(errors="replace") if isinstance(text, list) else text or ""
            yield int(entry["__REALTIME_TIMESTAMP"]) / 1e6, entry.get("SYSLOG_IDENTIFIER", ""), text


def summary(lines):
    """Counts of logins, uses of sudo and failures."""
    logins, sudo, failures, refused = Counter(), Counter(), Counter(), Counter()
    for _, program, text in lines:
        if program == "sudo":
            if found := SUDO.match(text):
                sudo["{} as {}: {}".format(*found.groups())] += 1
            if found := REFUSED.match(text):
                refused["{}: {}".format(*found.groups())] += 1
        elif found := LOGIN.match(text):
            logins["{1} from {2} by {0}".format(*found.groups())] += 1
        elif found := FAILED.match(text):
            failures["{} from {}".format(*found.groups())] += 1
    return {
        "logins": told(logins),
        "sudo": told(sudo),
        "refused by sudo": told(refused),
        "failed logins": told(failures),
    }


def told(counter):
    """The most frequent, and how many others there were."""
    lines = [f"{count} x {what}" for what, count in counter.most_common(MOST)]
    others = sum(counter.values()) - sum(count for _, count in counter.most_common(MOST))
    return lines + ([f"{others} others"] if others else [])


if __name__ == "__main__":
    print(json.dumps(summary(entries(int(sys.argv[1])))))
