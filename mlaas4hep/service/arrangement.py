"""What a submission asks for, and the workflow folder that it makes of a workspace's files."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from mlaas4hep.errors import UsageError
from mlaas4hep.service.archive import checked_path
from mlaas4hep.training.parameters import parse_parameters
from mlaas4hep.training.workflow import FILES, LABELS, MODEL, PARAMS

_BRANCH = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class JobResources(BaseModel):
    """What a job may use.

    Attributes:
        cpus: processor cores.
        memory: bytes.
        gpus: whole GPUs.
        seconds: of wall time.
        disk: bytes that it may write.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    cpus: int = Field(1, ge=1, le=4096)
    memory: int = Field(2 * 2**30, ge=64 * 2**20, le=2**50)
    gpus: int = Field(0, ge=0, le=1024)
    seconds: int = Field(24 * 3600, ge=1, le=366 * 24 * 3600)
    disk: int = Field(10 * 2**30, ge=2**20, le=2**50)


class Submission(BaseModel):
    """What to train: files of a workspace, by their paths in it.

    Attributes:
        workspace: where the files are.
        name: of the job and of the model that it makes; by default the workspace's.
        files: list of data files.
        labels: list of labels; or the name of the branch that holds the label.
        model: Python file with the model.
        params: JSON file with parameters; may be missing when it has the default name.
        parameters: parameters that take the place of those in the file.
        resources: what the job may use.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={
            "examples": [
                {
                    "workspace": "higgs",
                    "parameters": {"epochs": 5},
                    "resources": {"cpus": 2, "memory": 3 * 2**30, "seconds": 3600},
                }
            ]
        },
    )

    workspace: str = Field(max_length=61)
    name: str = Field("", max_length=61)
    files: str = Field(FILES, max_length=1000)
    labels: str = Field(LABELS, max_length=1000)
    model: str = Field(MODEL, max_length=1000)
    params: str = Field(PARAMS, max_length=1000)
    parameters: dict[str, Any] = {}
    resources: JobResources = JobResources()


def arrange(folder: Path, submission: Submission) -> None:
    """Give the chosen files the names of a workflow folder.

    Args:
        folder: a copy of the workspace, or links to its files, which stay as they are.
        submission: what is chosen.

    Raises UsageError for files that the workspace lacks, and for parameters that are wrong.
    """
    for name, text, target in (
        ("files", submission.files, FILES),
        ("labels", submission.labels, LABELS),
        ("model", submission.model, MODEL),
    ):
        _put(folder, name, text, target)
    _write_parameters(folder, submission)


def _put(folder: Path, name: str, text: str, target: str) -> None:
    source = _inside(folder, text)
    if source is not None:
        if source != folder / target:
            shutil.copyfile(source, _free(folder / target), follow_symlinks=False)
    elif name != "model" and ("," in text or (name == "labels" and _BRANCH.fullmatch(text))):
        lines = [item.strip() for item in text.split(",")]
        _free(folder / target).write_text("\n".join(lines) + "\n", encoding="utf-8")
    else:
        raise UsageError(f"The workspace has no file {text} ({name}).", "Upload it, or name another one.")


def _free(path: Path) -> Path:
    """A path where nothing is any more: what is written there must not go through a link to a workspace."""
    path.unlink(missing_ok=True)
    return path


def _inside(folder: Path, text: str) -> Path | None:
    """The file of a workspace, None when there is none."""
    if not text or "," in text:
        return None
    path = folder / checked_path(text)
    return path if path.is_file() else None


def _write_parameters(folder: Path, submission: Submission) -> None:
    source = _inside(folder, submission.params)
    if source is None and submission.params != PARAMS:
        raise UsageError(f"The workspace has no file {submission.params} (params).", "Upload it, or name another one.")
    try:
        data = json.loads(source.read_text(encoding="utf-8")) if source else {}
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{submission.params} is no JSON: {error}.") from error
    if not isinstance(data, dict):
        raise UsageError(f"{submission.params} holds no JSON object.")
    merged = data | submission.parameters
    parse_parameters(merged, submission.params)
    _free(folder / PARAMS).write_text(json.dumps(merged, indent=1), encoding="utf-8")
