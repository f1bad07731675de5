"""What whoever deploys a platform may choose: each choice is one input of the template and one field of the form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from provision.spec import DOMAIN_PATTERN, ENDPOINT_PATTERN, PlatformSpec

PORT_TYPE = "tosca.datatypes.indigo.network.PortSpec"
USER_TYPE = "tosca.datatypes.indigo.User"

MACHINE, SERVICE = "Machine", "Service"
"""The tabs of the form."""

UBUNTU = ("22.04", "24.04")
"""Releases that the roles serve."""

GPU_MODELS = ("T4", "A30", "A100")
"""GPUs that services of the portfolio name."""

DOMAIN = DOMAIN_PATTERN.strip("^$")
ENDPOINT = ENDPOINT_PATTERN.strip("^$")
ISSUER = r"https://[A-Za-z0-9._~:/%+@-]+"
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


def inputs_of(spec: PlatformSpec) -> list[Input]:
    """The choices that a template of this spec leaves open; what the spec says is the default or the least."""
    found = [*_sizes(spec), *_gpus(spec), *_system(spec), *_access(spec)]
    return found + _service(spec) if spec.service == "shared" else found


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
    ]


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


def _service(spec: PlatformSpec) -> list[Input]:
    def one(name: str, label: str, description: str, default: str | None, pattern: str, **form: Any) -> Input:
        return Input(name, "string", label, description, SERVICE, default, _like(pattern), form)

    entry = {"type": "string"}
    domain, client = str(spec.domain), str(spec.client_id)
    return [
        one("domain", "Name", "DNS name that leads to the machine.", None, DOMAIN, type="hostname", placeholder=domain),
        one("issuer", "Issuer", "OpenID Connect issuer of the users.", spec.iam, ISSUER, type="text"),
        one("client_id", "Client", "Its client at the issuer.", None, CLIENT, type="text", placeholder=client),
        Input(
            name="endpoints",
            type="list",
            label="Servers of data",
            description="Servers that jobs may read from, HOST:PORT each.",
            tab=SERVICE,
            default=list(spec.endpoints),
            schema={"entry_schema": entry | _like(ENDPOINT), "required": False},
            form={"type": "list", "entry_schema": entry},
        ),
    ]


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
