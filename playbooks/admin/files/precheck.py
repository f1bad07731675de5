"""Whether a machine knows its own name, and reaches the packages that it has sources of; prints findings as JSON."""

import json
import re
import socket
import subprocess


def own_name():
    """The machine's name leads to an address, which programs ask for when they start."""
    name = socket.gethostname()
    try:
        words, good = f"{name}: {socket.getaddrinfo(name, None)[0][4][0]}", True
    except OSError as error:
        words, good = f"{name}: {error.strerror}", False
    remedy = "" if good else f"Add a line `127.0.1.1 {name}` to /etc/hosts."
    return {"check": "own name", "good": good, "words": words, "remedy": remedy}


def sources():
    """The package lists can be fetched, which is tried."""
    done = subprocess.run(
        ["apt-get", "update", "--quiet=2", "--option=APT::Update::Error-Mode=any"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    # addresses may hold a password
    said = [
        re.sub(r"//[^/@\s]+@", "//", line[2:].strip()) for line in done.stdout.splitlines() if line[:2] in ("E:", "W:")
    ]
    good = done.returncode == 0
    words = "package lists were fetched" if good else " ".join(said)[:500] or f"apt-get ended with {done.returncode}"
    remedy = "" if good else "See /etc/apt, and whether the machine may reach the servers that are named there."
    return {"check": "package sources", "good": good, "words": words, "remedy": remedy}


if __name__ == "__main__":
    print(json.dumps([own_name(), sources()]))
