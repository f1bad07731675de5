"""What is counted; the control plane and `GET /metrics` show it in Prometheus' text format.

With several processes, PROMETHEUS_MULTIPROC_DIR names a folder in which they put their counts together.
"""

from __future__ import annotations

import os

from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

REQUESTS = Counter("mlaas4hep_serving_requests", "Requests answered with predictions", ["protocol"])
ROWS = Counter("mlaas4hep_serving_rows", "Events or rows predicted")
FAILED_LOADS = Counter("mlaas4hep_serving_failed_loads", "Models that could not be loaded")
EVICTIONS = Counter("mlaas4hep_serving_evictions", "Models that made room for others")
LOADED_BYTES = Gauge("mlaas4hep_serving_loaded_bytes", "Memory of the loaded models", multiprocess_mode="livesum")


def exposition() -> tuple[bytes, str]:
    """All counts and their content type."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return generate_latest(REGISTRY), CONTENT_TYPE_LATEST
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry), CONTENT_TYPE_LATEST
