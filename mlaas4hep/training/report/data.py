"""What a report is made from: plain arrays and numbers, so that it can be written of any training, or in a test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlaas4hep.data.statistics import FeatureStatistics
from mlaas4hep.training.contract import Task
from mlaas4hep.training.histograms import Histogram
from mlaas4hep.training.importance import Importance
from mlaas4hep.training.measures import Scored


@dataclass(frozen=True)
class InputFile:
    """A file that was read.

    Attributes:
        path, tree: what was read.
        label: the class of its events, or the branch that holds it.
        entries: of the tree.
        used: entries that the training used.
        size: bytes; negative where it is not known.
    """

    path: str
    tree: str
    label: str
    entries: int
    used: int
    size: int = -1


@dataclass(frozen=True)
class ReportData:
    """Everything that a report shows; what is empty is left out of the page.

    Attributes:
        title: what the page is called.
        task: classes, or regression.
        parts: the predictions of the finished model on `train` (or a sample of it), `validation` and `test`.
        events: number of events of each class (one number for a regression), by part.
        model: facts on the model, by name.
        history: measures after each epoch, `loss` with `val_loss` and so on; `epoch` and `seconds` are its number and
            duration. None and NaN are gaps.
        kept: the epoch whose model was kept, 0 for the last.
        threshold: probability from which the second of two classes is decided for.
        files: what was read.
        statistics: of the inputs, in the order of the input vector.
        columns: number of columns of each input in the input vector.
        histograms: values of the inputs by class.
        multiplicities: number of values in an event of the jagged branches by class.
        importance: of the inputs, the greatest first: what the AUC loses, or by how much the mean squared error grows.
        cut_flow: name of each cut with the number of events left.
        timing: seconds of each stage, by name.
        folds: measures of the test events of each fold of a cross-validation, by name.
        parameters: all parameters, by name.
        provenance: versions, command, host and times, by name.
        notes: sentences worth telling.
    """

    title: str
    task: Task
    parts: Mapping[str, Scored] = field(default_factory=dict)
    events: Mapping[str, Sequence[int]] = field(default_factory=dict)
    model: Mapping[str, object] = field(default_factory=dict)
    history: Sequence[Mapping[str, float | None]] = ()
    kept: int = 0
    threshold: float = 0.5
    files: Sequence[InputFile] = ()
    statistics: Sequence[FeatureStatistics] = ()
    columns: Mapping[str, int] = field(default_factory=dict)
    histograms: Sequence[Histogram] = ()
    multiplicities: Sequence[Histogram] = ()
    importance: Sequence[Importance] = ()
    cut_flow: Sequence[tuple[str, int]] = ()
    timing: Mapping[str, float] = field(default_factory=dict)
    folds: Sequence[Mapping[str, Any]] = ()
    parameters: Mapping[str, object] = field(default_factory=dict)
    provenance: Mapping[str, object] = field(default_factory=dict)
    notes: Sequence[str] = ()
