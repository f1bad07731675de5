"""Times of a platform on an OpenStack, from an image to ready, and of a second run of the roles.

    OS_CLOUD=devcloud python benchmarks/platform_times.py [--baked] [OPTIONS OF provision create]

Creates a platform of its own and deletes it. With --baked it makes an image of its own before, and a first platform
of it, so that the cloud has a copy where servers run, as after the first one each day. Prints a Markdown table. The
toolkit's own part is what remains of the whole time without the cloud's steps and the tasks on the machine: start-up,
Python, polling, SSH.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

NAME = "benchmark"
CLOUD_STEPS = {
    "keypair",
    "security-group",
    "network",
    "subnet",
    "router",
    "router-interface",
    "server",
    "floating-ip",
    "ssh",
}


def provision(*words: str) -> tuple[float, str]:
    """Run the command; wall seconds and standard output."""
    start = time.monotonic()
    done = subprocess.run(["provision", *words], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"provision {words[0]} failed; what it left is in PROVISION_HOME={os.environ['PROVISION_HOME']}")
    return time.monotonic() - start, done.stdout


def playbooks(home: Path) -> list[dict[str, Any]]:
    """What each run of the roles recorded, in order."""
    return [
        json.loads(path.read_text()) for path in sorted((home / "platforms" / NAME / "logs").glob("platform-*.json"))
    ]


def main() -> None:
    """Measure once and print."""
    cloud = os.environ.get("OS_CLOUD") or sys.exit("Set OS_CLOUD to an entry of clouds.yaml.")
    home = Path(tempfile.mkdtemp(prefix="benchmark-"))
    os.environ["PROVISION_HOME"] = str(home)
    options = [word for word in sys.argv[1:] if word != "--baked"]
    baked = len(options) < len(sys.argv[1:])
    create = ["create", NAME, "--cloud", cloud, "--yes", "--json", *options]
    rows: list[tuple[str, float]] = []
    if baked:
        build, image = provision("image", "build", "--cloud", cloud, "--yes")
        cold, _ = provision(*create)
        provision("delete", NAME, "--yes")
        rows += [("`provision image build`", build), ("`provision create`, the first of a baked image", cold)]
    total, text = provision(*create)
    seconds = {entry["step"]: entry["seconds"] for entry in json.loads(text)["ledger"]}
    first = playbooks(home)[0]
    again, _ = provision(*create)
    ssh = ["ssh", NAME, "--", "sudo", "rm", "/etc/mlaas4hep/platform.json"]
    provision(*ssh)
    second_total, _ = provision(*create)
    second = playbooks(home)[-1]
    delete, _ = provision("delete", NAME, "--yes")
    if baked:
        provision("image", "delete", image.strip(), "--cloud", cloud, "--yes")
    shutil.rmtree(home)
    cloud_time = sum(value for step, value in seconds.items() if step in CLOUD_STEPS)
    tasks = sum(first["seconds"].values())
    rows += [
        (f"`provision create`, {'baked' if baked else 'plain'} image to ready platform", total),
        ("... of which the cloud: network, server, first SSH", cloud_time),
        ("... of which tasks of the roles on the machine", tasks),
        ("... of which the toolkit's own waiting and Python", total - cloud_time - tasks),
        ("`provision create` again, everything there", again),
        ("`provision create` again with a second run of all roles", second_total),
        (f"... of which tasks (changed: {second['counts'].get('changed', 0)})", sum(second["seconds"].values())),
        ("`provision delete`", delete),
    ]
    print("| | seconds |\n|---|---:|")
    for title, value in rows:
        print(f"| {title} | {value:.1f} |")
    slowest = sorted(first["seconds"].items(), key=lambda item: -item[1])[:5]
    print("\nSlowest tasks: " + ", ".join(f"{name} {value:.1f} s" for name, value in slowest))


if __name__ == "__main__":
    main()
