"""npm packages by version and hash: those whose files the pages ship, and those that their tests need.

`python -m tests.pages.packages` writes the shipped files anew after a change of `static/pins.json`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any

_REPOSITORY = Path(__file__).parents[2]
STATIC = _REPOSITORY / "mlaas4hep" / "service" / "pages" / "static"
_CACHE = _REPOSITORY / ".cache"


def pins() -> dict[str, Any]:
    """What is shipped."""
    found: dict[str, Any] = json.loads((STATIC / "pins.json").read_text())
    return found


def fetch(name: str, version: str, integrity: str) -> Path:
    """The archive of a package, from the cache or by npm; refused when its hash is another one."""
    kept = _CACHE / f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz"
    if not kept.exists():
        _CACHE.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=_CACHE) as folder:
            words = ["npm", "pack", f"{name}@{version}", "--silent", "--pack-destination", folder]
            done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            [made] = Path(folder).glob("*.tgz")
            made.rename(kept)
    digest = base64.b64encode(hashlib.sha512(kept.read_bytes()).digest()).decode()
    assert integrity == f"sha512-{digest}", f"{name} {version} is not what was pinned"
    return kept


def member(archive: Path, path: str) -> bytes:
    """A file of a package."""
    with tarfile.open(archive) as tar:
        stream = tar.extractfile(f"package/{path}")
        assert stream is not None, path
        return stream.read()


def main() -> None:
    """Write the shipped files."""
    for name, pin in pins().items():
        archive = fetch(name, pin["version"], pin["integrity"])
        for path, target in pin["files"].items():
            (STATIC / target).write_bytes(member(archive, path))


if __name__ == "__main__":
    main()
