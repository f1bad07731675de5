"""Commands of the system: run to their end, with an environment of their own and a log."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.devcloud.state import DIR, ETC

# Every process of the cloud carries this mark: `down` finds those that left their session (dnsmasq, haproxy ...)
MARK = f"DEVCLOUD_PROCESS_OF={DIR}"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Proxies, CA bundles and Python paths of the caller would break the services: they get an environment of their own
ENVIRONMENT: Mapping[str, str] = {
    "PATH": PATH,
    "HOME": str(DIR),
    "LC_ALL": "C.UTF-8",
    "OS_KEYSTONE_CONFIG_DIR": str(ETC / "keystone"),
    "OS_KEYSTONE_CONFIG_FILES": str(ETC / "keystone/keystone.conf"),
    "OS_PLACEMENT_CONFIG_DIR": str(ETC / "placement"),
    "OS_NOVA_CONFIG_DIR": str(ETC / "nova"),
    MARK.partition("=")[0]: str(DIR),
}


class DevcloudError(Exception):
    """A failure told in a sentence or two.

    Args:
        message: what happened and what to do.
        log: the log file that knows more; its end is shown.
    """

    def __init__(self, message: str, log: Path | None = None) -> None:
        super().__init__(f"{message}; log: {log}\n{_end_of(log)}" if log else message)


def _end_of(log: Path, lines: int = 12) -> str:
    if not log.exists():
        return ""
    return "\n".join(f"    | {line}" for line in log.read_text(errors="replace").splitlines()[-lines:])


def run(*words: object, log: Path, env: Mapping[str, str] = ENVIRONMENT) -> None:
    """Run one command to its end; its output is appended to the log.

    Raises:
        DevcloudError: it ended with another status than 0.
    """
    command = [str(word) for word in words]
    with log.open("ab") as file:
        result = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=dict(env), check=False)
    if result.returncode:
        raise DevcloudError(f"`{shlex.join(command)[:160]}` ended with status {result.returncode}", log)


def output(*words: object) -> str:
    """Run one command to its end and return what it printed.

    Raises:
        DevcloudError: it ended with another status than 0.
    """
    result = _captured(words)
    if result.returncode:
        what = shlex.join(result.args)[:160]
        raise DevcloudError(f"`{what}` ended with status {result.returncode}: {result.stdout.strip()[-600:]}")
    return result.stdout


def attempt(*words: object) -> str:
    """Run one command to its end and return what it printed, whatever its status."""
    return _captured(words).stdout


def _captured(words: tuple[object, ...]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=dict(ENVIRONMENT),
        text=True,
        check=False,
    )
