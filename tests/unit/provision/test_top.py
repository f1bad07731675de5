"""What `provision top` makes of the figures that a machine tells."""

from __future__ import annotations

import json
from pathlib import Path

from provision.top import Looks, lines, read
from tests.conftest import REPOSITORY, Command

FIRST = """
# HELP platform_cpus CPUs of the machine
# TYPE platform_cpus gauge
platform_cpus 4.0
platform_monotonic_seconds 100.0
platform_cpu_seconds_total 1000.0
platform_load 1.5
platform_memory_total_bytes 8589934592.0
platform_memory_available_bytes 2147483648.0
platform_disk_total_bytes{disk="/"} 21474836480.0
platform_disk_available_bytes{disk="/"} 5368709120.0
platform_temperature_celsius{sensor="coretemp Core 0"} 51.0
platform_gpu_up 1.0
platform_gpu_info{gpu="0",model="NVIDIA A100-PCIE-40GB",uuid="GPU-1",driver="550.90.07"} 1.0
platform_gpu_utilization_ratio{gpu="0"} 0.87
platform_gpu_memory_used_bytes{gpu="0"} 10737418240.0
platform_gpu_memory_total_bytes{gpu="0"} 42949672960.0
platform_gpu_temperature_celsius{gpu="0"} 63.0
platform_slurm_up 1.0
platform_slurm_nodes{state="mixed"} 1.0
platform_slurm_cpus{state="allocated"} 2.0
platform_slurm_jobs{state="running"} 1.0
platform_slurm_jobs{state="pending"} 3.0
platform_slurm_job_cpus{job="7",state="running",memory="2000M",time="1:02",user="mlaas4hep",name="j1-1"} 2.0
platform_job_running_seconds{job="higgs_1"} 3723.0
platform_job_memory_bytes{job="higgs_1"} 1073741824.0
platform_job_cpu_seconds_total{job="higgs_1"} 50.0
mlaas4hep_jobs{phase="waiting"} 2.0
mlaas4hep_jobs{phase="handed"} 1.0
mlaas4hep_serving_rows_total 5000.0
mlaas4hep_serving_requests_total{protocol="v2"} 100.0
mlaas4hep_serving_requests_total{protocol="tfaas"} 10.0
ALERTS{alertname="DiskAlmostFull",alertstate="firing",severity="ticket"} 1.0
ALERTS{alertname="GpuHot",alertstate="pending",severity="ticket"} 1.0
"""
SECOND = (
    FIRST.replace("seconds 100.0", "seconds 110.0")
    .replace("platform_cpu_seconds_total 1000.0", "platform_cpu_seconds_total 1020.0")
    .replace('{job="higgs_1"} 50.0', '{job="higgs_1"} 65.0')
    .replace("rows_total 5000.0", "rows_total 6000.0")
    .replace('{protocol="v2"} 100.0', '{protocol="v2"} 140.0')
)


def test_the_view_has_what_the_machine_tells_and_rates_between_two_looks():
    view = Looks(read(FIRST), read(SECOND)).view()
    assert (view.cpus, view.cpu_percent, view.load) == (4, 50, 1.5)
    assert (view.memory_gb, view.memory_total_gb) == (6, 8)
    assert view.disks == [{"disk": "/", "free_gb": 5, "total_gb": 20}]
    assert view.queue == {"waiting": 2, "handed": 1}
    assert (view.predictions, view.requests) == (100, 4)
    assert (view.gpus[0]["model"], view.gpus[0]["percent"], view.gpus[0]["watts"]) == (
        "NVIDIA A100-PCIE-40GB",
        87,
        None,
    )
    assert view.slurm["jobs"] == {"running": 1, "pending": 3}
    unit, slurm = view.jobs
    assert (unit.job, unit.cpus, unit.memory_gb, unit.seconds) == ("higgs_1", 1.5, 1, 3723)
    assert (slurm.job, slurm.state, slurm.asked) == ("7", "running", "2 CPUs, 2000M; mlaas4hep, j1-1, for 1:02")
    assert view.alerts == ["DiskAlmostFull"]
    assert json.loads(json.dumps(view.as_data()))["temperatures"] == {"coretemp Core 0": 51}


def test_the_view_is_shown_in_lines():
    shown = "\n".join(lines("higgs", Looks(read(FIRST), read(SECOND)).view()))
    for line in (
        "CPU            50.0 % of 4 CPUs, load 1.50",
        "disk /         15.0 of 20.0 GB",
        "GPU 0          87 %, 10.0 of 40.0 GB, 63 degrees  (NVIDIA A100-PCIE-40GB)",
        "queue          2 waiting, 1 handed",
        "predictions    100.0/s, in 4.0 requests/s",
        "ALERTS         DiskAlmostFull",
        "higgs_1  running  1.50  1.00 GB  1:02:03",
    ):
        assert line in shown, shown


def test_a_machine_without_all_that_is_shown_as_it_is():
    view = Looks(read(""), read("")).view()
    assert lines("higgs", view)[1:] == ["service  does not answer"]


def test_a_count_that_began_anew_has_no_rate():
    view = Looks(read(SECOND), read(FIRST.replace("seconds 100.0", "seconds 120.0"))).view()
    assert (view.cpu_percent, view.predictions, view.jobs[0].cpus) == (None, None, None)


def test_what_a_machine_tells_is_not_trusted():
    told = [
        'mlaas4hep_jobs{phase="\x1b[2J\\"\\\\\\n"} 1',
        *('mlaas4hep_jobs{phase="x} 1', "platform_cpus 1e999", "platform_cpus -", "", "{} 1"),
        'platform_load{a="}"} 2',
    ]
    figures = read("\n".join(told))
    assert figures.by("phase", "mlaas4hep_jobs") == {'?[2J"\\?': 1}
    assert figures.sum("platform_cpus") is None
    assert figures.sum("platform_load") == 2


def test_an_interval_that_would_burden_the_machine_is_refused(provision: Command):
    assert "at least" in provision.fails("top", "higgs", "--interval", "0.1", status=2)


def test_rules_and_dashboard_are_written_once(provision: Command, tmp_path: Path):
    provision("monitoring", "files", str(tmp_path / "files"))
    for name in ("platform.rules.yml", "platform.dashboard.json"):
        written = (tmp_path / "files" / name).read_bytes()
        assert written == (REPOSITORY / "roles/monitoring/files" / name).read_bytes()
    assert "already" in provision.fails("monitoring", "files", str(tmp_path / "files"), status=2)
