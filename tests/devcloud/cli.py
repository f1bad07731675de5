"""The command `python -m tests.devcloud`."""

from __future__ import annotations

import argparse
import fcntl
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.devcloud import guest, lifecycle, packages
from tests.devcloud.commands import DevcloudError
from tests.devcloud.services import SERVICES
from tests.devcloud.state import CLOUDS, DIR, LOCK, LOG


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.devcloud",
        description="A real single-node OpenStack on this computer, for tests. State: $DEVCLOUD_DIR, default "
        "${XDG_STATE_HOME:-~/.local/state}/mlaas4hep-devcloud",
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    verbs.add_parser("install", help="install the Debian packages; quick when they are there")
    image = verbs.add_parser("image", help="build the guest image; quick when it is there")
    image.add_argument("--rebuild", action="store_true", help="build it anew in any case")
    verbs.add_parser("up", help="start the cloud")
    down = verbs.add_parser("down", help="stop the cloud; the next `up` brings its servers back")
    down.add_argument("--purge", action="store_true", help="delete its state, too; the guest image stays")
    verbs.add_parser("status", help=f"services, memory, servers; exit status {lifecycle.DOWN} when it is down")
    verbs.add_parser("env", help="print the path of clouds.yaml, for OS_CLIENT_CONFIG_FILE")
    for verb, does in (("stop", "begin an outage"), ("start", "end an outage")):
        verbs.add_parser(verb, help=does).add_argument("service", metavar="SERVICE", choices=SERVICES)
    return parser


def main(words: list[str] | None = None) -> int:
    """Run one verb; returns the exit status."""
    arguments = _parser().parse_args(words)
    if arguments.verb == "env":
        print(CLOUDS)
        return 0
    if arguments.verb == "status":
        return lifecycle.status()
    actions: dict[str, Callable[[], None]] = {
        "install": packages.install,
        "image": lambda: guest.build(anew=arguments.rebuild),
        "up": lifecycle.up,
        "down": lambda: lifecycle.purge() if arguments.purge else lifecycle.down(),
        "stop": lambda: lifecycle.stop_service(arguments.service),
        "start": lambda: lifecycle.start_service(arguments.service),
    }
    return _guarded(arguments.verb, actions[arguments.verb])


def _guarded(verb: str, action: Callable[[], None]) -> int:
    """Run an action as root, alone, without the caller's proxies; failures become a sentence."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy") and verb == "up"]:
        del os.environ[name]  # the APIs are on 127.0.0.1
    try:
        if os.geteuid() != 0:
            raise DevcloudError("root is needed")
        with _alone():
            action()
        return 0
    except DevcloudError as error:
        print(f"devcloud {verb}: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print(f"devcloud {verb}: interrupted", file=sys.stderr)
    except Exception as error:  # of the SDK, mostly: the whole story goes to a log
        LOG.mkdir(parents=True, exist_ok=True)
        log = LOG / f"devcloud-{verb}.log"
        log.write_text(traceback.format_exc())
        print(f"devcloud {verb}: {type(error).__name__}: {str(error)[:400]}; log: {log}", file=sys.stderr)
    return 1


@contextmanager
def _alone() -> Iterator[None]:
    """Let no two verbs work on the same state."""
    DIR.mkdir(parents=True, exist_ok=True)
    with LOCK.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DevcloudError(f"another command is at work on {DIR}") from None
        yield
