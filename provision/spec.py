"""What the user wants: the one description behind direct creation, TOSCA templates and machines of this computer."""

from __future__ import annotations

import difflib
import hashlib
import re
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from provision.errors import UsageError

NAME_PATTERN = r"^[a-z][a-z0-9-]{0,29}$"

JUMP_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9._-]*(@[A-Za-z0-9][A-Za-z0-9.-]*)?(:\d{1,5})?$"

VOLUME_PATTERN = r"^[A-Za-z][A-Za-z0-9._-]{0,99}$|^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"
"""Name of a data volume, or its id."""

DOMAIN_PATTERN = r"^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])?$"

# a name, not an address; the service checks the rest
ENDPOINT_PATTERN = r"^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?:[1-9]\d{0,4}$"

# of CVMFS, fully qualified; /cvmfs/NAME is where it is
REPOSITORY_PATTERN = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)+$"

# proxies of CVMFS: `|` balances the load of some, `;` parts groups of which a later one is used when all before fail
PROXY_PATTERN = r"^(DIRECT|https?://[A-Za-z0-9.-]+(:\d{1,5})?)([|;](DIRECT|https?://[A-Za-z0-9.-]+(:\d{1,5})?))*$"

GROUP_PATTERN = r"^/[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*$"

REGISTERED = "registered"
"""In the place of a client's name: the PaaS orchestrator registers one at the issuer for each deployment."""

WEB_PORTS = (80, 443)
"""What a shared service is reached by; port 80 only redirects, and proves the domain to an ACME CA."""

_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(m|g|t)?(?:i?b)?\s*$", re.IGNORECASE)
_GIGABYTES = {"m": 1 / 1024, "g": 1.0, "t": 1024.0}
_DURATION = re.compile(r"^\s*(\d+)\s*([mhdw])\s*$")
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def _gigabytes(value: object) -> object:
    """`8`, `8GB`, `8192MB` -> 8.0 (binary gigabytes, as OpenStack counts them)."""
    if not isinstance(value, str):
        return value
    found = _SIZE.match(value)
    if not found:
        raise ValueError(f"{value!r} is no size; write for instance 8GB")
    return float(found[1]) * _GIGABYTES[(found[2] or "g").lower()]


def _data_volume(value: object) -> object:
    """A size as `_gigabytes` reads it, or else the name or id of a volume that was kept."""
    if not isinstance(value, str) or not _SIZE.match(value):
        return value
    return _gigabytes(value)


def _duration(value: object) -> object:
    """`90m`, `12h`, `7d`, `2w` -> timedelta."""
    if not isinstance(value, str):
        return value
    found = _DURATION.match(value)
    if not found or not int(found[1]):
        raise ValueError(f"{value!r} is no duration; write for instance 12h or 7d")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})


def _long_enough(value: timedelta | None) -> timedelta | None:
    """The machine looks every five minutes; less would power it off while its user thinks."""
    if value is not None and value < timedelta(minutes=15):
        raise ValueError("idle_stop is less than 15m")
    return value


def _write_duration(value: timedelta | None) -> str | None:
    return None if value is None else f"{int(value.total_seconds() // 60)}m"


Gigabytes = Annotated[float, BeforeValidator(_gigabytes), Field(gt=0)]
Volume = Annotated[
    Annotated[float, Field(ge=1)] | Annotated[str, Field(pattern=VOLUME_PATTERN)] | None, BeforeValidator(_data_volume)
]
Duration = Annotated[timedelta | None, BeforeValidator(_duration), PlainSerializer(_write_duration)]
Port = Annotated[int, Field(ge=1, le=65535)]

MOST_WORKERS = 32


_PROFILE = r"([1-7]x)?[1-7]g\.[1-9]\d{0,2}gb"
MIG_PATTERN = rf"^({_PROFILE}(\+{_PROFILE})*)?$"
"""Partitions of one GPU by NVIDIA's Multi-Instance GPU, for instance `2x3g.40gb`: slices of seven, and their memory."""

MIG_SLICES = 7


def _fits_a_gpu(mig: str) -> str:
    counts = [(int(times or 1), int(slices)) for times, slices in re.findall(r"(?:([1-7])x)?([1-7])g\.\d+gb", mig)]
    if sum(times * slices for times, slices in counts) > MIG_SLICES:
        raise ValueError(f"{mig} is more than the {MIG_SLICES} slices of a GPU")
    return mig


class Gpu(BaseModel):
    """A demand for GPUs: `count` of them, of any model when `model` is empty.

    `mig` tells the partitions that each of them (A100, H100, A30) is divided into, as MIG_PATTERN has them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = ""
    count: Annotated[int, Field(ge=1, le=16)] = 1
    mig: Annotated[str, Field(pattern=MIG_PATTERN), AfterValidator(_fits_a_gpu)] = ""

    @classmethod
    def parse(cls, text: str) -> Gpu:
        """Read `A100`, `A100:2`, `:2`, `2` or `any`, each also with partitions as in `A100:2/2x3g.40gb`.

        Raises ValueError for anything else.
        """
        whole, _, partitions = text.strip().partition("/")
        model, _, count = whole.rpartition(":") if ":" in whole else (whole, "", "")
        if not count and model.isdigit():
            model, count = "", model
        if count and not count.isdigit():
            raise ValueError(f"{text!r} is no GPU demand; write MODEL, MODEL:N or N, for instance T4:2")
        return cls(model="" if model.lower() == "any" else model, count=int(count or 1), mig=partitions)

    def __str__(self) -> str:
        divided = f", each divided into {self.mig}" if self.mig else ""
        return f"{self.count} x {self.model or 'any GPU'}{divided}"


LIBRARIES = ("keras", "sklearn", "torch", "xgboost")
"""The machine-learning frameworks that a platform can have; all but PyTorch are on every platform."""


def _library(value: str) -> str:
    """One of LIBRARIES, or the absolute path of a wheel on this computer."""
    if value.endswith(".whl"):
        return str(Path(value).expanduser().absolute())
    if value not in LIBRARIES:
        near = difflib.get_close_matches(value, LIBRARIES, n=1)
        raise ValueError(
            f"there is no framework {value!r}; "
            + (f"did you mean {near[0]}?" if near else f"known are {', '.join(LIBRARIES)}, or the path of a wheel")
        )
    return value


_WISHED = {"wished": True}


def _file(value: str, info: ValidationInfo) -> str:
    """The absolute path of a file on this computer; that of a record may have gone since."""
    path = Path(value).expanduser().absolute()
    if info.context == _WISHED and not path.is_file():
        raise ValueError(f"there is no file {path}")
    return str(path)


File = Annotated[str, AfterValidator(_file)]


def _gpu(value: object) -> object:
    return Gpu.parse(str(value)) if isinstance(value, str | int) and not isinstance(value, bool) else value


class PlatformSpec(BaseModel):
    """The wishes for one platform. Sizes are in gigabytes (2**30 bytes).

    `cloud` is `local`, `ssh:USER@HOST[:PORT]` or an entry of clouds.yaml, `NAME` or `NAME/REGION`. `jump` is an OpenSSH
    jump host (`USER@HOST[:PORT]`). `frameworks` names machine-learning frameworks that the platform must have: of
    LIBRARIES, or paths of their wheels on this computer. `mlaas4hep` is the MLaaS4HEP that is installed: empty for the
    one that this toolkit came with, else a released version or the path of a wheel. `monitoring` is `none`, `exporters`
    (figures for a Prometheus elsewhere) or `prometheus` (one on the machine as well). `jupyter` asks for notebooks.

    `cvmfs` names repositories of CVMFS that are below /cvmfs, read through `cvmfs_proxy`.

    `data_volume` is the size of a volume that outlives the machine, or the name or id of one that was kept: everything
    in /var/lib/mlaas4hep (workspaces, jobs, models, store, the service's database) lies on it.

    `service` is `personal`, for one user who reaches it over SSH, or `shared`: under `domain`, for whoever has a token
    of the OpenID Connect issuer `iam` for `client_id`, as the file `policy` allows; or, without a file, for members of
    the issuer's `groups` and `admin_groups`, of which the latter look after it as well. Its certificate is from an ACME
    CA (`acme`, or `acme-staging` for trying), from a CA of its own (`tls`), or given (`certificate` and
    `certificate_key`, files on this computer). `iam_ca` is a file with the CA of an issuer that no public CA has
    certified. `executor` is what runs the jobs of a shared service: `local`, the service's own supervisors, or `slurm`,
    a Slurm on the machine, which can get more nodes later. Its jobs reach the servers of data `endpoints` (HOST:PORT)
    and nothing else; those of a personal service are its user's own programs and have the machine's network.

    `workers` machines more make it a cluster: Slurm runs the jobs on them, whatever `executor` says, and they share the
    data folder of the platform's own machine. They are as that one (CPUs, memory, disk, GPUs), or of the cloud's
    flavor `worker_flavor`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    cloud: str = "local"
    cpus: Annotated[int, Field(ge=1, le=1024)] = 2
    memory: Gigabytes = 4.0
    disk: Gigabytes = 20.0
    data_volume: Volume = None
    gpu: Annotated[Gpu | None, BeforeValidator(_gpu)] = None
    image: str | None = None
    network: str | None = None
    ports: tuple[Port, ...] = ()
    ttl: Duration = None
    idle_stop: Annotated[Duration, AfterValidator(_long_enough)] = None
    jump: Annotated[str | None, Field(pattern=JUMP_PATTERN)] = None
    frameworks: tuple[Annotated[str, AfterValidator(_library)], ...] = ()
    mlaas4hep: str = ""
    monitoring: Literal["none", "exporters", "prometheus"] = "none"
    jupyter: bool = False
    cvmfs: tuple[Annotated[str, Field(pattern=REPOSITORY_PATTERN, max_length=253)], ...] = ()
    cvmfs_proxy: Annotated[str, Field(pattern=PROXY_PATTERN)] = "DIRECT"
    service: Literal["personal", "shared"] = "personal"
    domain: Annotated[str | None, Field(pattern=DOMAIN_PATTERN, max_length=253)] = None
    iam: Annotated[str | None, Field(pattern=r"^https://[^\s?#]+$")] = None
    client_id: Annotated[str | None, Field(pattern=r"^[\x21-\x7e]+$")] = None
    iam_ca: File | None = None
    executor: Literal["local", "slurm"] = "local"
    endpoints: tuple[Annotated[str, Field(pattern=ENDPOINT_PATTERN)], ...] = ()
    policy: File | None = None
    groups: tuple[Annotated[str, Field(pattern=GROUP_PATTERN)], ...] = ()
    admin_groups: tuple[Annotated[str, Field(pattern=GROUP_PATTERN)], ...] = ()
    tls: Literal["acme", "acme-staging", "internal"] = "acme"
    certificate: File | None = None
    certificate_key: File | None = None
    workers: Annotated[int, Field(ge=0, le=MOST_WORKERS)] = 0
    worker_flavor: str | None = None

    @model_validator(mode="after")
    def _workers_are_machines(self) -> Self:
        if self.workers and self.cloud.startswith("ssh:"):
            raise ValueError("workers are machines that the toolkit makes: a host that exists already has none")
        if self.worker_flavor and not self.workers:
            raise ValueError("worker_flavor is of workers, and there are none (workers)")
        if self.worker_flavor and self.cloud == "local":
            raise ValueError("worker_flavor: this computer has no flavors; leave it out")
        return self

    @model_validator(mode="after")
    def _service_is_complete(self) -> Self:
        required = {"domain": self.domain, "iam": self.iam, "client_id": self.client_id}
        optional = {
            "policy": self.policy,
            "groups": self.groups,
            "admin_groups": self.admin_groups,
            "iam_ca": self.iam_ca,
            "certificate": self.certificate,
            "certificate_key": self.certificate_key,
            "executor": self.executor != "local",
            "endpoints": self.endpoints,
        }
        if self.service == "shared":
            if lacking := [name for name, value in required.items() if not value]:
                raise ValueError(f"a shared service needs {' and '.join(lacking)}")
            if bool(self.certificate) != bool(self.certificate_key):
                raise ValueError("certificate and certificate_key belong together")
            if self.policy and (self.groups or self.admin_groups):
                raise ValueError("groups and admin_groups stand in the policy where there is one")
        elif given := [name for name, value in (required | optional).items() if value]:
            raise ValueError(f"{' and '.join(given)}: only a shared service has that (service: shared)")
        return self

    @property
    def open_ports(self) -> tuple[int, ...]:
        """TCP ports that are reached from outside, beside that of SSH."""
        return tuple(dict.fromkeys((*self.ports, *(WEB_PORTS if self.service == "shared" else ()))))

    @property
    def slurm(self) -> bool:
        """Whether Slurm runs the jobs."""
        return self.executor == "slurm" or self.workers > 0

    def of_worker(self) -> PlatformSpec:
        """The same wishes for one of the workers: it is reached through the platform's own machine only."""
        return self.model_copy(
            update={"ports": (), "service": "personal", "workers": 0, "worker_flavor": None, "data_volume": None}
        )

    def digest(self) -> str:
        """Short digest of all wishes, to see whether two specs ask for the same platform."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]

    def portable(self) -> dict[str, Any]:
        """The wishes that mean the same on another computer, without those that are as by default."""
        wishes = self.model_dump(mode="json", exclude_defaults=True)
        local = {"policy", "iam_ca", "certificate", "certificate_key"}
        return {field: value for field, value in wishes.items() if field not in local and ".whl" not in str(value)}

    def differences(self, other: PlatformSpec) -> list[str]:
        """Names of the fields in which the two specs differ."""
        return [field for field in type(self).model_fields if getattr(self, field) != getattr(other, field)]


def make_spec(wishes: dict[str, Any]) -> PlatformSpec:
    """Check `wishes` (field -> value) and make the spec; raises UsageError that names each wrong field."""
    try:
        return PlatformSpec.model_validate(wishes, context=_WISHED)
    except ValidationError as error:
        raise UsageError(f"The platform cannot be described: {_sentence(error)}", _REMEDY) from None


def make_specs(wishes: dict[str, Any]) -> list[PlatformSpec]:
    """The specs for a platform on the first cloud that serves, in that order: `cloud` may be a list, or have commas.

    Raises UsageError that names each wrong field.
    """
    named = wishes.get("cloud", PlatformSpec.model_fields["cloud"].default)
    clouds = named.split(",") if isinstance(named, str) else named
    if (
        not isinstance(clouds, list)
        or not all(isinstance(cloud, str) and cloud.strip() for cloud in clouds)
        or not clouds
    ):
        raise UsageError(f"{named!r} names no clouds.", "Write cloud: NAME, NAME/REGION, or several in their order.")
    return [make_spec({**wishes, "cloud": cloud}) for cloud in dict.fromkeys(cloud.strip() for cloud in clouds)]


def read_duration(text: str) -> timedelta:
    """Read `0`, `90m`, `12h`, `7d` or `2w`; raises UsageError for anything else."""
    if text.strip() == "0":
        return timedelta()
    try:
        found = _duration(text)
    except ValueError as error:
        raise UsageError(f"{error}.") from None
    if not isinstance(found, timedelta):
        raise UsageError(f"{text!r} is no duration.")
    return found


def read_spec(path: Path) -> dict[str, Any]:
    """Read the wishes of a YAML spec file; raises UsageError when it is missing or no mapping."""
    import yaml

    try:
        wishes = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"The spec file {path} cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"The spec file {path} is no valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(wishes, dict):
        raise UsageError(f"The spec file {path} holds no mapping of fields.", _REMEDY)
    return wishes


_REMEDY = "The fields are those of `provision create --help`."


def _sentence(error: ValidationError) -> str:
    known = list(PlatformSpec.model_fields)
    words = []
    for problem in error.errors():
        field = ".".join(str(part) for part in problem["loc"]) or "spec"
        if problem["type"] == "extra_forbidden":
            words.append(f"there is no field {field!r} (known: {', '.join(known)})")
        elif field == "name" and problem["type"] == "string_pattern_mismatch":
            words.append("name must be 1 to 30 lower-case letters, digits and dashes, and begin with a letter")
        elif field == "jump":
            words.append("jump must be USER@HOST or USER@HOST:PORT")
        else:
            words.append(f"{field}: {problem['msg'].removeprefix('Value error, ')}")
    return "; ".join(words) + "."
