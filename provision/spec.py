"""What the user wants: the one description behind direct creation, TOSCA templates and machines of this computer."""

from __future__ import annotations

import difflib
import hashlib
import re
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError

from provision.errors import UsageError

NAME_PATTERN = r"^[a-z][a-z0-9-]{0,29}$"

JUMP_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9._-]*(@[A-Za-z0-9][A-Za-z0-9.-]*)?(:\d{1,5})?$"

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


def _duration(value: object) -> object:
    """`90m`, `12h`, `7d`, `2w` -> timedelta."""
    if not isinstance(value, str):
        return value
    found = _DURATION.match(value)
    if not found or not int(found[1]):
        raise ValueError(f"{value!r} is no duration; write for instance 12h or 7d")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})


def _write_duration(value: timedelta | None) -> str | None:
    return None if value is None else f"{int(value.total_seconds() // 60)}m"


Gigabytes = Annotated[float, BeforeValidator(_gigabytes), Field(gt=0)]
Duration = Annotated[timedelta | None, BeforeValidator(_duration), PlainSerializer(_write_duration)]
Port = Annotated[int, Field(ge=1, le=65535)]


class Gpu(BaseModel):
    """A demand for GPUs: `count` of them, of any model when `model` is empty."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = ""
    count: Annotated[int, Field(ge=1, le=16)] = 1

    @classmethod
    def parse(cls, text: str) -> Gpu:
        """Read `A100`, `A100:2`, `:2`, `2` or `any`; raises ValueError for anything else."""
        model, _, count = text.strip().rpartition(":") if ":" in text else (text.strip(), "", "")
        if not count and model.isdigit():
            model, count = "", model
        if count and not count.isdigit():
            raise ValueError(f"{text!r} is no GPU demand; write MODEL, MODEL:N or N, for instance T4:2")
        return cls(model="" if model.lower() == "any" else model, count=int(count or 1))

    def __str__(self) -> str:
        return f"{self.count} x {self.model or 'any GPU'}"


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


def _gpu(value: object) -> object:
    return Gpu.parse(str(value)) if isinstance(value, str | int) and not isinstance(value, bool) else value


class PlatformSpec(BaseModel):
    """The wishes for one platform. Sizes are in gigabytes (2**30 bytes).

    `cloud` is `local`, `ssh:USER@HOST[:PORT]` or an entry of clouds.yaml. `jump` is an OpenSSH jump host
    (`USER@HOST[:PORT]`). `frameworks` names machine-learning frameworks that the platform must have: of LIBRARIES, or
    paths of their wheels on this computer. `mlaas4hep` is the MLaaS4HEP that is installed: empty for the one that this
    toolkit came with, else a released version or the path of a wheel.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    cloud: str = "local"
    cpus: Annotated[int, Field(ge=1, le=1024)] = 2
    memory: Gigabytes = 4.0
    disk: Gigabytes = 20.0
    gpu: Annotated[Gpu | None, BeforeValidator(_gpu)] = None
    image: str | None = None
    network: str | None = None
    ports: tuple[Port, ...] = ()
    ttl: Duration = None
    jump: Annotated[str | None, Field(pattern=JUMP_PATTERN)] = None
    frameworks: tuple[Annotated[str, AfterValidator(_library)], ...] = ()
    mlaas4hep: str = ""

    def digest(self) -> str:
        """Short digest of all wishes, to see whether two specs ask for the same platform."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]

    def differences(self, other: PlatformSpec) -> list[str]:
        """Names of the fields in which the two specs differ."""
        return [field for field in type(self).model_fields if getattr(self, field) != getattr(other, field)]


def make_spec(wishes: dict[str, Any]) -> PlatformSpec:
    """Check `wishes` (field -> value) and make the spec; raises UsageError that names each wrong field."""
    try:
        return PlatformSpec.model_validate(wishes)
    except ValidationError as error:
        raise UsageError(f"The platform cannot be described: {_sentence(error)}", _REMEDY) from None


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
