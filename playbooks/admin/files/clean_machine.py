"""Removes what is old of the machine's logs, and packages that were downloaded to be installed.

    python3 -I - POLICY    a JSON object: `remove`, and after how many days `logs` go (0: never)

Prints what goes, or with `remove` false what would go, as a JSON list of findings with their bytes.
"""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

DAY = 86400
# what logrotate and journald have closed
ROTATED = re.compile(r".+\.([0-9]+|old)(\.(gz|xz|zst))?|.+[-.][0-9]{8}(\.(gz|xz|zst))?|.+@[0-9a-f-]+\.journal~?")


def old_logs(folder, before):
    """Logs that are not written to any more, and were last before a time in seconds since 1970."""
    for path in sorted(folder.rglob("*")):
        if ROTATED.fullmatch(path.name) and path.is_file() and not path.is_symlink() and path.stat().st_mtime < before:
            yield path


def finding(what, size):
    """A thing that goes, and its bytes."""
    return {"check": what, "good": True, "words": f"{size / 1e6:.1f} MB", "bytes": size}


def clean(policy, at, root=Path("/")):
    """What goes, at a time in seconds since 1970."""
    packages = [path.stat().st_size for path in (root / "var/cache/apt/archives").glob("*.deb")]
    if packages:
        yield finding(f"{len(packages)} packages in /var/cache/apt/archives", sum(packages))
        if policy["remove"]:
            # apt's own command does not disturb an installation
            subprocess.run(["apt-get", "clean"], check=True)
    for path in old_logs(root / "var/log", at - policy["logs"] * DAY) if policy["logs"] else ():
        yield finding(f"log {path}", path.stat().st_size)
        if policy["remove"]:
            path.unlink()


if __name__ == "__main__":
    print(json.dumps(list(clean(json.loads(sys.argv[1]), time.time()))))
