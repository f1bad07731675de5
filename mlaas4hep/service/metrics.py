"""What Prometheus may ask for: counts of the processes, as `serving.metrics` keeps them, and facts of the database."""

from __future__ import annotations

import time
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import func, select
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlaas4hep.service.database import Database, JobRow
from mlaas4hep.service.executor import State
from mlaas4hep.service.submissions import ENDED
from mlaas4hep.serving import metrics as serving

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


_ENDED = Counter("mlaas4hep_jobs_ended", "Jobs that ended", ["state"])
_REQUESTS = Histogram(
    "mlaas4hep_request_seconds", "Time to the answer's first byte", ["method", "route", "status"], buckets=_BUCKETS
)


def ended(state: State) -> None:
    """A job has ended."""
    _ENDED.labels(state.value).inc()


def exposition(database: Database) -> tuple[bytes, str]:
    """All counts, with those of the inference server, and their content type."""
    counts, content_type = serving.exposition()
    registry = CollectorRegistry()
    registry.register(_Jobs(database))
    return counts + generate_latest(registry), content_type


class _Jobs(Collector):
    def __init__(self, database: Database) -> None:
        self._database = database

    def collect(self) -> Iterable[Metric]:
        family = GaugeMetricFamily("mlaas4hep_jobs", "Jobs that have not ended, by phase", labels=["phase"])
        with self._database.read() as session:
            query = select(JobRow.phase, func.count()).where(JobRow.phase != ENDED).group_by(JobRow.phase)
            for phase, count in session.execute(query):
                family.add_metric([phase], count)
        yield family


class Measured:
    """Measures the requests of an app; they are told apart by their routes, not by their paths."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()

        async def measured(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "none")
                labels = _method(scope), route, f"{message['status'] // 100}xx"
                _REQUESTS.labels(*labels).observe(time.perf_counter() - began)
            await send(message)

        await self._app(scope, receive, measured)


def _method(scope: Scope) -> str:
    """Clients can invent methods, and each would make new counters."""
    method = str(scope["method"])
    return method if method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS") else "other"
