"""The one place where executors are registered."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from mlaas4hep.service.executor import Executor
from mlaas4hep.service.local import LocalExecutor, LocalSettings


class ExecutorSettings(BaseModel):
    """What runs the jobs.

    Attributes:
        kind: `local` for this computer.
        local: settings of the executor `local`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["local"] = "local"
    local: LocalSettings = Field(default_factory=LocalSettings)


def make_executor(settings: ExecutorSettings) -> Executor:
    """The executor that the settings choose."""
    return LocalExecutor(settings.local)
