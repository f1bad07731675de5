"""The parameters of a workflow: `params.json`, with the names, meanings and defaults of MLaaS4HEP."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from mlaas4hep.data.schema import Scaling
from mlaas4hep.data.sources import read_list
from mlaas4hep.errors import UsageError
from mlaas4hep.names import did_you_mean


def _names(value: Any) -> Any:
    """A list of names, from a list, a comma-separated string, or the name of a file with one a line."""
    if value is None or value == "":
        return ()
    if isinstance(value, str):
        if "," not in value and Path(value).is_file():
            return tuple(read_list(Path(value)))
        return tuple(name.strip() for name in value.split(",") if name.strip())
    return value


def _number_or_nan(value: Any) -> Any:
    """NaN may be written as the number NaN, as text, or as null."""
    if value is None or (isinstance(value, str) and value.strip().lower() == "nan"):
        return math.nan
    return value


def _numbers(value: Any) -> Any:
    """A list of numbers, from a list or a single number."""
    return (value,) if isinstance(value, int | float) and not isinstance(value, bool) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_names)]


class Metrics(BaseModel):
    """What `metrics` may hold beside true and false."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    threshold: float = Field(0.5, ge=0, le=1)


class Parameters(BaseModel):
    """What steers reading and training.

    Attributes:
        nevts: events to read from all files together, shared in proportion to their sizes; -1 reads all.
        shuffle: take each file's events in a new random order each epoch; otherwise in the order of the file. Either
            way each batch mixes all files.
        chunk_size: events of a chunk with `"training": "chunks"` (-1: all); otherwise the framework chooses how many
            events it gathers at a time, which does not change the result.
        epochs: passes over all training events.
        batch_size: events a step.
        split: fraction of the events kept away from training: half validates after each epoch, half tests at the end.
        identifier: branches that tell events apart and are no input.
        branch: the tree, with its directories (`boostedAk8/events`).
        selected_branches: inputs, as names and patterns; none means all that can be one.
        exclude_branches: names and patterns of branches that are no input.
        nan: what the model sees where there is no value; NaN means 0. The mask tells padding from values.
        hist: `pdfs` writes histograms of the inputs by class into the bundle; "" or "none" does not.
        redirector: server put before `/store/...` paths.
        verbose: 0 tells only warnings and the result.
        metrics: false leaves out the measures of the finished model; {"threshold": x} sets the decision between two
            classes.
        training: `standard`, where each epoch passes over all events; `chunks` trains all epochs on one chunk of
            `chunk_size` events before the next, as the original did, for comparison.
        seed: start of the random orders and of the model's weights.
        scaling: `minmax` brings each input to [0, 1] over all events, `standard` to mean 0 and deviation 1, `robust` to
            median 0 and interquartile range 1.
        max_multiplicity: most columns of a jagged branch: a number, or (below 1) the fraction of the events whose lists
            must fit, as 0.99; null gives each branch its largest multiplicity.
        missing: values that stand for no value, as -999.
        weight: the branch that holds each event's weight in the loss and in the measures.
        class_weight: `balanced` gives every class the same weight in the loss.
        task: `regression` learns the label branch as a value; `classification` tells classes apart.
        differing_branches: where the files' branches differ, go on with the `common` ones, or end in an `error`.
        patience: epochs without a better validation loss after which training ends, keeping the best model; 0 goes on.
        folds: number of folds of a cross-validation before the final training, 3 or more; 0 does without.
        workers: processes that train together on this computer.
        runtime: `onnx` predicts by the exported model, `native` by the framework's own and exports none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    nevts: int = Field(-1, ge=-1)
    shuffle: bool = False
    chunk_size: int = Field(1000, ge=-1)
    epochs: int = Field(10, ge=1)
    batch_size: int = Field(256, ge=1)
    split: float = Field(0.3, gt=0, lt=1)
    identifier: Names = ()
    branch: str = Field("Events", min_length=1)
    selected_branches: Names = ()
    exclude_branches: Names = ()
    nan: Annotated[float, BeforeValidator(_number_or_nan)] = math.nan
    hist: Literal["pdfs", "none", ""] = "pdfs"
    redirector: str = ""
    verbose: int = Field(1, ge=0)
    metrics: bool | Metrics = True
    training: Literal["standard", "chunks"] = "standard"
    seed: int = Field(0, ge=0, lt=2**32)
    scaling: Scaling = "minmax"
    max_multiplicity: float | None = Field(None, gt=0)
    missing: Annotated[tuple[float, ...], BeforeValidator(_numbers)] = ()
    weight: str = ""
    class_weight: Literal["balanced", "none"] = "none"
    task: Literal["classification", "regression"] = "classification"
    differing_branches: Literal["common", "error"] = "common"
    patience: int = Field(0, ge=0)
    folds: int = Field(0, ge=0, le=100)
    workers: int = Field(1, ge=1, le=64)
    runtime: Literal["onnx", "native"] = "onnx"

    @field_validator("nevts", "chunk_size")
    @classmethod
    def _positive_or_all(cls, value: int) -> int:
        if value == 0:
            raise ValueError("must be positive, or -1")
        return value

    @field_validator("folds")
    @classmethod
    def _enough_folds(cls, value: int) -> int:
        if value in (1, 2):
            raise ValueError("must be 3 or more (one fold tests, one validates, the others train), or 0")
        return value

    @field_validator("max_multiplicity")
    @classmethod
    def _whole_or_fraction(cls, value: float | None) -> float | None:
        if value is not None and value >= 1 and value != int(value):
            raise ValueError("must be a whole number, or a fraction below 1")
        return value

    @property
    def fill(self) -> float:
        """What the model sees where there is no value."""
        return 0.0 if math.isnan(self.nan) else self.nan

    @property
    def threshold(self) -> float:
        """Probability from which a two-class model decides for the second class."""
        return self.metrics.threshold if isinstance(self.metrics, Metrics) else 0.5

    @property
    def measured(self) -> bool:
        """Whether the test events are measured at the end."""
        return self.metrics is not False


def load_parameters(path: Path, **overrides: Any) -> Parameters:
    """Read params.json; values of `overrides` that are not None take precedence.

    Raises UsageError for a file that is no JSON object, an unknown parameter (with near misses) and a wrong value.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"The parameters {path} cannot be read: {error.strerror}.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(data, dict):
        raise UsageError(f"{path} is not a JSON object.", 'Write {"epochs": 10, ...}.')
    data |= {name: value for name, value in overrides.items() if value is not None}
    return parse_parameters(data, str(path))


def parse_parameters(data: dict[str, Any], origin: str) -> Parameters:
    """Check parameters; `origin` says in messages where they came from."""
    known = list(Parameters.model_fields)
    for name in data:
        if name not in known:
            raise UsageError(f"{origin} has an unknown parameter {name}.", did_you_mean(name, known, "parameters"))
    try:
        return Parameters.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][:1])
        value = json.dumps(first["input"], default=str)
        raise UsageError(f"{origin}: {place} = {value} is wrong: {_lower(first['msg'])}.") from error


def _lower(text: str) -> str:
    text = text.removeprefix("Value error, ")
    return text[:1].lower() + text[1:]
