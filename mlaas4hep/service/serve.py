"""Starts the service: the control plane's processes, and the inference server's beside them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Literal

from mlaas4hep.errors import MlaasError
from mlaas4hep.service.settings import Settings, load_settings

if TYPE_CHECKING:
    from mlaas4hep.serving.native import Processes

Part = Literal["all", "control", "inference"]
_GRACE_SECONDS = 45.0
_METRICS = "PROMETHEUS_MULTIPROC_DIR"
_CONFIG = "MLAAS4HEP_CONFIG"


def serve(config: Path | None, part: Part) -> None:
    """Answer requests until SIGTERM or SIGINT.

    Args:
        config: the settings' file; without one the default's.
        part: `all` starts both of the others as processes, and ends both when one has ended.

    Raises UsageError for wrong settings, MlaasError when a part ends by itself.
    """
    settings = load_settings(config)
    if config is not None:
        os.environ[_CONFIG] = str(config.absolute())
    if part == "all":
        _both(settings)
    elif part == "control":
        _control(settings)
    else:
        _inference(settings)


def control_plane() -> object:
    """The control plane of the settings that the environment names, with inference at the same address."""
    from mlaas4hep.service.app import create_app
    from mlaas4hep.service.authentication import authenticator, policy_source
    from mlaas4hep.service.executors import make_executor
    from mlaas4hep.serving.app import create_app as create_inference

    settings = load_settings()
    policies = policy_source(settings.authentication)
    identify = authenticator(settings.authentication, policies)
    # gRPC has a port of its own, which is the inference server's
    serving = settings.serving.model_copy(update={"grpc_port": 0})
    inference = create_inference(settings.data / "repository", serving, identify, _processes(settings))
    executor = make_executor(settings.executor)
    return create_app(settings, executor, identify, policies, inference, inference.predictions)


def inference() -> object:
    """The inference server of the settings that the environment names."""
    from mlaas4hep.service.authentication import authenticator
    from mlaas4hep.serving.app import create_app

    settings = load_settings()
    identify = authenticator(settings.authentication)
    return create_app(settings.data / "repository", settings.serving, identify, _processes(settings))


def _processes(settings: Settings) -> Processes:
    """Models of their own frameworks run here in any case, also where a cluster runs the jobs."""
    from mlaas4hep.service.local import LocalExecutor
    from mlaas4hep.serving.native import Processes

    return Processes(LocalExecutor(settings.executor.local), settings.data / "jobs", settings.serving)


def _both(settings: Settings) -> None:
    # all processes count into one folder, which is empty at the beginning
    counts = settings.data / "metrics"
    shutil.rmtree(counts, ignore_errors=True)
    counts.mkdir(parents=True)
    environment = {**os.environ, _METRICS: str(counts)}
    words = [sys.executable, "-m", "mlaas4hep.cli", "serve", "--part"]
    parts = [subprocess.Popen([*words, part], env=environment) for part in ("control", "inference")]
    wanted = False

    def stop(_: int, __: FrameType | None) -> None:
        nonlocal wanted
        wanted = True
        _end(parts)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    try:
        # one of them has ended, by whatever reason
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
    finally:
        _end(parts)
        _wait(parts)
    if not wanted:
        raise MlaasError("A part of the service has ended by itself.", "See the lines above.")


def _end(parts: Sequence[subprocess.Popen[bytes]]) -> None:
    for part in parts:
        if part.poll() is None:
            part.terminate()


def _wait(parts: Sequence[subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + _GRACE_SECONDS
    for part in parts:
        try:
            part.wait(max(deadline - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            part.kill()
            part.wait()


def _control(settings: Settings) -> None:
    import uvicorn

    host, port = settings.address
    _end_with_parent()
    if settings.workers == 1:
        # a mistake in the settings is told before anything listens
        uvicorn.run(control_plane(), host=host, port=port, **_OPTIONS)  # type: ignore[arg-type]
    else:
        factory = f"{__name__}:{control_plane.__name__}"
        uvicorn.run(factory, factory=True, host=host, port=port, workers=settings.workers, **_OPTIONS)  # type: ignore[arg-type]


_OPTIONS = {
    "log_level": "warning",
    "access_log": False,
    "server_header": False,
    "ws": "none",
    # who speaks for somebody else is told by the web proxy on this machine only
    "proxy_headers": False,
    "timeout_graceful_shutdown": 20,
}


def _inference(settings: Settings) -> None:
    from mlaas4hep.serving.server import serve as serve_inference

    _end_with_parent()
    serve_inference(f"{__name__}:{inference.__name__}", settings.serving)


def _end_with_parent() -> None:
    """A part whose parent is killed must not go on alone and keep the address."""
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
