"""The directory in which everything of the cloud lives, and whether an earlier `up` left it fit for use."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

HERE = Path(__file__).resolve().parent


def _directory() -> Path:
    """$DEVCLOUD_DIR, or the place that the XDG base directory specification gives to state."""
    if chosen := os.environ.get("DEVCLOUD_DIR"):
        return Path(chosen).absolute()
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    return Path(base).absolute() / "mlaas4hep-devcloud"


DIR = _directory()
RUN, LOG, ETC, DATA, IMAGE = (DIR / name for name in ("run", "log", "etc", "data", "image"))
LIBVIRT, RABBITMQ, MYSQL = DIR / "libvirt", DIR / "rabbitmq", DIR / "mysql"
LOCK = DIR / "lock"
CLOUDS = DIR / "clouds.yaml"
GUEST_IMAGE, GUEST_IMAGE_STAMP = IMAGE / "debian-12.raw", IMAGE / "inputs.sha256"
IS_UP = RUN / "up"
GROUP = "mlaas4hep-devcloud"
"""The name of the control groups, one in each hierarchy of version 1, that hold the servers and nothing else."""
_STAMP = DATA / "stamp"
_FILLS_DATABASES = ("configuration.py", "databases.py", "seed.py", "services.py")


def make_directories() -> None:
    """Make every directory that a service expects; those of the system's libvirt serve as mount points."""
    own = [RUN, LOG, ETC, DATA / "images", DATA / "nova/instances", DATA / "nova/lock", DATA / "neutron/lock", RABBITMQ]
    own += [DATA / "cinder/lock"]
    own += [LIBVIRT / name for name in ("run", "lib", "etc", "log")]
    for directory in [*own, Path("/run/libvirt"), Path("/var/log/libvirt")]:
        directory.mkdir(parents=True, exist_ok=True)


def stamp(*inputs: str) -> str:
    """Fingerprint of what fills the databases: code and templates, the guest image, and the given inputs."""
    digest = hashlib.sha256(repr(inputs).encode())
    templates = [path for path in sorted((HERE / "etc").rglob("*")) if path.is_file()]
    for path in [GUEST_IMAGE_STAMP, *(HERE / name for name in _FILLS_DATABASES), *templates]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def is_complete(current: str) -> bool:
    """Whether an `up` with this stamp once came to its end, so that databases, users and networks need not be made."""
    return _STAMP.exists() and _STAMP.read_text() == current


def completed(current: str) -> None:
    """Record that an `up` with this stamp came to its end."""
    _STAMP.write_text(current)


def wipe() -> None:
    """Delete the whole state but the guest image, which needs no cloud to be right."""
    for path in DIR.glob("*"):
        if path in (IMAGE, LOCK):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
