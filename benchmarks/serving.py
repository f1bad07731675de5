"""The inference server under load: a 29-128-64-1 dense network, authentication on; a Markdown table.

    python benchmarks/serving.py [--seconds 10] [--workers N] [--folder FOLDER] [--only TEXT]

Needs wrk (Debian's package) and Keras. The network is trained on generated events and published as any model is; the
server runs with one worker a processor, wrk on the same computer. The last column is what the server's processes use
of the processors for a request, whatever else runs there.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

WIDTH, ROWS, MODEL = 29, 1000, "dense"
_WARM_SECONDS = 5
NAMES = [f"x{i:02}" for i in range(WIDTH)]


def publish(folder: Path) -> None:
    """Train the network on generated events and publish it for the local user."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    import mlaas4hep.example.model
    from mlaas4hep.service.identity import User
    from mlaas4hep.serving.repository import Repository
    from mlaas4hep.training.experiment import train
    from mlaas4hep.training.progress import silent
    from mlaas4hep.training.workflow import load_folder

    workflow = folder / "workflow"
    workflow.mkdir(parents=True)
    generator = np.random.default_rng(1)
    for name, shift in (("signal", 0.5), ("background", 0.0)):
        columns = generator.normal(shift, 1.0, (WIDTH, 20_000)).astype("f4")
        pq.write_table(pa.table(dict(zip(NAMES, columns, strict=True))), workflow / f"{name}.parquet")
    (workflow / "files.txt").write_text("signal.parquet\nbackground.parquet\n")
    (workflow / "labels.txt").write_text("1\n0\n")
    (workflow / "params.json").write_text(json.dumps({"epochs": 2, "nevts": -1}))
    (workflow / "model.py").write_text(Path(mlaas4hep.example.model.__file__).read_text())
    train(load_folder(workflow), folder / "bundle", silent)
    Repository(folder / "repository").publish(User("local", "local").key, MODEL, folder / "bundle")


def app() -> Any:
    """The application of a worker."""
    from mlaas4hep.service.authentication import LocalAuthenticator
    from mlaas4hep.serving.app import create_app
    from mlaas4hep.serving.settings import ServingSettings

    folder = Path(os.environ["SERVING_BENCHMARK"])
    return create_app(folder / "repository", ServingSettings(), LocalAuthenticator(folder / "token"))


@contextmanager
def server(folder: Path, workers: int) -> Iterator[tuple[str, int]]:
    """The server's address and process, while it runs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code = (
        "from mlaas4hep.serving.server import serve; from mlaas4hep.serving.settings import ServingSettings;"
        f"serve('serving:app', ServingSettings(port={port}, workers={workers}))"
    )
    environment = os.environ | {"SERVING_BENCHMARK": str(folder), "PYTHONPATH": str(Path(__file__).parent)}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{address}/v2/health/ready", timeout=5)
                break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)
        yield address, process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


@dataclass(frozen=True)
class Load:
    """What wrk sends, by how many clients."""

    what: str
    path: str
    body: bytes
    clients: int
    rows: int = 1
    headers: tuple[tuple[str, str], ...] = ()


def loads() -> list[Load]:
    """What is measured."""
    generator = np.random.default_rng(2)
    one = generator.random((1, WIDTH)).astype("f4")
    many = generator.random((ROWS, WIDTH)).astype("f4")
    infer = f"/v2/models/{MODEL}/infer"
    row = tensors({"values": one})
    event = dict(zip(NAMES, one[0].tolist(), strict=True))
    raw = tensors({name: one[:, i] for i, name in enumerate(NAMES)})
    body, length = binary({"values": many})
    raw_body, raw_length = binary({name: np.ascontiguousarray(many[:, i]) for i, name in enumerate(NAMES)})
    header = "Inference-Header-Content-Length"
    tfaas = json.dumps({"keys": NAMES, "values": one[0].tolist(), "model": MODEL}).encode()
    return [
        Load("prepared, one row in JSON", infer, row, 1),
        Load("prepared, one row in JSON", infer, row, 64),
        Load("raw event as tensors in JSON", infer, raw, 1),
        Load("raw event as tensors in JSON", infer, raw, 64),
        Load("raw event in JSON (events)", f"/v2/models/{MODEL}/events", json.dumps([event]).encode(), 1),
        Load("raw event in JSON (events)", f"/v2/models/{MODEL}/events", json.dumps([event]).encode(), 64),
        Load("prepared, 1000 rows, binary", infer, body, 4, ROWS, ((header, str(length)),)),
        Load("raw events, 1000, binary", infer, raw_body, 4, ROWS, ((header, str(raw_length)),)),
        Load("TFaaS /json", "/json", tfaas, 100),
    ]


def tensors(inputs: dict[str, Any]) -> bytes:
    """A request in JSON."""
    return json.dumps(
        {
            "inputs": [
                {"name": name, "shape": array.shape, "datatype": "FP32", "data": array.ravel().tolist()}
                for name, array in inputs.items()
            ]
        }
    ).encode()


def binary(inputs: dict[str, Any]) -> tuple[bytes, int]:
    """A request with binary tensors, and the size of its JSON."""
    described = [
        {"name": name, "shape": a.shape, "datatype": "FP32", "parameters": {"binary_data_size": a.nbytes}}
        for name, a in inputs.items()
    ]
    header = json.dumps({"inputs": described, "parameters": {"binary_data_output": True}}).encode()
    return header + b"".join(array.tobytes() for array in inputs.values()), len(header)


def wrk(folder: Path, address: str, load: Load, token: str, seconds: int) -> tuple[float, float, float]:
    """Requests a second, median and 99th percentile in microseconds."""
    (folder / "body").write_bytes(load.body)
    headers = dict(load.headers) | {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    lines = [f"wrk.headers[{json.dumps(name)}]={json.dumps(value)}" for name, value in headers.items()]
    script = folder / "load.lua"
    script.write_text(
        "\n".join([f"local f=io.open({json.dumps(str(folder / 'body'))},'rb')", "wrk.body=f:read('*a')"])
        + "\nf:close()\nwrk.method='POST'\n"
        + "\n".join(lines)
    )
    words = [
        "wrk",
        "-t1",
        f"-c{load.clients}",
        f"-d{seconds}",
        "--timeout",
        "30s",
        "--latency",
        "-s",
        str(script),
        address + load.path,
    ]
    told = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in told or "Socket errors" in told:
        raise SystemExit(f"{load.what}: {told}")
    rate = float(re.search(r"Requests/sec:\s+([0-9.]+)", told)[1])  # type: ignore[index]
    return rate, _microseconds(told, "50%"), _microseconds(told, "99%")


def _microseconds(told: str, percentile: str) -> float:
    number, unit = re.search(rf"{percentile}\s+([0-9.]+)(us|ms|s)", told).groups()  # type: ignore[union-attr]
    return float(number) * {"us": 1, "ms": 1e3, "s": 1e6}[unit]


def processor_seconds(process: int) -> float:
    """What a process and those that it started have used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    own = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return own + sum(processor_seconds(int(child)) for child in children)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--only", default="")
    parser.add_argument("--folder", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="serving-") as temporary:
        folder = chosen.folder or Path(temporary)
        if not (folder / "repository").exists():
            publish(folder)
        with server(folder, chosen.workers) as (address, process):
            token = (folder / "token").read_text().strip()
            # every worker loads the model
            wrk(folder, address, replace(loads()[0], clients=64), token, _WARM_SECONDS)
            print(
                "| | clients | requests/s | rows/s | p50 us | p99 us | server's CPU us |\n|---|---|---|---|---|---|---|"
            )
            for load in loads():
                if chosen.only in load.what:
                    wrk(folder, address, load, token, 1)
                    used = processor_seconds(process)
                    rate, median, late = wrk(folder, address, load, token, chosen.seconds)
                    used = (processor_seconds(process) - used) / max(rate * chosen.seconds, 1) * 1e6
                    figures = f"{rate:,.0f} | {rate * load.rows:,.0f} | {median:,.0f} | {late:,.0f} | {used:,.0f}"
                    print(f"| {load.what} | {load.clients} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
