"""What a platform does now, of what its machine, its jobs and its service tell: the view of `provision top`.

The machine is sent the program with which the role `monitoring` collects figures (`platform-metrics`), and runs it once
for each look, without rights; nothing has to be installed there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from provision.errors import ProvisionError
from provision.remote import Remote, RemoteError
from provision.share import share

PROGRAM = "roles/monitoring/files/platform-metrics"
LEAST_INTERVAL = 1.0
"""Seconds between two looks at least."""

_PATIENCE = 60  # seconds that one look may take on the machine
_MOST_CHARACTERS = 2**23
_MOST_ROWS = 200
_GIGABYTE = 2.0**30
_FIGURE = re.compile(r'^([a-zA-Z_][a-zA-Z0-9_]*)(?:\{((?:[^"}]|"(?:[^"\\]|\\.)*")*)\})? ([0-9.eE+-]+)$')
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')
_ESCAPED = re.compile(r"\\(.)")


@dataclass(frozen=True)
class Figure:
    """One value that the machine tells, with its labels."""

    labels: dict[str, str]
    value: float


@dataclass(frozen=True)
class Figures:
    """All that the machine tells at one moment, by name."""

    named: dict[str, list[Figure]]

    def all(self, name: str) -> list[Figure]:
        """The values of that name, _MOST_ROWS at most."""
        return self.named.get(name, [])[:_MOST_ROWS]

    def sum(self, name: str) -> float | None:
        """Their sum; None when there is none."""
        found = self.named.get(name)
        return sum(figure.value for figure in found) if found else None

    def by(self, label: str, name: str) -> dict[str, float]:
        """The values by one of their labels."""
        return {figure.labels.get(label, ""): figure.value for figure in self.all(name)}


@dataclass(frozen=True)
class Job:
    """A job that runs, or waits in Slurm's queue; what is not told of it is None."""

    job: str
    state: str
    cpus: float | None
    memory_gb: float | None
    seconds: float | None
    asked: str = ""


@dataclass(frozen=True)
class View:
    """A platform at one moment. Sizes are in gigabytes (2**30 bytes); what the machine does not tell is None or empty.

    Attributes:
        at: when it was looked at, on this computer's clock.
        cpus, cpu_percent, load: CPUs, how much of all of them was used since the last look, load of a minute.
        memory_gb, memory_total_gb: in use and in all.
        disks, gpus: one mapping each.
        temperatures: degrees Celsius by sensor.
        queue: jobs of the service that have not ended, by phase; None where no service answers.
        slurm: nodes, CPUs and jobs by state.
        predictions, requests: of the inference server, in a second.
        jobs: what runs.
        alerts: names of those that a Prometheus on the machine has raised.
    """

    at: datetime
    cpus: float | None = None
    cpu_percent: float | None = None
    load: float | None = None
    memory_gb: float | None = None
    memory_total_gb: float | None = None
    disks: list[dict[str, Any]] = field(default_factory=list)
    gpus: list[dict[str, Any]] = field(default_factory=list)
    temperatures: dict[str, float] = field(default_factory=dict)
    queue: dict[str, float] | None = None
    slurm: dict[str, dict[str, float]] = field(default_factory=dict)
    predictions: float | None = None
    requests: float | None = None
    jobs: list[Job] = field(default_factory=list)
    alerts: list[str] = field(default_factory=list)

    def as_data(self) -> dict[str, Any]:
        """The view for scripts."""
        return {**asdict(self), "at": self.at.isoformat()}


def look(remote: Remote) -> Figures:
    """Have the machine tell its figures; raises ProvisionError when it cannot."""
    program = (share() / PROGRAM).read_text(encoding="utf-8")
    try:
        told = remote.run(["timeout", str(_PATIENCE), "python3", "-I", "-", "--machine"], stdin=program)
    except RemoteError as error:
        raise ProvisionError(
            f"{remote.folder.name} cannot tell what it does: {error.message}.", details=error.details
        ) from None
    return read(told)


def read(text: str) -> Figures:
    """Read Prometheus' text format; whoever is root on the machine may have written it, so the rest is passed over."""
    named: dict[str, list[Figure]] = {}
    for line in text[:_MOST_CHARACTERS].splitlines():
        if found := _FIGURE.match(line):
            name, labels, value = found.groups()
            try:
                number = float(value)
            except ValueError:
                continue
            if math.isfinite(number):
                told = {key: _word(word) for key, word in _LABEL.findall(labels or "")}
                named.setdefault(name, []).append(Figure(told, number))
    return Figures(named)


def _word(word: str) -> str:
    """The value of a label, of which a terminal shows each character as it is."""
    word = _ESCAPED.sub(lambda found: "\n" if found[1] == "n" else found[1], word)
    return "".join(sign if sign.isprintable() else "?" for sign in word)[:100]


@dataclass(frozen=True)
class Looks:
    """Two looks at a machine, one after the other: what is told of the second, and rates between the two."""

    before: Figures
    after: Figures

    @cached_property
    def _passed(self) -> float:
        clock = "platform_monotonic_seconds"
        return (self.after.sum(clock) or 0.0) - (self.before.sum(clock) or 0.0)

    def rate(self, name: str, label: str = "", of: str = "") -> float | None:
        """Growth of a count in a second, of one value of a label; None where it is not told, or began anew."""
        first, last = (
            figures.by(label, name).get(of) if label else figures.sum(name) for figures in (self.before, self.after)
        )
        if first is None or last is None or last < first or self._passed <= 0:
            return None
        return (last - first) / self._passed

    def view(self) -> View:
        """The platform now."""
        now, cpus = self.after, self.after.sum("platform_cpus")
        used = self.rate("platform_cpu_seconds_total")
        total, free = now.sum("platform_memory_total_bytes"), now.sum("platform_memory_available_bytes")
        served = "mlaas4hep_serving_rows_total" in now.named
        return View(
            at=datetime.now(UTC),
            cpus=cpus,
            cpu_percent=None if used is None or not cpus else 100 * used / cpus,
            load=now.sum("platform_load"),
            memory_gb=None if total is None or free is None else (total - free) / _GIGABYTE,
            memory_total_gb=None if total is None else total / _GIGABYTE,
            disks=list(self._disks()),
            gpus=list(self._gpus()),
            temperatures=now.by("sensor", "platform_temperature_celsius"),
            queue=now.by("phase", "mlaas4hep_jobs") if served else None,
            slurm=self._slurm(),
            predictions=self.rate("mlaas4hep_serving_rows_total"),
            requests=self.rate("mlaas4hep_serving_requests_total"),
            jobs=[*self._jobs(), *self._slurm_jobs()],
            alerts=sorted(
                {a.labels.get("alertname", "") for a in now.all("ALERTS") if a.labels.get("alertstate") == "firing"}
            ),
        )

    def _disks(self) -> Iterator[dict[str, Any]]:
        free = self.after.by("disk", "platform_disk_available_bytes")
        for disk, total in self.after.by("disk", "platform_disk_total_bytes").items():
            yield {"disk": disk, "free_gb": free.get(disk, 0.0) / _GIGABYTE, "total_gb": total / _GIGABYTE}

    def _gpus(self) -> Iterator[dict[str, Any]]:
        figures = {
            "percent": ("platform_gpu_utilization_ratio", 100.0),
            "memory_gb": ("platform_gpu_memory_used_bytes", 1 / _GIGABYTE),
            "memory_total_gb": ("platform_gpu_memory_total_bytes", 1 / _GIGABYTE),
            "celsius": ("platform_gpu_temperature_celsius", 1.0),
            "watts": ("platform_gpu_power_watts", 1.0),
        }
        told = {name: (self.after.by("gpu", figure), unit) for name, (figure, unit) in figures.items()}
        for info in self.after.all("platform_gpu_info"):
            gpu = info.labels.get("gpu", "")
            values = {name: values[gpu] * unit if gpu in values else None for name, (values, unit) in told.items()}
            yield {"gpu": gpu, "model": info.labels.get("model", ""), **values}

    def _slurm(self) -> dict[str, dict[str, float]]:
        kinds = {kind: self.after.by("state", f"platform_slurm_{kind}") for kind in ("nodes", "cpus", "jobs")}
        return kinds if self.after.sum("platform_slurm_up") else {}

    def _jobs(self) -> Iterator[Job]:
        memory = self.after.by("job", "platform_job_memory_bytes")
        for job, seconds in self.after.by("job", "platform_job_running_seconds").items():
            cpus = self.rate("platform_job_cpu_seconds_total", "job", job)
            yield Job(job, "running", cpus, memory[job] / _GIGABYTE if job in memory else None, seconds)

    def _slurm_jobs(self) -> Iterator[Job]:
        for figure in self.after.all("platform_slurm_job_cpus"):
            told = {key: figure.labels.get(key, "") for key in ("job", "state", "memory", "time", "user", "name")}
            asked = f"{figure.value:.0f} CPUs, {told['memory']}; {told['user']}, {told['name']}, for {told['time']}"
            yield Job(told["job"], told["state"], None, None, None, asked)


def lines(name: str, view: View) -> list[str]:
    """The view for people."""
    rows: list[tuple[str, str]] = []
    if view.cpus is not None:
        percent = "" if view.cpu_percent is None else f"{view.cpu_percent:.1f} % of "
        load = "" if view.load is None else f", load {view.load:.2f}"
        rows.append(("CPU", f"{percent}{view.cpus:.0f} CPUs{load}"))
    if view.memory_gb is not None and view.memory_total_gb is not None:
        rows.append(("memory", f"{view.memory_gb:.1f} of {view.memory_total_gb:.1f} GB"))
    rows += [
        (f"disk {disk['disk']}", f"{disk['total_gb'] - disk['free_gb']:.1f} of {disk['total_gb']:.1f} GB")
        for disk in view.disks
    ]
    rows += [(f"GPU {gpu['gpu']}", f"{_gpu(gpu)}  ({gpu['model']})") for gpu in view.gpus]
    if view.temperatures:
        rows.append(("degrees", ", ".join(f"{sensor} {c:.0f}" for sensor, c in view.temperatures.items())))
    if view.queue is None:
        rows.append(("service", "does not answer"))
    else:
        rows.append(("queue", _counts(view.queue) or "empty"))
    for kind, states in view.slurm.items():
        rows.append((f"Slurm's {'CPUs' if kind == 'cpus' else kind}", _counts(states) or "none"))
    if view.predictions is not None:
        requests = "" if view.requests is None else f", in {view.requests:.1f} requests/s"
        rows.append(("predictions", f"{view.predictions:.1f}/s{requests}"))
    if view.alerts:
        rows.append(("ALERTS", ", ".join(view.alerts)))
    head = f"{name}  {view.at.astimezone():%Y-%m-%d %H:%M:%S}"
    return [head, *_columns(rows), *(["", *_columns(_job_rows(view.jobs))] if view.jobs else [])]


def _gpu(gpu: dict[str, Any]) -> str:
    words = []
    if gpu["percent"] is not None:
        words.append(f"{gpu['percent']:.0f} %")
    if gpu["memory_gb"] is not None and gpu["memory_total_gb"] is not None:
        words.append(f"{gpu['memory_gb']:.1f} of {gpu['memory_total_gb']:.1f} GB")
    if gpu["celsius"] is not None:
        words.append(f"{gpu['celsius']:.0f} degrees")
    if gpu["watts"] is not None:
        words.append(f"{gpu['watts']:.0f} W")
    return ", ".join(words) or "tells nothing"


def _counts(counts: dict[str, float]) -> str:
    return ", ".join(f"{count:.0f} {state}" for state, count in counts.items())


def _job_rows(jobs: Sequence[Job]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("job", "state", "CPUs", "memory", "running for", "asked for")]
    for job in jobs:
        cpus = "" if job.cpus is None else f"{job.cpus:.2f}"
        memory = "" if job.memory_gb is None else f"{job.memory_gb:.2f} GB"
        rows.append((job.job, job.state, cpus, memory, _time(job.seconds), job.asked))
    return rows


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))] if rows else []
    return ["  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in rows]
