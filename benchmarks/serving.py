"""The inference server under load: a 29-128-64-1 dense network, authentication on; a Markdown table.

    python benchmarks/serving.py [--seconds 10] [--workers N] [--folder FOLDER] [--only TEXT] [--triton FOLDER]

Needs wrk (Debian's package) and Keras. The network is trained on generated events and published as any model is; the
server runs with one worker a processor, wrk on the same computer. The last column is what the server's processes use
of the processors for a request, whatever else runs there. `--triton` names a virtual environment with nvidia-pytriton
and onnxruntime: its Triton then serves the same network beforehand, by its Python backend and ONNX Runtime, without
authentication.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
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
    port = free_port()
    code = (
        "from mlaas4hep.serving.server import serve; from mlaas4hep.serving.settings import ServingSettings;"
        f"serve('serving:app', ServingSettings(port={port}, workers={workers}))"
    )
    environment = os.environ | {"SERVING_BENCHMARK": str(folder), "PYTHONPATH": str(Path(__file__).parent)}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment)
    address = f"http://127.0.0.1:{port}"
    try:
        ready(f"{address}/v2/health/ready")
        yield address, process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


_TRITON = f"""
backend: "python"
input [ {{ name: "values" data_type: TYPE_FP32 dims: [ -1, {WIDTH} ] }} ]
output [ {{ name: "predictions" data_type: TYPE_FP32 dims: [ -1, 2 ] }} ]
instance_group [ {{ kind: KIND_CPU count: 1 }} ]
"""
_TRITON_MODEL = """
import onnxruntime
import triton_python_backend_utils as triton


class TritonPythonModel:
    def initialize(self, args):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        network = args["model_repository"] + "/1/model.onnx"
        self._session = onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])

    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        values = triton.get_input_tensor_by_name(request, "values").as_numpy()
        found = self._session.run(None, {"values": values})[0]
        return triton.InferenceResponse(output_tensors=[triton.Tensor("predictions", found)])
"""


@contextmanager
def triton(folder: Path, environment: Path) -> Iterator[str]:
    """The address of a Triton that serves the network, while it runs."""
    (package,) = environment.glob("lib/python3*/site-packages/pytriton/tritonserver")
    python = package.parents[2].name.removeprefix("python")
    model = folder / "triton" / MODEL
    (model / "1").mkdir(parents=True, exist_ok=True)
    network = next(folder.glob("repository/*/*/*/model.onnx"))
    shutil.copy(network, model / "1" / "model.onnx")
    backends = shutil.copytree(package / "backends", folder / "backends", dirs_exist_ok=True)
    shutil.copy(package / "python_backend_stubs" / python / "triton_python_backend_stub", backends / "python")
    (model / "config.pbtxt").write_text(_TRITON)
    (model / "1" / "model.py").write_text(_TRITON_MODEL)
    port = free_port()
    words = [package / "bin" / "tritonserver", f"--model-repository={folder / 'triton'}", "--allow-metrics=false"]
    words += [f"--backend-directory={backends}", "--http-address=127.0.0.1", f"--http-port={port}"]
    variables = os.environ | {"PATH": f"{environment / 'bin'}:{os.environ['PATH']}", "VIRTUAL_ENV": str(environment)}
    variables["LD_LIBRARY_PATH"] = str(next(environment.rglob("libcudart*")).parent)
    with (folder / "triton.log").open("wb") as log:
        process = subprocess.Popen([*words, "--allow-grpc=false"], env=variables, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        ready(f"{address}/v2/models/{MODEL}/ready")
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def ready(address: str) -> None:
    """Wait until an address answers."""
    for _ in range(300):
        try:
            urllib.request.urlopen(address, timeout=5)
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    raise SystemExit(f"{address} does not answer.")


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
        Load("prepared, 1000 rows, binary", infer, body, 16, ROWS, ((header, str(length)),)),
        Load("raw events, 1000, binary", infer, raw_body, 16, ROWS, ((header, str(raw_length)),)),
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
    parser.add_argument("--triton", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="serving-") as temporary:
        folder = chosen.folder or Path(temporary)
        if not (folder / "repository").exists():
            publish(folder)
        print("| | clients | requests/s | rows/s | p50 us | p99 us | server's CPU us |\n|---|---|---|---|---|---|---|")
        if chosen.triton:
            with triton(folder, chosen.triton) as address:
                for load in loads()[:2]:
                    wrk(folder, address, load, "", _WARM_SECONDS)
                    rate, median, late = wrk(folder, address, load, "", chosen.seconds)
                    figures = f"{rate:,.0f} | {rate:,.0f} | {median:,.0f} | {late:,.0f} |"
                    print(f"| Triton: {load.what} | {load.clients} | {figures} |", flush=True)
        with server(folder, chosen.workers) as (address, process):
            token = (folder / "token").read_text().strip()
            # every worker loads the model
            wrk(folder, address, replace(loads()[0], clients=64), token, _WARM_SECONDS)
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
