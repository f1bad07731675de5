"""The one place where executors are registered."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from mlaas4hep.service.executor import Executor
from mlaas4hep.service.local import LocalExecutor, LocalSettings
from mlaas4hep.service.slurm import SlurmExecutor, SlurmSettings


class ExecutorSettings(BaseModel):
    """What runs the jobs.

    Attributes:
        kind: `local` for this computer, `slurm` for a cluster.
        local: settings of the executor `local`.
        slurm: settings of the executor `slurm`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["local", "slurm"] = "local"
    local: LocalSettings = Field(default_factory=LocalSettings)
    slurm: SlurmSettings = Field(default_factory=SlurmSettings)


def make_executor(settings: ExecutorSettings) -> Executor:
    """The executor that the settings choose."""
    if settings.kind == "slurm":
        return SlurmExecutor(settings.slurm)
    return LocalExecutor(settings.local)
