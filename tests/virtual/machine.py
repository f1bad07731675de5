"""Runs a plain Debian 12 with its own kernel by QEMU: for what a container on this computer cannot show.

The image is made once, of Debian's packages, and lies in the cache of the tests; a machine writes to a copy that ends
with it. It has this computer's settings for downloads, and is reached on the loopback by SSH, as root, with the key
that lies beside the image.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.debian import lacking
from tests.devcloud.commands import PATH
from tests.devcloud.guest import host_settings
from tests.devcloud.packages import debian_codename

PROGRAMS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "ssh": "openssh-client",
}
_PACKAGES = (
    *("systemd-sysv", "dbus", "udev", "openssh-server", "sudo", "ca-certificates", "python3", "python3-apt"),
    *("iproute2", "curl", "linux-image-cloud-amd64"),
)
_BUILD = 1  # raise it when something else in the image changes
_DISK = "12G"
_DEADLINE = 400.0  # seconds from switching on to SSH
_CACHE = Path(__file__).resolve().parents[2] / ".cache"
_NETWORK = "[Match]\nName=e*\n[Network]\nDHCP=ipv4\n"


@dataclass(frozen=True)
class Machine:
    """A running machine.

    Attributes:
        port: of its SSH, on the loopback.
        key: the private key that it admits root with.
        known_hosts: its host key.
        ssh_config: reaches it under the name that was chosen.
    """

    port: int
    key: Path
    known_hosts: Path
    ssh_config: Path


def inability() -> str:
    """Why this computer cannot run it, or ""."""
    if os.geteuid() != 0:
        return "the image of a virtual machine is made by root"
    if not _virtualised() and not os.environ.get("EMULATE"):
        return "without KVM that runs Debian's kernel this takes ten times as long; EMULATE=1 runs it all the same"
    return lacking(PROGRAMS)


@contextmanager
def running(name: str, folder: Path, cpus: int = 2, memory: int = 4096) -> Iterator[Machine]:
    """A machine for as long as the context lasts.

    Args:
        name: for ssh.
        folder: an empty one, for its console and settings.
        cpus: of the machine.
        memory: in MiB.
    """
    image, port, console = _image(), _free_port(), folder / "console.log"
    words = ["setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64", "-no-user-config", "-nodefaults"]
    words += ["-machine", "q35", *_processor(), "-smp", str(cpus), "-m", str(memory), "-display", "none"]
    words += ["-serial", f"file:{console}", "-device", "virtio-rng-pci"]
    words += ["-kernel", str(image / "vmlinuz"), "-initrd", str(image / "initrd.img")]
    words += ["-append", "root=/dev/vda rw console=ttyS0"]
    words += ["-drive", f"file={image}/disk,format=raw,if=virtio,cache=unsafe,snapshot=on"]
    words += ["-netdev", f"user,id=net,hostfwd=tcp:127.0.0.1:{port}-:22", "-device", "virtio-net-pci,netdev=net"]
    known_hosts = folder / "known_hosts"
    known_hosts.write_text(f"[127.0.0.1]:{port} {(image / 'host_key.pub').read_text()}")
    ssh_config = folder / "ssh_config"
    settings = {"HostName": "127.0.0.1", "Port": port, "User": "root", "IdentityFile": image / "key"}
    settings |= {"UserKnownHostsFile": known_hosts, "StrictHostKeyChecking": "yes", "IdentitiesOnly": "yes"}
    ssh_config.write_text(f"Host {name}\n" + "".join(f"  {word} {value}\n" for word, value in settings.items()))
    with (folder / "qemu.log").open("wb") as log:
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            _wait_for_ssh(process, ["ssh", "-F", str(ssh_config), "-o", "ConnectTimeout=5", name, "true"], folder)
            yield Machine(port, image / "key", known_hosts, ssh_config)
        finally:
            process.kill()
            process.wait()


def _virtualised() -> bool:
    """Whether KVM is there, and not the kind of it that runs only kernels that know of it."""
    return os.access("/dev/kvm", os.R_OK | os.W_OK) and not Path("/sys/module/kvm_pvm").exists()


def _processor() -> list[str]:
    """The computer's own, or one that is emulated."""
    return ["-accel", "kvm", "-cpu", "host"] if _virtualised() else ["-accel", "tcg,thread=multi", "-cpu", "max"]


def _wait_for_ssh(process: subprocess.Popen[bytes], words: list[str], folder: Path) -> None:
    deadline = time.monotonic() + _DEADLINE
    while subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode:
        told = "".join(p.read_text(errors="replace")[-3000:] for p in folder.glob("*.log"))
        assert process.poll() is None, f"the machine has ended: {told}"
        assert time.monotonic() < deadline, f"the machine does not answer: {told}"
        time.sleep(0.2)


def _image() -> Path:
    """The folder that has disk, kernel and keys, made when it is not there."""
    settings = host_settings()
    inputs = repr((sorted(settings.files.items()), _PACKAGES, _DISK, _BUILD))
    folder = _CACHE / f"machine-{hashlib.sha256(inputs.encode()).hexdigest()[:12]}"
    if folder.exists():
        return folder
    _CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_CACHE, prefix="machine-") as name:
        made, root = Path(name) / "made", Path(name) / "root"
        made.mkdir()
        options = [f"--aptopt={path}" for path in settings.apt_options]
        what = [f"--include={','.join(_PACKAGES)}", debian_codename(), root, *settings.apt_sources]
        _run("mmdebstrap", "--quiet", "--mode=root", "--format=directory", "--variant=apt", *options, *what)
        for file in ("key", "host_key"):
            _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", made / file)
        _configure(root, made, settings.files)
        for link in ("vmlinuz", "initrd.img"):
            shutil.copy(root / link, made / link)
        _run("mke2fs", "-q", "-t", "ext4", "-L", "rootfs", "-d", root, made / "disk", _DISK)
        made.rename(folder)
    return folder


def _configure(root: Path, made: Path, settings: dict[str, bytes]) -> None:
    for path in (root / "etc/apt/sources.list.d").glob("*"):
        path.unlink()  # mmdebstrap's own names; the sources come under the names they have here
    files = {"/etc/apt/sources.list": b"", **settings}
    files |= {
        "/etc/hostname": b"machine\n",
        "/etc/hosts": b"127.0.0.1 localhost\n127.0.1.1 machine\n",
        "/etc/machine-id": b"",
        "/etc/fstab": b"",
        # QEMU's own, which asks this computer's
        "/etc/resolv.conf": b"nameserver 10.0.2.3\n",
        "/etc/systemd/network/wired.network": _NETWORK.encode(),
    }
    for name, data in files.items():
        path = root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # it may be a link to somewhere
        path.write_bytes(data)
        path.chmod(0o644)
    keys = root / "root" / ".ssh"
    keys.mkdir(mode=0o700)
    shutil.copy(made / "key.pub", keys / "authorized_keys")
    for path in (root / "etc/ssh").glob("ssh_host_*"):
        path.unlink()
    shutil.copy(made / "host_key", root / "etc/ssh/ssh_host_ed25519_key")
    shutil.copy(made / "host_key.pub", root / "etc/ssh/ssh_host_ed25519_key.pub")
    _run("chroot", root, "update-ca-certificates")
    _run("chroot", root, "systemctl", "enable", "systemd-networkd")
    _run("chroot", root, "systemctl", "mask", "apt-daily.timer", "apt-daily-upgrade.timer")


def _run(*words: object) -> None:
    command = [str(word) for word in words]
    done = subprocess.run(
        command, env={**os.environ, "PATH": PATH}, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command[0]}: {done.stderr[-3000:]}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
