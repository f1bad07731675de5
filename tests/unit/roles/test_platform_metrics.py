"""What the collector of the role `monitoring` makes of what a machine's programs print."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import REPOSITORY
from tests.platform_programs import NVIDIA, SINFO, SQUEUE, SQUEUE_STATES, UNITS, Programs

PROGRAM = REPOSITORY / "roles/monitoring/files/platform-metrics"


@pytest.fixture
def metrics(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program as a module, without leaving compiled code in the role."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    loader = importlib.machinery.SourceFileLoader("platform_metrics", str(PROGRAM))
    spec = importlib.util.spec_from_loader("platform_metrics", loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    """Programs that go before all others."""
    found = Programs(tmp_path)
    monkeypatch.setenv("PATH", f"{found.folder}:{os.environ['PATH']}")
    return found


def told(figures: Iterable[tuple[str, dict[str, str], float | None]]) -> dict[tuple[str, ...], float]:
    return {(name, *labels.values()): value for name, labels, value in figures if value is not None}


def test_gpus_are_told_as_far_as_their_driver_tells(metrics: ModuleType, programs: Programs):
    programs.put("nvidia-smi", (",".join(metrics.GPU_FIELDS), NVIDIA))
    found = told(metrics.gpus())
    assert found["platform_gpu_up",] == 1
    assert found["platform_gpu_utilization_ratio", "0"] == pytest.approx(0.87)
    assert found["platform_gpu_memory_used_bytes", "0"] == 10 * 2**30
    assert found["platform_gpu_power_watts", "1"] == pytest.approx(35.1)
    assert ("platform_gpu_utilization_ratio", "1") not in found
    assert ("platform_gpu_uncorrected_errors_total", "1") not in found


def test_a_driver_that_fails_is_told_and_none_at_all_is_not(
    metrics: ModuleType, programs: Programs, monkeypatch: pytest.MonkeyPatch
):
    programs.put("nvidia-smi", fails=True)
    assert told(metrics.gpus()) == {("platform_gpu_up",): 0}
    monkeypatch.setattr(metrics, "program", lambda _: None)
    assert told(metrics.gpus()) == told(metrics.slurm()) == {}


def test_nodes_of_several_partitions_are_counted_once(metrics: ModuleType, programs: Programs):
    programs.put("slurmctld")
    programs.put("sinfo", ("--Node", SINFO))
    programs.put("squeue", ("--format=%T", SQUEUE_STATES), ("--sort", SQUEUE))
    found = told(metrics.slurm())
    assert (found["platform_slurm_nodes", "mixed"], found["platform_slurm_nodes", "down"]) == (1, 1)
    assert [found["platform_slurm_cpus", kind] for kind in ("allocated", "idle", "other")] == [2, 2, 8]
    assert (found["platform_slurm_jobs", "running"], found["platform_slurm_jobs", "pending"]) == (1, 2)
    jobs = list(metrics.each_slurm_job())
    assert [(labels["job"], labels["name"], cpus) for _, labels, cpus in jobs] == [("7", "j1-1", 2), ("8", "a|b", 1)]


def test_a_controller_that_does_not_answer_is_told(metrics: ModuleType, programs: Programs):
    programs.put("slurmctld")
    programs.put("sinfo", fails=True)
    assert told(metrics.slurm()) == {("platform_slurm_up",): 0}


def test_jobs_that_have_ended_are_not_counted(metrics: ModuleType, programs: Programs):
    programs.put("systemctl", ("mlaas4hep-job@", UNITS))
    assert told(metrics.jobs()) == {("platform_jobs_running",): 2}
    found = told(metrics.each_job())
    assert found["platform_job_cpu_seconds_total", "higgs_1"] == 2.5
    assert found["platform_job_memory_bytes", "higgs_1"] == 2**20
    assert ("platform_job_cpu_seconds_total", "new_2") not in found


def test_the_certificate_is_the_one_that_clients_see(metrics: ModuleType, tmp_path: Path):
    both = tmp_path / "both.pem"
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "10"]
    words = [*make, "-subj", "/CN=ml.example.org", "-keyout", str(both), "-out", str(tmp_path / "cert.pem")]
    subprocess.run(words, check=True, capture_output=True)
    both.write_text((tmp_path / "cert.pem").read_text() + both.read_text())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(both)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection, context.wrap_socket(connection, server_side=True) as wrapped:
                wrapped.recv(1)

        thread = threading.Thread(target=answer)
        thread.start()
        ((_, _, end),) = metrics.certificate(listener.getsockname()[1])
        thread.join()
    text = subprocess.run(
        ["openssl", "x509", "-in", str(both), "-noout", "-enddate"], check=True, capture_output=True, text=True
    )
    assert end == ssl.cert_time_to_seconds(text.stdout.strip().partition("=")[2])


def test_where_nothing_listens_there_is_no_certificate(metrics: ModuleType):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert list(metrics.certificate(port)) == []


@pytest.mark.parametrize(
    ("limit", "total", "available"),
    [(None, 8192, 4096), ("max", 8192, 4096), (str(4096 * 1024), 4096, 3072)],
)
def test_a_container_has_the_memory_of_its_own_limit(
    limit: str | None, total: int, available: int, metrics: ModuleType, tmp_path: Path
):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal:    8192 kB\nMemFree:  1 kB\nMemAvailable:   4096 kB\n")
    if limit:
        (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
        (tmp_path / "sys/fs/cgroup/memory.max").write_text(f"{limit}\n")
        (tmp_path / "sys/fs/cgroup/memory.current").write_text(f"{1024 * 1024}\n")
    assert metrics.memory(tmp_path) == (total * 1024, available * 1024)


def test_every_figure_has_a_meaning_and_is_written_in_order(metrics: ModuleType):
    figures = [("platform_gpu_info", {"model": 'a "b"\\\n'}, 1.0), ("platform_gpu_up", {}, 1.0)]
    figures += [("platform_gpu_info", {"model": "c"}, 1.0), ("platform_gpu_power_watts", {"gpu": "0"}, None)]
    assert list(metrics.lines(figures)) == [
        "# HELP platform_gpu_info The GPU and its driver",
        "# TYPE platform_gpu_info gauge",
        'platform_gpu_info{model="a \\"b\\"\\\\\\n"} 1.0',
        'platform_gpu_info{model="c"} 1.0',
        "# HELP platform_gpu_up Whether the driver tells of the GPUs",
        "# TYPE platform_gpu_up gauge",
        "platform_gpu_up 1.0",
    ]
    text = PROGRAM.read_text()
    assert [name for name in metrics.MEANINGS if text.count(f'"{name}"') < 2] == []
