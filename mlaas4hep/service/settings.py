"""The service's settings: one TOML file, /etc/mlaas4hep/service.toml, MLAAS4HEP_CONFIG or `--config`."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mlaas4hep.errors import UsageError
from mlaas4hep.service.authentication import AuthenticationSettings
from mlaas4hep.service.endpoints import MOST, Endpoint
from mlaas4hep.service.executors import ExecutorSettings
from mlaas4hep.serving.settings import ServingSettings

DEFAULT_FILE = Path("/etc/mlaas4hep/service.toml")


class Limits(BaseModel):
    """Bounds of what one request may ask for.

    Attributes:
        body: bytes of a request that is no upload.
        upload: bytes of an upload.
        unpacked: bytes that an archive may unpack to.
        files: files of a workspace.
        streams: log and progress streams open at once.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    body: int = Field(2**20, gt=0)
    upload: int = Field(4 * 2**30, gt=0)
    unpacked: int = Field(16 * 2**30, gt=0)
    files: int = Field(10_000, gt=0)
    streams: int = Field(500, gt=0)


def _processors() -> int:
    return os.cpu_count() or 1


def _most_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 4 // 5


class JobSettings(BaseModel):
    """What all jobs together may use, and how they are looked after.

    Attributes:
        cpus: processor cores of all running jobs.
        memory: bytes of all running jobs.
        gpus: GPUs of all running jobs.
        attempts: how often a job is started that was interrupted through no fault of its own.
        interval: seconds between two looks at the running jobs.
        reads: data folders that jobs may read.
        network: what jobs reach that read from servers: the `endpoints`, or `all` of this computer's network, its
            loopback and its cloud's metadata included.
        endpoints: HOST:PORT of each server of data that they may reach.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    cpus: int = Field(default_factory=_processors, gt=0)
    memory: int = Field(default_factory=_most_memory, gt=0)
    gpus: int = Field(0, ge=0)
    attempts: int = Field(3, ge=1)
    interval: float = Field(1.0, gt=0)
    reads: tuple[Path, ...] = ()
    network: Literal["endpoints", "all"] = "endpoints"
    endpoints: tuple[Endpoint, ...] = Field((), max_length=MOST)


class Settings(BaseModel):
    """All settings.

    Attributes:
        data: the folder of workspaces, jobs, models and the database.
        database: URL of the database; by default a SQLite file in the data folder.
        listen: host and port.
        workers: processes that answer requests to the API.
        authentication: whose requests are answered.
        executor: what runs the jobs.
        serving: how models are served.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: Path
    database: str = ""
    listen: str = Field("127.0.0.1:8080", pattern=r"^.+:[0-9]{1,5}$")
    workers: int = Field(1, ge=1)
    authentication: AuthenticationSettings
    executor: ExecutorSettings = Field(default_factory=ExecutorSettings)
    serving: ServingSettings = Field(default_factory=ServingSettings)
    limits: Limits = Limits()
    jobs: JobSettings = Field(default_factory=JobSettings)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port to listen at."""
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)

    @property
    def database_url(self) -> str:
        """For SQLAlchemy."""
        return self.database or f"sqlite:///{self.data / 'service.sqlite'}"


def load_settings(path: Path | None = None) -> Settings:
    """Read the settings.

    Args:
        path: the file; without one MLAAS4HEP_CONFIG, or else /etc/mlaas4hep/service.toml.

    Raises UsageError that names the file and the setting.
    """
    path = path or Path(os.environ.get("MLAAS4HEP_CONFIG") or DEFAULT_FILE)
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"The settings {path} cannot be read: {error.strerror}.", "Name the file with --config."
        ) from error
    except ValueError as error:
        raise UsageError(f"The settings {path} are no TOML: {error}.") from error
    try:
        return Settings.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UsageError(f"{where} in the settings {path} is wrong: {first['msg']}.") from error
