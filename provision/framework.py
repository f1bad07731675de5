"""What of Python a platform gets: this toolkit's MLaaS4HEP or another one, and frameworks beside the locked ones."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlsplit

from provision.errors import ProvisionError, UsageError

DISTRIBUTION = "mlaas4hep"
_TORCH = ("torch==2.13.0", "onnxscript==0.7.2")
"""PyTorch, and what exports its models. It is in no lock file: the machine's package index decides on CPU or CUDA."""

_BUILT_FROM = ("mlaas4hep", "provision", "playbooks", "roles", "templates", "locks", "docs/generator")


@dataclass(frozen=True)
class Framework:
    """What is installed on the platform: a wheel on this computer, or else a released version."""

    wheel: Path | None
    version: str

    def __str__(self) -> str:
        return f"{DISTRIBUTION} {self.version}" + (f" ({self.wheel.name})" if self.wheel else "")


def find_framework(wish: str, cache: Path) -> Framework:
    """Resolve the `mlaas4hep` field of a spec; builds the wheel of a checkout into `cache` when it has changed.

    Raises UsageError for a wheel that is not there, ProvisionError when the checkout's wheel cannot be built.
    """
    if wish.endswith(".whl"):
        wheel = Path(wish).expanduser().absolute()
        if not wheel.is_file():
            raise UsageError(f"The wheel {wheel} of MLaaS4HEP does not exist.")
        return Framework(wheel, wheel.name.split("-")[1])
    if wish:
        return Framework(None, wish)
    origin = _origin()
    if origin is None:
        return Framework(None, metadata.version(DISTRIBUTION))
    if origin.is_dir():
        return _build(origin, cache)
    if origin.is_file():
        return Framework(origin, metadata.version(DISTRIBUTION))
    raise UsageError(
        f"This toolkit was installed from {origin}, which is gone, so the same framework cannot be put on a platform.",
        "Name a wheel or a released version with --mlaas4hep.",
    )


def further_packages(frameworks: Sequence[str]) -> list[str]:
    """What pip has to install beside the locked packages: pinned requirements and paths of wheels.

    Raises UsageError for a wheel that is not there.
    """
    packages = []
    for name in frameworks:
        if name.endswith(".whl") and not Path(name).is_file():
            raise UsageError(f"The framework's wheel {name} does not exist.")
        packages += [name] if name.endswith(".whl") else []
    given = {Path(wheel).name.partition("-")[0] for wheel in packages}
    if "torch" in given or "torch" in frameworks:
        packages += [requirement for requirement in _TORCH if requirement.partition("==")[0] not in given]
    return packages


def _origin() -> Path | None:
    """The wheel or checkout that this toolkit was installed from (PEP 610), or None for a released version."""
    text = metadata.distribution(DISTRIBUTION).read_text("direct_url.json")
    if text is None:
        return None
    parts = urlsplit(json.loads(text)["url"])
    return Path(unquote(parts.path)) if parts.scheme == "file" else None


def _build(checkout: Path, cache: Path) -> Framework:
    target = cache / "wheels" / _digest(checkout)
    wheels = sorted(target.glob("*.whl"))
    if not wheels:
        target.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(target)]
        done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
        wheels = sorted(target.glob("*.whl"))
        if done.returncode or not wheels:
            raise ProvisionError(f"The wheel of {checkout} could not be built.", details=done.stderr.strip()[-2000:])
    return Framework(wheels[0], wheels[0].name.split("-")[1])


def _digest(checkout: Path) -> str:
    """Digest of everything that goes into the wheel."""
    files = [checkout / "pyproject.toml", checkout / "hatch_build.py"]
    for folder in _BUILT_FROM:
        files += [path for path in sorted((checkout / folder).rglob("*")) if path.is_file() and path.suffix != ".pyc"]
    return digest_of(files, checkout)


def digest_of(files: list[Path], base: Path) -> str:
    """Short digest of the names (relative to `base`) and contents of files."""
    total = hashlib.sha256()
    for path in files:
        total.update(f"{path.relative_to(base)}\0".encode())
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()[:16]
