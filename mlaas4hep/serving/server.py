"""Runs the inference server: uvicorn's worker processes with the short way of `protocol`."""

from __future__ import annotations

from collections.abc import Callable

import uvicorn

from mlaas4hep.serving.protocol import InferenceProtocol
from mlaas4hep.serving.settings import ServingSettings

_CONNECTIONS = 2000


def serve(factory: str | Callable[[], object], settings: ServingSettings) -> None:
    """Answer requests until SIGTERM; a worker that dies is replaced.

    Args:
        factory: makes the application (`app.create_app`): `module:function`, or the function for one worker.
        settings: where to listen, with how many workers.
    """
    uvicorn.run(
        factory,
        factory=True,
        host=settings.host,
        port=settings.port,
        workers=settings.workers,
        http=InferenceProtocol,
        loop="uvloop",
        ws="none",
        access_log=False,
        log_level="warning",
        server_header=False,
        date_header=False,
        proxy_headers=False,
        limit_concurrency=_CONNECTIONS,
        timeout_graceful_shutdown=int(settings.seconds) + 5,
    )
