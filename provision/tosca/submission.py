"""What is submitted: a checked template of the toolkit's own, values of its inputs, and the spec that they mean."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from provision import __version__
from provision.errors import ProvisionError, UsageError
from provision.framework import find_framework
from provision.spec import REGISTERED, WEB_PORTS, PlatformSpec, make_spec, make_specs, read_spec
from provision.tosca.check import check, check_values
from provision.tosca.orchestrator import MARK
from provision.tosca.render import NODE_TYPE, WORKERS, Portfolio, render_templates, write
from provision.tosca.source import Problem, read_source

MACHINE_TYPE = "tosca.nodes.indigo.Compute"
USERS = "users"
"""The input with the accounts on the machine; where nobody fills it, the toolkit does, with the platform's own key."""


@dataclass(frozen=True)
class Submission:
    """A template and the values of its inputs.

    Attributes:
        document: the template.
        values: of the inputs that have another value than their default.
    """

    document: dict[str, Any]
    values: dict[str, Any]

    @property
    def inputs(self) -> dict[str, Any]:
        """Each input with its value, chosen or default."""
        entries = self.document["topology_template"].get("inputs", {})
        return {name: self.values.get(name, entry.get("default")) for name, entry in entries.items()}

    @property
    def name(self) -> str:
        """What the template calls the platform."""
        return str(self._node(NODE_TYPE)["properties"]["name"])

    def named(self, name: str) -> Submission:
        """The same for a platform of that name."""
        document = copy.deepcopy(self.document)
        for node in document["topology_template"]["node_templates"].values():
            if node["type"] == NODE_TYPE:
                node["properties"]["name"] = name
        return Submission(document, self.values)

    def template(self, uid: str) -> str:
        """The template's text, with the mark of a platform."""
        metadata = {**self.document.get("metadata", {}), MARK: uid}
        return write({**self.document, "metadata": metadata})

    def spec(self, cloud: str, jump: str | None = None) -> PlatformSpec:
        """The spec of a direct creation that leads to the same machine and the same roles.

        Raises UsageError for values that no spec can have.
        """
        said = {name: self._value(entry) for name, entry in self._node(NODE_TYPE)["properties"].items()}
        host = self._capability("host")
        workers = self._capability("scalable", WORKERS).get("count", 0)
        sizes = {"cpus": "num_cpus", "memory": "mem_size", "disk": "disk_size"}
        ports = (self._capability("endpoint").get("ports") or {}).values()
        closed = {22, *(WEB_PORTS if said.get("service") == "shared" else ())}
        gpus, idle = host.get("num_gpus"), int(said.get("idle_seconds") or 0)
        packages = [str(entry) for entry in said.get("packages") or []]
        service = {
            "service": "shared",
            "domain": said.get("domain"),
            "iam": said.get("issuer"),
            "client_id": said.get("client_id"),
            "executor": "local" if workers else said.get("executor", "local"),  # workers bring Slurm by themselves
            "endpoints": said.get("endpoints") or [],
            "groups": said.get("iam_groups") or [],
            "admin_groups": said.get("iam_admin_groups") or [],
            "tls": said.get("certificate", "acme"),
        }
        return make_spec(
            {
                "name": self.name,
                "cloud": cloud,
                "jump": jump,
                **{field: host[name] for field, name in sizes.items() if name in host},
                "gpu": f"{host.get('gpu_model') or ''}:{gpus}/{said.get('gpu_partitions') or ''}" if gpus else None,
                "idle_stop": f"{idle // 60}m" if idle else None,
                "ports": sorted({port["source"] for port in ports if "source" in port} - closed),
                "frameworks": ["torch"] if any(entry.startswith("torch") for entry in packages) else [],
                "mlaas4hep": "" if said["version"] == __version__ else said["version"],
                "monitoring": said.get("monitoring", "none"),
                "jupyter": said.get("jupyter", "none") != "none",
                "cvmfs": said.get("cvmfs_repositories") or [],
                "cvmfs_proxy": said.get("cvmfs_proxy") or "DIRECT",
                "workers": workers,
                "worker_flavor": self._capability("host", WORKERS).get("instance_type"),
                **(service if said.get("service") == "shared" else {}),
            }
        )

    def _capability(self, name: str, machine: str = "") -> dict[str, Any]:
        """The properties of one of the capabilities of the platform's machine, or of another one that may be there."""
        nodes = self.document["topology_template"]["node_templates"]
        node = nodes.get(machine, {}) if machine else self._node(MACHINE_TYPE)
        found = node.get("capabilities", {}).get(name, {}).get("properties", {})
        return {key: self._value(entry) for key, entry in found.items()}

    def _value(self, entry: Any) -> Any:
        if isinstance(entry, dict) and "get_property" in entry:  # of the client that is registered for the deployment
            return REGISTERED
        return self.inputs[entry["get_input"]] if isinstance(entry, dict) and "get_input" in entry else entry

    def _node(self, kind: str) -> dict[str, Any]:
        nodes = self.document["topology_template"]["node_templates"].values()
        return next(node for node in nodes if node["type"] == kind)


@dataclass(frozen=True)
class Rendering:
    """What a spec is rendered with, where it is submitted itself."""

    portfolio: Portfolio
    cache: Path


def read(source: Path, values: Path | None, private: bool, rendering: Rendering | None = None) -> Submission:
    """Read and check what is to be submitted.

    Args:
        source: a template, the folder of `provision tosca render`, or a spec.
        values: a file with values of inputs.
        private: of a folder or spec, take the template for private networks.
        rendering: how a spec is rendered.

    Raises:
        UsageError: the source is none of these, or a spec without `rendering`.
        ProvisionError: with all that `provision tosca check` finds.
    """
    with _template(source, private, rendering) as template:
        _, problems = check(template, values)
        if problems:
            raise wrong(problems)
        document = read_source(template).data
    found = Submission(document, read_source(values).data if values else {})
    ours = {NODE_TYPE, MACHINE_TYPE}
    if not ours <= {node["type"] for node in document["topology_template"]["node_templates"].values()}:
        raise UsageError(
            f"{source} is no template of `provision tosca render`: it has no node of the type {NODE_TYPE}.",
            "The orchestrator's dashboard submits other templates.",
        )
    return found


def wrong(problems: list[Problem]) -> ProvisionError:
    """The error for a template that is not in order."""
    count = f"{len(problems)} problem{'s' * (len(problems) > 1)}"
    details = "\n".join(map(str, problems))
    return ProvisionError(f"{count} in what was to be submitted; nothing was.", "Mend that first.", details)


@contextmanager
def _template(source: Path, private: bool, rendering: Rendering | None) -> Iterator[Path]:
    """The template of a source, for as long as it is needed."""
    if source.is_dir():
        yield _of_folder(source, private)
    elif _is_template(source):
        yield source
    else:
        spec = make_specs(read_spec(source))[0]
        if rendering is None:
            raise UsageError(
                f"{source} is a spec: where its types and its role will be is needed.",
                "Give --types, --role and --tag as for `provision tosca render`, or what that has rendered.",
            )
        framework = find_framework(spec.mlaas4hep, rendering.cache)
        with tempfile.TemporaryDirectory(prefix="provision-") as folder:
            render_templates(spec, framework, rendering.portfolio, Path(folder))
            yield _of_folder(Path(folder), private)


def _is_template(path: Path) -> bool:
    source = read_source(path)
    return source.data is None or "topology_template" in source.data


def _of_folder(folder: Path, private: bool) -> Path:
    """The template of a folder that `provision tosca render` has made."""
    found = [path for path in sorted(folder.glob("*.y*ml")) if path.name.endswith(".yaml") and _is_template(path)]
    chosen = [path for path in found if path.stem.endswith("-private") == private]
    if len(chosen) != 1:
        names = ", ".join(path.name for path in found) or "none"
        kind = "for private networks" if private else "for public networks"
        raise UsageError(f"{folder} has not one template {kind} (there is: {names}).", "Name the template itself.")
    return chosen[0]


def changed(before: Submission, source: Path | None, values: Path | None, private: bool) -> Submission:
    """What an update is to send: a new template, or new values, or both; the other values stay. Raises as `read`."""
    base = read(source, None, private).named(before.name) if source else before
    kept = {name: value for name, value in before.values.items() if name in base.inputs}
    if values is None:
        return Submission(base.document, kept)
    if problems := check_values(values, base.document, kept):
        raise wrong(problems)
    return Submission(base.document, kept | read_source(values).data)
