"""From a spec to what INFN-Cloud's portfolio takes: types, templates, their forms, and the roles as one role."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import yaml

from provision.configure import platform_variables
from provision.errors import UsageError
from provision.framework import Framework
from provision.record import Record
from provision.share import platform_play, share
from provision.spec import REGISTERED, PlatformSpec
from provision.tosca.form import DATA, ISSUER, MACHINE, SERVICE, inputs_of, system_of

VERSION = "tosca_simple_yaml_1_0"
NODE_TYPE = "tosca.nodes.indigo.MLaaS4HEP"
WORKERS = "workers"
"""The node of a cluster's workers, and so the group that the Infrastructure Manager's inventory has them in."""
CLIENT_TYPE = "tosca.nodes.indigo.iam.client"
CLIENT_SCOPES = "openid profile wlcg.groups"
"""What the service's login asks the issuer for."""
BASIC_TYPES = "tosca_types/base/basic_types.yaml"
TYPES = "tosca_types/applications/mlaas4hep_types.yaml"
PLAYBOOK = "artifacts/mlaas4hep/platform.yml"
CATALOGUE = "metadata.yml"
"""Paths below the folder that is rendered; the first three are those of INFN-Cloud's repository tosca-types as well."""

HONOURED = frozenset(
    {"name", "cpus", "memory", "disk", "gpu", "ports", "idle_stop", "frameworks", "mlaas4hep", "monitoring", "jupyter"}
    | {"service", "domain", "iam", "client_id", "executor", "endpoints", "tls", "groups", "admin_groups"}
    | {"cvmfs", "cvmfs_proxy", "workers", "worker_flavor"}
)
"""What of a spec a template can say. `cloud` is the orchestrator's choice."""

_TEXT: dict[str, Any] = {"type": "string", "required": False, "default": ""}
_NUMBER: dict[str, Any] = {"type": "integer", "required": False, "default": 0}
_TEXTS: dict[str, Any] = {"type": "list", "entry_schema": {"type": "string"}, "required": False, "default": []}


def _one_of(first: str, *others: str) -> dict[str, Any]:
    return {**_TEXT, "default": first, "constraints": [{"valid_values": [first, *others]}]}


PROPERTIES: dict[str, tuple[str, dict[str, Any]]] = {
    "platform_name": ("name", {"type": "string", "required": True}),
    "base_idle_seconds": ("idle_seconds", _NUMBER),
    "mlaas4hep_gpus": ("num_gpus", _NUMBER),
    "gpu_driver_mig": ("gpu_partitions", _TEXT),
    "mlaas4hep_version": ("version", {"type": "string", "required": True}),
    "mlaas4hep_packages": ("packages", _TEXTS),
    "mlaas4hep_service": ("service", _one_of("personal", "shared")),
    "mlaas4hep_domain": ("domain", _TEXT),
    "mlaas4hep_issuer": ("issuer", _TEXT),
    "mlaas4hep_client_id": ("client_id", _TEXT),
    "mlaas4hep_registration_token": ("registration_token", _TEXT),
    "mlaas4hep_groups": ("iam_groups", _TEXTS),
    "mlaas4hep_admin_groups": ("iam_admin_groups", _TEXTS),
    "mlaas4hep_executor": ("executor", _one_of("local", "slurm")),
    "slurm_limits": ("slurm_limits", _one_of("required", "where possible")),
    "mlaas4hep_endpoints": ("endpoints", _TEXTS),
    "web_proxy_tls": ("certificate", _one_of("internal", "acme", "acme-staging")),
    "monitoring_kind": ("monitoring", _one_of("none", "exporters", "prometheus")),
    "jupyter_kind": ("jupyter", _one_of("none", "personal", "shared")),
    "cvmfs_repositories": ("cvmfs_repositories", _TEXTS),
    "cvmfs_proxy": ("cvmfs_proxy", {**_TEXT, "default": "DIRECT"}),
}
"""Which property of the node each variable of the roles is taken from, and that property's definition."""

DERIVED = {
    "mlaas4hep_gpu": "{{ mlaas4hep_gpus | int > 0 }}",
    "slurm_gpus": "{{ mlaas4hep_gpus | int }}",
    "slurm_controller": "{{ groups['platform'] | default([inventory_hostname]) | first }}",
    "web_proxy_domain": "{{ mlaas4hep_domain }}",
}
"""Variables of the roles that follow from others on the machine, as TOSCA cannot compute."""


@dataclass(frozen=True)
class Portfolio:
    """Where the portfolio keeps what is rendered, and how it shows it.

    Attributes:
        types: address, at a tag, of what has `tosca_types` and `artifacts` below it.
        role: address of the git repository of the role.
        tag: of that repository.
        guide: address of the guide for users.
        icon: address of the picture in the catalogue.
        groups: of users who see the service; none: everybody.
    """

    types: str
    role: str
    tag: str
    guide: str
    icon: str
    groups: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("types", "role", "guide", "icon"):
            address = getattr(self, name)
            if not re.fullmatch(r"(https?://|file:///)[A-Za-z0-9][A-Za-z0-9._~:/?#%@=&+-]*", address):
                raise UsageError(f"{address!r} is no address ({name}).", "It begins with https://.")
        for name, word in (("role", self.role_name), ("tag", self.tag)):
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", word):
                raise UsageError(
                    f"{word!r} cannot be the name of a {name}.", "Letters, digits, dots and dashes can be."
                )

    @property
    def role_name(self) -> str:
        """What Ansible calls the role: the last word of its repository."""
        return PurePosixPath(urlsplit(self.role).path).name.removesuffix(".git")

    @property
    def visibility(self) -> dict[str, Any]:
        """Who sees the service, as the dashboard's catalogue has it."""
        return {"type": "private", "groups": list(self.groups)} if self.groups else {"type": "public"}


def render(spec: PlatformSpec, framework: Framework, portfolio: Portfolio, folder: Path) -> list[Path]:
    """Write all files for `spec` into the new folder; returns the templates.

    `framework` is what the roles install; a wheel travels with them. The template for private networks is left out
    where a public CA has to reach the machine.

    Raises UsageError when the folder is there, and for wishes that no template can say.
    """
    _check(spec)
    if folder.exists():
        raise UsageError(f"{folder} is there already.", "Name a new folder with --folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as name:
        made = Path(name) / "made"
        render_templates(spec, framework, portfolio, made)
        _copy_role(framework, made / portfolio.role_name)
        made.rename(folder)
    return [folder / f"{name}.yaml" for name, _ in _variants(spec)]


def render_templates(spec: PlatformSpec, framework: Framework, portfolio: Portfolio, folder: Path) -> None:
    """Write all files for `spec` but the role; raises as `render` does for wishes that no template can say."""
    _check(spec)
    variables = platform_variables(_undeployed(spec), framework)
    documents: dict[str, Any] = {
        TYPES: node_types(portfolio),
        PLAYBOOK: playbook(portfolio, framework),
        CATALOGUE: catalogue(spec, portfolio),
    }
    for name, private in _variants(spec):
        documents[f"{name}.yaml"] = template(spec, variables, portfolio, private)
        documents[f"{name}.parameters.yml"] = parameters(spec, private)
        documents[f"{name}.metadata.yml"] = metadata(spec, portfolio, private)
    for path, document in documents.items():
        _made(folder / path).write_text(write(document), encoding="utf-8")
    shutil.copyfile(share() / "templates/tosca/basic_types.yaml", _made(folder / BASIC_TYPES))


def write(document: Any) -> str:
    """A document as YAML, in the order in which it was made and without references."""

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    return yaml.dump(document, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)


def node_types(portfolio: Portfolio) -> dict[str, Any]:
    """The definition of the node that is the platform's software."""
    inputs = {variable: {"get_property": ["SELF", name]} for variable, (name, _) in PROPERTIES.items()}
    role = {"file": f"git+{portfolio.role},{portfolio.tag}", "type": "tosca.artifacts.AnsibleGalaxy.role"}
    configure = {"implementation": f"{portfolio.types.rstrip('/')}/{PLAYBOOK}", "inputs": inputs}
    return {
        "tosca_definitions_version": VERSION,
        "imports": [{"indigo_basic_types": f"{portfolio.types.rstrip('/')}/{BASIC_TYPES}"}],
        "node_types": {
            NODE_TYPE: {
                "derived_from": "tosca.nodes.SoftwareComponent",
                "properties": dict(PROPERTIES.values()),
                "artifacts": {"mlaas4hep_role": role},
                "interfaces": {"Standard": {"configure": configure}},
            }
        },
    }


def playbook(portfolio: Portfolio, framework: Framework) -> list[dict[str, Any]]:
    """The playbook of a creation, for a machine that runs Ansible itself and has the roles inside of one role."""

    def inside(name: str) -> str:
        return f"{portfolio.role_name}/roles/{name}"

    play = platform_play()
    for task in play["pre_tasks"]:
        if called := task.get("ansible.builtin.include_role"):
            called["name"] = inside(called["name"])
    for role in play["roles"]:
        role["role"] = inside(role["role"])
    wheel = {"mlaas4hep_wheel": f"{{{{ role_path }}}}/../../wheels/{framework.wheel.name}"} if framework.wheel else {}
    own = {name: value for name, value in play["vars"].items() if name not in PROPERTIES}
    play["vars"] = own | {"platform_digest": portfolio.tag} | DERIVED | wheel
    return [{"name": play.pop("name"), "hosts": "localhost", "connection": "local", **_without(play, "hosts")}]


def template(spec: PlatformSpec, variables: dict[str, Any], portfolio: Portfolio, private: bool) -> dict[str, Any]:
    """The template for `spec`, of whose roles' `variables` what nobody has to choose is fixed in it."""
    inputs = inputs_of(spec, private)
    chosen: dict[str, Any] = {one.name: {"get_input": one.name} for one in inputs}
    if spec.client_id == REGISTERED:
        chosen["client_id"] = {"get_property": ["iam_client", "client_id"]}
    properties = {
        name: chosen.get(name, variables[variable])
        for variable, (name, _) in PROPERTIES.items()
        if variable in variables
    }
    if spec.client_id == REGISTERED:
        properties["registration_token"] = {"get_property": ["iam_client", "registration_access_token"]}
    if spec.workers:  # each machine is configured by itself, and does not see what others could limit
        properties["slurm_limits"] = "required"
    software = {"type": NODE_TYPE, "properties": properties, "requirements": [{"host": "platform"}]}
    return {
        "tosca_definitions_version": VERSION,
        "imports": [{"mlaas4hep_types": f"{portfolio.types.rstrip('/')}/{TYPES}"}],
        "description": _describe(spec, private),
        "metadata": {
            "display_name": _display(spec, private),
            "template_name": spec.name,
            "template_version": str(variables["mlaas4hep_version"]),
            "target_provider_type": "openstack",
        },
        "topology_template": {
            "inputs": {one.name: one.in_template() for one in inputs},
            "node_templates": {
                **_networks(private),
                **_client(spec),
                "platform": _machine(spec, chosen),
                "mlaas4hep": software,
                **(_workers(spec, chosen, software) if spec.workers else {}),
            },
            "outputs": _outputs(spec, private),
        },
    }


def parameters(spec: PlatformSpec, private: bool) -> dict[str, Any]:
    """The form of the template."""
    inputs = inputs_of(spec, private)
    tabs = [tab for tab in (MACHINE, DATA, SERVICE) if any(one.tab == tab for one in inputs)]
    return {"tabs": tabs, "inputs": {one.name: one.in_form() for one in inputs}}


def metadata(spec: PlatformSpec, portfolio: Portfolio, private: bool) -> dict[str, Any]:
    """What the dashboard shows of the template."""
    words = {"display_name": _display(spec, private), "description": _describe(spec, private)}
    return {"metadata": {**words, "icon": portfolio.icon, "visibility": portfolio.visibility, "require_ssh_key": True}}


def catalogue(spec: PlatformSpec, portfolio: Portfolio) -> dict[str, Any]:
    """The entry of the dashboard's catalogue, as a catalogue of its own."""
    options = {False: "Public network", True: "Private network"}
    templates = [{"name": f"{name}.yaml", "option": options[private]} for name, private in _variants(spec)]
    shown = {
        "display_name": _display(spec, False),
        "bookmark_id": spec.name,
        "guide_url": portfolio.guide,
        "icon": portfolio.icon,
        "visibility": portfolio.visibility,
    }
    return {"services": [{"description": _describe(spec, False), "metadata": shown, "templates": templates}]}


def _check(spec: PlatformSpec) -> None:
    default = PlatformSpec(name=spec.name)
    fields = [f for f in spec.differences(default) if f not in HONOURED | {"cloud"}]
    if fields:
        remedy = {"ttl": "A template may be deployed at any time: use idle_stop."}
        raise UsageError(
            f"A TOSCA template cannot say: {', '.join(fields)}.",
            " ".join(remedy[f] for f in fields if f in remedy) or "Leave it out of the spec, or create it directly.",
        )
    if spec.iam and not re.fullmatch(ISSUER, spec.iam):
        raise UsageError(f"A TOSCA template cannot have the issuer {spec.iam!r}.", f"It has to be like {ISSUER}.")
    if wheels := [name for name in spec.frameworks if name.endswith(".whl")]:
        raise UsageError(f"A TOSCA template cannot carry the framework's wheel {wheels[0]}.", "Name a framework.")


def _undeployed(spec: PlatformSpec) -> Record:
    """What a creation would record of it: its variables are asked for, and nothing is made."""
    return Record(name=spec.name, uid="", owner="", toolkit="", spec=spec)


def _variants(spec: PlatformSpec) -> Iterator[tuple[str, bool]]:
    """Names of the templates, and whether they are for private networks."""
    yield spec.name, False
    if spec.service == "personal" or spec.tls != "acme":
        yield f"{spec.name}-private", True


def _describe(spec: PlatformSpec, private: bool) -> str:
    who = "for one user, reached by SSH" if spec.service == "personal" else "shared, reached by HTTPS"
    what = ", with workers of its own" if spec.workers else ""
    where = " in a private network" if private else ""
    return f"MLaaS4HEP, {who}{what}{where}: reads ROOT files, trains machine-learning models and serves them."


def _display(spec: PlatformSpec, private: bool) -> str:
    return f"MLaaS4HEP {spec.name}" + (" (private network)" if private else "")


def _machine(spec: PlatformSpec, chosen: dict[str, Any]) -> dict[str, Any]:
    distribution, version = system_of(spec)
    host = {
        name: chosen[name] for name in ("num_cpus", "mem_size", "disk_size", "num_gpus", "gpu_model") if name in chosen
    }
    system = {"type": "linux", "distribution": distribution, "version": chosen.get("os_version", version)}
    return {
        "type": "tosca.nodes.indigo.Compute",
        "properties": {"os_users": chosen["users"], "tags": {"mlaas4hep": spec.name}},
        "capabilities": {
            "endpoint": {"properties": {"ports": chosen["ports"]}},
            "scalable": {"properties": {"count": 1}},
            "host": {"properties": host},
            "os": {"properties": system},
        },
    }


def _workers(spec: PlatformSpec, chosen: dict[str, Any], software: dict[str, Any]) -> dict[str, Any]:
    """The machines that run the jobs: like the first, in the private network alone, and configured after it."""
    machine = _machine(spec, chosen)
    capabilities = machine["capabilities"]
    capabilities["scalable"]["properties"]["count"] = chosen["workers"]
    capabilities["endpoint"]["properties"]["ports"] = {"ssh": {"protocol": "tcp", "source": 22}}
    if spec.worker_flavor:
        capabilities["host"]["properties"] = {"instance_type": chosen["worker_flavor"]}
    return {
        WORKERS: machine,
        f"{WORKERS}_port": {
            "type": "tosca.nodes.network.Port",
            "properties": {"order": 0},
            "requirements": [{"binding": WORKERS}, {"link": "private_network"}],
        },
        f"mlaas4hep_{WORKERS}": {**software, "requirements": [{"host": WORKERS}, {"dependency": "mlaas4hep"}]},
    }


def _client(spec: PlatformSpec) -> dict[str, Any]:
    """The client at the issuer, whose name and registration access token the orchestrator fills in."""
    if spec.client_id != REGISTERED:
        return {}
    properties = {"scopes": CLIENT_SCOPES, "issuer": {"get_input": "issuer"}}
    return {"iam_client": {"type": CLIENT_TYPE, "properties": properties}}


def _networks(private: bool) -> dict[str, Any]:
    kinds = ["private"] if private else ["private", "public"]
    found: dict[str, Any] = {}
    for order, kind in enumerate(kinds):
        found[f"{kind}_network"] = {
            "type": "tosca.nodes.indigo.network.Network" if private else "tosca.nodes.network.Network",
            "properties": {"network_type": kind},
        }
        found[f"{kind}_port"] = {
            "type": "tosca.nodes.network.Port",
            "properties": {"order": order},
            "requirements": [{"binding": "platform"}, {"link": f"{kind}_network"}],
        }
    return found


def _outputs(spec: PlatformSpec, private: bool) -> dict[str, Any]:
    address = "private_address" if private else "public_address"
    node_ip = {"description": "Address of the machine.", "value": {"get_attribute": ["platform", address, 0]}}
    if spec.service == "personal":
        return {"node_ip": node_ip}
    url = {"concat": ["https://", {"get_input": "domain"}]}
    return {"node_ip": node_ip, "service_url": {"description": "Address of the service.", "value": url}}


def _copy_role(framework: Framework, target: Path) -> None:
    """All roles of the playbook inside of one, as Ansible Galaxy takes one from a repository."""
    play = platform_play()
    for role in play["roles"]:
        shutil.copytree(share() / "roles" / role["role"], target / "roles" / role["role"])
    for lock in ("installer", "platform", "platform-gpu", "jupyter"):
        shutil.copyfile(share() / "locks" / f"{lock}.txt", _made(target / "locks" / f"{lock}.txt"))
    if framework.wheel:
        shutil.copyfile(framework.wheel, _made(target / "wheels" / framework.wheel.name))
    about = yaml.safe_load((target / "roles/mlaas4hep/meta/main.yml").read_text(encoding="utf-8"))
    about["galaxy_info"]["description"] = "The roles of an MLaaS4HEP platform, for its TOSCA type's playbook"
    _made(target / "meta/main.yml").write_text(write(about), encoding="utf-8")


def _made(path: Path) -> Path:
    """The path, with its folder made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _without(mapping: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in mapping.items() if key not in keys}
