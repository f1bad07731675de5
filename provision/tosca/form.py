"""What whoever deploys a platform may choose: each choice is one input of the template and one field of the form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from provision.spec import (
    DOMAIN_PATTERN,
    ENDPOINT_PATTERN,
    GROUP_PATTERN,
    MOST_WORKERS,
    PROXY_PATTERN,
    REGISTERED,
    REPOSITORY_PATTERN,
    PlatformSpec,
)

PORT_TYPE = "tosca.datatypes.indigo.network.PortSpec"
USER_TYPE = "tosca.datatypes.indigo.User"

MACHINE, DATA, SERVICE = "Machine", "Data", "Service"
"""The tabs of the form."""

UBUNTU = ("22.04", "24.04")
"""Releases that the roles serve."""

GPU_MODELS = ("T4", "A30", "A100", "H100")
"""GPUs that services of the portfolio name."""

PARTITIONS = {
    "": "whole",
    "2x3g.40gb": "2 partitions of 40 GB (A100, H100)",
    "3x2g.20gb": "3 partitions of 20 GB (A100, H100)",
    "7x1g.10gb": "7 partitions of 10 GB (A100, H100)",
}
"""What the GPUs of 80 GB can be divided into, as the portfolio's services offer it."""

CERTIFICATES = {
    "acme": "Let's Encrypt",
    "acme-staging": "Let's Encrypt's staging, for trying; browsers warn",
    "internal": "of the machine's own CA; browsers warn",
}

MONITORING = {
    "none": "none",
    "exporters": "figures for a Prometheus elsewhere",
    "prometheus": "a Prometheus on the machine, with alerts",
}

DOMAIN = DOMAIN_PATTERN.strip("^$")
ENDPOINT = ENDPOINT_PATTERN.strip("^$")
REPOSITORY = REPOSITORY_PATTERN.strip("^$")
PROXY = PROXY_PATTERN.strip("^$")
GROUP = GROUP_PATTERN.strip("^$")
ISSUER = r"https://[A-Za-z0-9._~:/%+@-]+"
FLAVOR = r"[A-Za-z0-9][A-Za-z0-9._-]*"
CLIENT = r"[A-Za-z0-9._~:/%+@-]+"
"""What texts may be, all of each: on the machine Ansible takes braces for expressions."""

MOST_CPUS = 64
MOST_MEMORY = 1024.0
MOST_DISK = 2048.0
"""The most that a form offers; memory and disk in gigabytes."""

IDLE = {0: "never", 7200: "after 2 hours", 28800: "after 8 hours", 86400: "after a day"}


@dataclass(frozen=True)
class Input:
    """One choice.

    Attributes:
        name: of the input.
        type: its TOSCA type.
        label, description: what the form shows.
        tab: of the form, on which it is.
        default: its value if nothing is chosen; None where there has to be a choice.
        schema: what else the template says of it (entry_schema, required, constraints).
        form: what else the form says of it, first of all its `type` there.
    """

    name: str
    type: str
    label: str
    description: str
    tab: str
    default: Any = None
    schema: dict[str, Any] = field(default_factory=dict)
    form: dict[str, Any] = field(default_factory=dict)

    def in_template(self) -> dict[str, Any]:
        """The entry of `topology_template.inputs`."""
        default = {} if self.default is None else {"default": self.default}
        return {"type": self.type, "description": self.description, **self.schema, **default}

    def in_form(self) -> dict[str, Any]:
        """The entry of `inputs` in the dashboard's parameters."""
        default = {} if self.default is None else {"default": self.default}
        needed = {"required": True} if self.default is None else {}
        words = {"display_name": self.label, "description": self.description}
        return {**words, **self.form, **default, **needed, "tab": self.tab}


def inputs_of(spec: PlatformSpec, private: bool) -> list[Input]:
    """The choices that a template of this spec leaves open; what the spec says is the default or the least.

    No public CA reaches a machine in a `private` network.
    """
    machine = [*_sizes(spec), *_gpus(spec), *_workers(spec), *_system(spec), *_access(spec), _monitoring(spec)]
    found = [*machine, *_data(spec)]
    if spec.service == "personal":
        return found
    return [*found, *_service(spec), *([] if private else [_certificate(spec)])]


def size(gigabytes: float) -> str:
    """A size of a spec as TOSCA writes it: `4 GiB`, or `1536 MiB` where it is no whole number."""
    return f"{gigabytes:.0f} GiB" if gigabytes == int(gigabytes) else f"{gigabytes * 1024:.0f} MiB"


def ports_of(spec: PlatformSpec) -> dict[str, dict[str, Any]]:
    """The ports that have to be open: SSH, and those of the spec."""
    named = {22: "ssh", 80: "http", 443: "https"}
    return {named.get(p, f"port-{p}"): {"protocol": "tcp", "source": p} for p in dict.fromkeys((22, *spec.open_ports))}


def system_of(spec: PlatformSpec) -> tuple[str, str]:
    """Distribution and version of the machine; the role slurm needs Debian 12."""
    return ("debian", "12") if spec.slurm else ("ubuntu", UBUNTU[0])


def _sizes(spec: PlatformSpec) -> list[Input]:
    cpus = {int(n): f"{n:.0f}" for n in _doubled(spec.cpus, MOST_CPUS)}
    memory = {size(n): size(n) for n in _doubled(spec.memory, MOST_MEMORY)}
    disk = {size(n): size(n) for n in _doubled(spec.disk, MOST_DISK)}
    words = "of the machine, at least."
    return [
        _choice("num_cpus", "integer", "CPUs", f"Virtual CPUs {words}", cpus, spec.cpus),
        _choice("mem_size", "scalar-unit.size", "Memory", f"Memory {words}", memory, size(spec.memory)),
        _choice("disk_size", "scalar-unit.size", "Disk", f"Disk {words}", disk, size(spec.disk)),
    ]


def _gpus(spec: PlatformSpec) -> list[Input]:
    if not spec.gpu:
        return []
    counts = {n: str(n) for n in (spec.gpu.count, 2 * spec.gpu.count)}
    models = {"": "any"} | {model: model for model in (*GPU_MODELS, *filter(None, [spec.gpu.model]))}
    return [
        _choice("num_gpus", "integer", "GPUs", "NVIDIA GPUs of the machine.", counts, spec.gpu.count),
        _choice("gpu_model", "string", "GPU model", "Model of the GPUs.", models, spec.gpu.model),
        _choice(
            "gpu_partitions",
            "string",
            "GPU partitions",
            "What each GPU is divided into (MIG).",
            PARTITIONS | {spec.gpu.mig: PARTITIONS.get(spec.gpu.mig, spec.gpu.mig)},
            spec.gpu.mig,
        ),
    ]


def _workers(spec: PlatformSpec) -> list[Input]:
    if not spec.workers:
        return []
    counts = {int(n): f"{n:.0f}" for n in _doubled(spec.workers, MOST_WORKERS)}
    words = "Machines that run the jobs, each as large as the first."
    found = [_choice("workers", "integer", "Workers", words, counts, spec.workers)]
    if spec.worker_flavor:
        words = "Flavor of the workers at the provider."
        found[0] = replace(found[0], description="Machines that run the jobs.")
        found.append(
            Input("worker_flavor", "string", "Flavor of the workers", words, MACHINE, spec.worker_flavor,
                  _like(FLAVOR), {"type": "text"})
        )  # fmt: skip
    return found


def _system(spec: PlatformSpec) -> list[Input]:
    if system_of(spec)[0] != "ubuntu":
        return []
    versions = {version: version for version in UBUNTU}
    return [_choice("os_version", "string", "Ubuntu", "Version of the operating system.", versions, UBUNTU[0])]


def _access(spec: PlatformSpec) -> list[Input]:
    idle = int(spec.idle_stop.total_seconds()) if spec.idle_stop else 0
    whens = dict(sorted(({idle: f"after {spec.idle_stop}"} | IDLE).items()))
    ports = ports_of(spec)
    entry = {"entry_schema": {"type": PORT_TYPE}}
    return [
        _choice("idle_seconds", "integer", "Power off", "When nobody has used the machine for this time.", whens, idle),
        Input(
            name="ports",
            type="map",
            label="Ports",
            description="TCP ports to open beside those of SSH and of the service.",
            tab=MACHINE,
            default=ports,
            schema=entry,
            form={"type": "map", **entry, "required_ports": ports},
        ),
        Input(
            name="users",
            type="list",
            label="Users",
            description="Your account on the machine, with the SSH key that the dashboard has of you.",
            tab=MACHINE,
            default=[],
            schema={"entry_schema": {"type": USER_TYPE}, "required": False},
            form={"type": "ssh_user"},
        ),
    ]


def _monitoring(spec: PlatformSpec) -> Input:
    return _choice("monitoring", "string", "Monitoring", "Figures of the machine.", MONITORING, spec.monitoring)


def _data(spec: PlatformSpec) -> list[Input]:
    words = "Repositories of CVMFS below /cvmfs, for instance cms.cern.ch."
    proxy = "HTTP proxies through which CVMFS is read, parted by |; or DIRECT."
    return [
        _texts("cvmfs_repositories", "CVMFS repositories", words, DATA, spec.cvmfs, REPOSITORY),
        Input("cvmfs_proxy", "string", "CVMFS proxies", proxy, DATA, spec.cvmfs_proxy, _like(PROXY), {"type": "text"}),
    ]


def _service(spec: PlatformSpec) -> list[Input]:
    def one(name: str, label: str, description: str, default: str | None, pattern: str, **form: Any) -> Input:
        return Input(name, "string", label, description, SERVICE, default, _like(pattern), form)

    domain, client = str(spec.domain), str(spec.client_id)
    found = [
        one("domain", "Name", "DNS name that leads to the machine.", None, DOMAIN, type="hostname", placeholder=domain),
        one("issuer", "Issuer", "OpenID Connect issuer of the users.", spec.iam, ISSUER, type="text"),
    ]
    if client != REGISTERED:
        found.append(
            one("client_id", "Client", "Its client at the issuer.", None, CLIENT, type="text", placeholder=client)
        )
    servers = "Servers that jobs may read from, HOST:PORT each."
    users = "Groups of the issuer whose members may use it; none: whoever has an account there."
    admins = "Groups of the issuer whose members may do everything."
    return [
        *found,
        _texts("endpoints", "Servers of data", servers, SERVICE, spec.endpoints, ENDPOINT),
        _texts("iam_groups", "Groups", users, SERVICE, spec.groups, GROUP),
        _texts("iam_admin_groups", "Groups of administrators", admins, SERVICE, spec.admin_groups, GROUP),
    ]


def _certificate(spec: PlatformSpec) -> Input:
    words = "Who certifies the name; a public CA has to reach the machine by it."
    chosen = _choice("certificate", "string", "Certificate", words, CERTIFICATES, spec.tls)
    return replace(chosen, tab=SERVICE)


def _texts(name: str, label: str, description: str, tab: str, default: Sequence[str], pattern: str) -> Input:
    """A list of texts that are all alike."""
    entry = {"type": "string"}
    schema = {"entry_schema": entry | _like(pattern), "required": False}
    return Input(name, "list", label, description, tab, list(default), schema, {"type": "list", "entry_schema": entry})


def _like(pattern: str) -> dict[str, Any]:
    return {"constraints": [{"pattern": pattern}]}


def _choice(name: str, kind: str, label: str, description: str, labels: dict[Any, str], default: Any) -> Input:
    """A choice among a few values of the machine."""
    schema = {"constraints": [{"valid_values": list(labels)}]}
    form = {"type": "select", "constraints": [{"value": value, "label": text} for value, text in labels.items()]}
    return Input(name, kind, label, description, MACHINE, default, schema, form)


def _doubled(least: float, most: float) -> Sequence[float]:
    """The least, twice the least and so on, up to the most."""
    values = [least]
    while 2 * values[-1] <= most:
        values.append(2 * values[-1])
    return values
