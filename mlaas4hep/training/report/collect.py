"""What a store says about a training: the part of the report on its data."""

from __future__ import annotations

import numpy as np

from mlaas4hep.data.schema import Schema
from mlaas4hep.data.split import Part
from mlaas4hep.data.store import PackedStore
from mlaas4hep.training.report.data import InputFile, ReportData
from mlaas4hep.training.targets import Targets
from mlaas4hep.training.workflow import Labels


def report_on_data(title: str, store: PackedStore, schema: Schema, targets: Targets, labels: Labels) -> ReportData:
    """The report as far as the data go: files, events by class and part, cut flow, statistics.

    Everything else is added with `dataclasses.replace`.
    """
    facts = store.facts
    return ReportData(
        title=title,
        task=targets.task,
        events={part.name.lower(): _events(store, targets, part) for part in Part},
        files=[
            InputFile(
                path=file.path,
                tree=file.tree,
                label=labels.branch or labels.by_source[file.number],
                entries=file.entries,
                used=file.stop - file.start,
                size=file.size,
            )
            for file in facts.files
        ],
        statistics=facts.statistics,
        columns=dict(zip(schema.features, schema.widths, strict=True)),
        cut_flow=[(cut.cut, cut.events) for cut in facts.cut_flow],
    )


def _events(store: PackedStore, targets: Targets, part: Part) -> list[int]:
    chosen = store.parts == part
    if targets.task.kind == "regression":
        return [int(chosen.sum())]
    counts: list[int] = np.bincount(targets.values[chosen], minlength=len(targets.task.classes)).tolist()
    return counts
