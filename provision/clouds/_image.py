"""The root image of this computer's machines: made once, of the computer's own settings, and unpacked for each one."""

from __future__ import annotations

import configparser
import contextlib
import fcntl
import hashlib
import io
import os
import re
import shlex
import tarfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from provision.clouds._computer import TIED, Release, remove_tree, run
from provision.clouds.base import LOGIN_USER, Platform
from provision.errors import ProvisionError

BUILD = 1  # raise it when the recipe below changes: cached images become stale
UNUSED_SECONDS = 30 * 86400
LOGIN_ID = 1000
PACKAGES = (
    "systemd-sysv",
    "dbus",
    "libpam-systemd",
    "openssh-server",
    "sudo",
    "python3",
    "python3-apt",
    "python3-venv",
    "ca-certificates",
    "iproute2",
    "iputils-ping",
    "netbase",
    "curl",
    "less",
    "procps",
)
# these only delay the boot of a container, which has neither devices nor a network of its own to bring up
MASKED = (
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "console-getty.service",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty@tty1.service",
    "systemd-networkd.service",
    "systemd-networkd.socket",
    "systemd-resolved.service",
    "systemd-timesyncd.service",
    "systemd-udev-trigger.service",
    "systemd-udevd-control.socket",
    "systemd-udevd-kernel.socket",
    "systemd-udevd.service",
)
# a third of all files, which a machine does not miss and each unpacking would wait for
_EXCLUDED = ("/usr/share/man/*", "/usr/share/locale/*", "/usr/share/doc/*", "/usr/share/info/*")
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
MARK = "etc/provision-platform"
_HOST_KEY = "etc/ssh/ssh_host_ed25519_key.pub"

_SSHD = "PasswordAuthentication no\nPermitRootLogin no\n"
_JOURNALD = "[Journal]\nForwardToConsole=yes\nMaxLevelConsole=warning\n"  # the console log then tells what went wrong
_PIP_KEYS = ("index-url", "extra-index-url", "find-links", "no-index", "trusted-host", "timeout", "default-timeout")


@dataclass(frozen=True)
class Settings:
    """What makes downloads work on this computer: `files` (path -> bytes) are repeated in its machines.

    `sources` and `options` name those of the files that hold apt's package sources and its settings for downloads.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    sources: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    def hosts(self) -> list[str]:
        """The names of all servers that the settings mention."""
        text = b"\n".join(data for name, data in self.files.items() if _is_setting(name)).decode(errors="replace")
        return sorted(set(re.findall(r"https?://(?:[^/\s@]*@)?([^/:\s\"';]+)", text)))


def _is_setting(name: str) -> bool:
    return name.endswith((".list", ".sources", "pip.conf")) or "/apt.conf" in name


def read_settings(
    root: Path = Path("/"), home: Path | None = None, environment: Mapping[str, str] | None = None
) -> Settings:
    """Read this computer's apt sources, certificates and pip settings.

    Raises ProvisionError when apt has no source of packages in the network.
    """
    apt = root / "etc/apt"
    files: dict[str, bytes] = {}
    sources = dict(_sources(apt))
    for text in sources.values():
        for key in re.findall(r"(?:Signed-By:\s*|signed-by=)(/[^\s\]]+)", text, re.IGNORECASE):
            with contextlib.suppress(FileNotFoundError):
                files[key] = (root / key.lstrip("/")).read_bytes()
    if not any("http" in text for text in sources.values()):
        raise ProvisionError(f"apt has no package source in the network ({apt}), of which a machine could be made.")
    files.update({name: text.encode() for name, text in sources.items()})
    options = {f"/etc/apt/apt.conf.d/{path.name}": path.read_bytes() for path in _options(apt)}
    files.update(options)
    for folder in ("etc/apt/auth.conf.d", "etc/apt/trusted.gpg.d", "usr/local/share/ca-certificates"):
        found = [path for path in sorted((root / folder).rglob("*")) if path.is_file()]
        files.update({f"/{path.relative_to(root)}": path.read_bytes() for path in found})
    files["/etc/pip.conf"] = _pip(root, home or Path.home(), os.environ if environment is None else environment)
    return Settings(files, tuple(sources), tuple(options))


def _sources(apt: Path) -> Iterator[tuple[str, str]]:
    for path in (apt / "sources.list", *sorted((apt / "sources.list.d").glob("*"))):
        if path.suffix not in (".list", ".sources") or not path.is_file():
            continue
        text = re.sub(r"^\s*deb(-src)?\s+(\[.*?\]\s*)?(cdrom|file):.*\n?", "", path.read_text(), flags=re.MULTILINE)
        if re.search(r"^\s*(deb\s|URIs:)", text, re.MULTILINE):
            yield f"/etc/apt/{path.relative_to(apt)}", text


def _options(apt: Path) -> list[Path]:
    """Files of settings for downloads; those that run programs of this computer do not fit a machine."""
    found = []
    for path in sorted((apt / "apt.conf.d").glob("*")):
        text = re.sub(r"^\s*(//|#).*$", "", path.read_text(), flags=re.MULTILINE)
        if re.search(r"^\s*Acquire\b", text, re.MULTILINE) and not re.search("Invoke|IndexTargets", text):
            found.append(path)
    return found


def _pip(root: Path, home: Path, environment: Mapping[str, str]) -> bytes:
    """The settings of pip, in pip's order of precedence, without those that name places on this computer's disk."""
    settings: dict[str, str] = {}
    for path in (root / "etc/pip.conf", home / ".pip/pip.conf", home / ".config/pip/pip.conf"):
        parser = configparser.RawConfigParser(strict=False)
        with contextlib.suppress(OSError, configparser.Error):
            parser.read_string(path.read_text())
            for section in ("global", "install", "download"):
                settings.update(parser[section] if parser.has_section(section) else {})
    named = {key: environment.get(f"PIP_{key.upper().replace('-', '_')}", "") for key in _PIP_KEYS}
    settings.update({key: value for key, value in named.items() if value})
    kept = {key: [w for w in settings.get(key, "").split() if not w.startswith(("/", "file:"))] for key in _PIP_KEYS}
    lines = [f"{key} = {' '.join(words)}" for key, words in kept.items() if words]
    return "\n".join(["[global]", f"cert = {CERTIFICATES}", *lines, ""]).encode()


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what is in the image."""

    release: Release
    settings: Settings

    @property
    def digest(self) -> str:
        """The same for the same image."""
        inputs = (BUILD, PACKAGES, MASKED, _EXCLUDED, LOGIN_USER, LOGIN_ID, _SSHD, _JOURNALD, self.release)
        return hashlib.sha256(repr((inputs, sorted(self.settings.files.items()))).encode()).hexdigest()[:16]

    def path(self, cache: Path) -> Path:
        """Where the image stands in the cache, complete or not at all."""
        return cache / f"machine-{self.release}-{self.digest}.tar.zst"


def build(recipe: Recipe, cache: Path) -> Path:
    """Make the image, unless it is there, and return its path; one build at a time; unused images go.

    Raises ProvisionError that names the log.
    """
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    image, work, log = recipe.path(cache), cache / "machine.part", cache / "machine-image.log"
    with (cache / "machine.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if image.exists():
            return image
        remove_tree(work)
        work.mkdir(mode=0o700)
        log.unlink(missing_ok=True)
        _bootstrap(recipe, work, log)
        with (work / image.name).open("rb") as made:
            os.fsync(made.fileno())
        (work / image.name).replace(image)
        remove_tree(work)
        for other in cache.glob("machine-*.tar.zst"):
            if other.stat().st_mtime < time.time() - UNUSED_SECONDS:
                other.unlink()
    return image


def _bootstrap(recipe: Recipe, work: Path, log: Path) -> None:
    """Run mmdebstrap in namespaces of its own, so that nothing that it mounts or starts outlives it."""
    files, sources = recipe.settings.files, []
    for name in recipe.settings.sources:
        sources.append(work / Path(name).name)
        sources[-1].write_bytes(files[name])
    options = []
    for name in recipe.settings.options:
        options.append(work / Path(name).name)
        options[-1].write_bytes(files[name])
    _write_overlay(files, work / "overlay.tar")
    hooks = (
        'rm -f "$1"/etc/apt/apt.conf.d/99mmdebstrap "$1"/etc/dpkg/dpkg.cfg.d/99mmdebstrap'
        ' "$1"/etc/apt/sources.list "$1"/etc/apt/sources.list.d/* "$1"/etc/ssh/ssh_host_*',
        f"tar-in {shlex.quote(str(work / 'overlay.tar'))} /",
        'chroot "$1" update-ca-certificates',
        f'chroot "$1" useradd --create-home --shell /bin/bash --uid {LOGIN_ID} --groups sudo {LOGIN_USER}',
    )
    try:
        run(
            *TIED,
            *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private"),
            *("env", f"TMPDIR={work}", "mmdebstrap", "--mode=root", "--format=tar", "--variant=apt"),
            f"--include={','.join(PACKAGES)}",
            '--aptopt=APT::Sandbox::User "root"',  # the cache may lie below a home that is closed to apt's own user
            *(f"--aptopt={path}" for path in options),
            "--dpkgopt=force-unsafe-io",
            *(f"--dpkgopt=path-exclude={pattern}" for pattern in _EXCLUDED),
            "--dpkgopt=path-include=/usr/share/doc/*/copyright",
            *(f"--customize-hook={hook}" for hook in hooks),
            recipe.release.codename,
            work / recipe.path(work).name,
            *sources,
            log=log,
        )
    except ProvisionError as error:
        raise ProvisionError(
            f"The root image of {recipe.release} could not be made; mmdebstrap's log is {log}.",
            "Does `apt-get update` work on this computer?",
            error.details,
        ) from None


def _write_overlay(files: dict[str, bytes], target: Path) -> None:
    """Write what is laid over the bootstrapped system into a tar file."""
    overlay = files | {
        f"/etc/sudoers.d/90-{LOGIN_USER}": f"{LOGIN_USER} ALL=(ALL) NOPASSWD:ALL\n".encode(),
        "/etc/ssh/sshd_config.d/10-provision.conf": _SSHD.encode(),
        "/etc/systemd/journald.conf.d/10-provision.conf": _JOURNALD.encode(),
        "/etc/default/locale": b"LANG=C.UTF-8\n",
        "/etc/fstab": b"",
    }
    with tarfile.open(target, "w") as archive:
        for name, data in sorted(overlay.items()):
            entry = tarfile.TarInfo(name.lstrip("/"))
            entry.size = len(data)
            entry.mode = 0o600 if name.startswith(("/etc/apt/auth", "/etc/sudoers")) else 0o644
            archive.addfile(entry, io.BytesIO(data))
        for unit in MASKED:
            entry = tarfile.TarInfo(f"etc/systemd/system/{unit}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "/dev/null"
            archive.addfile(entry)


def unpack(image: Path, target: Path) -> None:
    """Unpack the image into the empty folder `target`; one that is damaged is removed, to be made again."""
    image.touch()  # it is in use
    try:
        run(*TIED, "tar", "--zstd", "--numeric-owner", "--xattrs", "--xattrs-include=*", "-xpf", image, "-C", target)
    except ProvisionError as error:
        image.unlink(missing_ok=True)
        raise ProvisionError(
            f"The root image {image.name} could not be unpacked and was removed from the cache.",
            "Is the disk full? Run the command again.",
            error.details,
        ) from None


def make_root(image: Path, root: Path, platform: Platform, resolver: str) -> None:
    """Make the machine's root folder of the image and the platform's own keys and name, complete or not at all."""
    part = root.with_name(f"{root.name}.part")
    remove_tree(part)
    part.mkdir(parents=True)
    unpack(image, part)
    ssh = part / "home" / LOGIN_USER / ".ssh"
    ssh.mkdir(mode=0o700)
    name = platform.machine_name
    own = {
        "etc/hostname": f"{name}\n",
        "etc/hosts": f"127.0.0.1 localhost\n127.0.1.1 {name}\n::1 localhost ip6-localhost ip6-loopback\n",
        "etc/machine-id": f"{os.urandom(16).hex()}\n",
        "etc/resolv.conf": resolver,
        "etc/ssh/ssh_host_ed25519_key": platform.host_private_key,
        _HOST_KEY: f"{platform.host_public_key.strip()}\n",
        f"home/{LOGIN_USER}/.ssh/authorized_keys": f"{platform.public_key.strip()}\n",
        MARK: f"{machine_uid(platform)}\n",
    }
    for name, text in own.items():
        replace_file(part, name, text, 0o600 if name.endswith(("_key", "authorized_keys")) else 0o644)
    for path in (ssh, ssh / "authorized_keys"):
        os.chown(path, LOGIN_ID, LOGIN_ID)
    part.replace(root)


def replace_file(root: Path, name: str, text: str, mode: int) -> None:
    """Replace a file of a machine's root; never through a link, which could lead out of it.

    Raises ProvisionError when one of its folders there is a link.
    """
    path = root / name
    for folder in path.parents[: len(Path(name).parts) - 1]:
        if folder.is_symlink():
            raise ProvisionError(f"{folder} is a link, which could lead out of the machine; {name} is not written.")
    temporary = path.with_name(f".{path.name}.provision")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as handle:
        handle.write(text)
    temporary.chmod(mode)
    temporary.replace(path)


def machine_uid(platform: Platform) -> str:
    """What marks the machine, and all that is its own: the platform's uid, or one of as many digits for a worker."""
    own = f"{platform.uid} worker {platform.worker}"
    return hashlib.sha256(own.encode()).hexdigest()[: len(platform.uid)] if platform.worker else platform.uid


def marked(root: Path, uid: str) -> bool:
    """True when that root folder is complete and the platform's own."""
    with contextlib.suppress(OSError):
        return not root.is_symlink() and (root / MARK).read_text().strip() == uid
    return False


def has_host_key(root: Path, key: str) -> bool:
    """True when that SSH host key (an OpenSSH public line) is the one of the system in the root folder."""
    with contextlib.suppress(OSError):
        return (root / _HOST_KEY).read_text().split()[:2] == key.split()[:2]
    return False
