"""The Infrastructure Manager's own Python, kept in .cache, and deployments with it in a network of its own."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.debian import lacking

PROGRAMS = {"git": "git", "ip": "iproute2", "unshare": "util-linux"}
ADDRESS = "http://127.0.0.1:8000"
"""Where the folder of a deployment is served."""

_HERE = Path(__file__).parent
_CACHE = _HERE.parents[1] / ".cache"


def inability() -> str:
    """Why it cannot be run here, or ""."""
    if reason := lacking(PROGRAMS):
        return reason
    done = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True, check=False)
    return done.stderr.strip()


def deploy(folder: Path, templates: Sequence[Path], work: Path) -> dict[str, dict[str, Any]]:
    """What becomes of each template; `folder` has what they import, and `work` gets the manager's own files."""
    outcome = work / "outcome.json"
    alone = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    program = [_environment() / "bin" / "python", _HERE / "deploy.py", folder, outcome, *templates]
    done = subprocess.run([*alone, *program], cwd=work, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, dict[str, Any]] = json.loads(outcome.read_text())
    return found


def _environment() -> Path:
    wanted = _HERE / "requirements.txt"
    folder = _CACHE / f"manager-{hashlib.sha256(wanted.read_bytes()).hexdigest()[:12]}"
    if folder.exists():
        return folder
    _CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_CACHE, prefix="manager-") as name:
        made = Path(name) / "made"
        venv.create(made)
        installer = [Path(sys.executable).parent / "uv", "pip", "install", "--quiet", "--system-certs", "--no-deps"]
        command = [*installer, "--require-hashes", "--python", made / "bin" / "python", "--requirement", wanted]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        if not folder.exists():  # another run of the tests may have been quicker
            made.rename(folder)
    return folder
