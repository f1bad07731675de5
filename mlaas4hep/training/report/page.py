"""The page: its sections in order, and writing it."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from numbers import Real
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlaas4hep.errors import MlaasError
from mlaas4hep.markup import Markup, element, joined
from mlaas4hep.training.histograms import ALL_EVENTS
from mlaas4hep.training.report.classification import area_of, classification_sections
from mlaas4hep.training.report.curves import epoch_seconds, measure_name, training_curves
from mlaas4hep.training.report.data import ReportData
from mlaas4hep.training.report.inputs import (
    importance_section,
    inputs_section,
    multiplicities_section,
    statistics_section,
)
from mlaas4hep.training.report.parts import fixed, folded, grid, number, right, table, whole, with_error
from mlaas4hep.training.report.regression import quality, regression_sections

Section = tuple[str, str, Markup]

_SHOWN_FILES = 20
_FOLD_MEASURES = ("loss", "auc", "auc_error", "accuracy", "mse", "mae", "r2")
_UNITS = ("B", "kB", "MB", "GB", "TB")


def write_report(path: Path, data: ReportData) -> None:
    """Write the page of a training.

    Raises MlaasError when the file cannot be written.
    """
    try:
        path.write_text(render(data), encoding="utf-8")
    except OSError as error:
        raise MlaasError(f"The report {path} cannot be written: {error.strerror or error}.") from error


def render(data: ReportData) -> str:
    """The page as text: no script, nothing loaded from elsewhere, and a policy that forbids both."""
    style = resources.files("mlaas4hep.training.report").joinpath("style.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", data.title),
        element("style", Markup(style)),
    )
    sections = _sections(data)
    contents = element("ul", *(element("li", element("a", heading, href=f"#{key}")) for key, heading, _ in sections))
    body = element(
        "body",
        _header(data),
        element("nav", contents, aria_label="Contents"),
        element(
            "main", *(element("section", element("h2", title), content, id=key) for key, title, content in sections)
        ),
    )
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


def _sections(data: ReportData) -> list[Section]:
    """All sections that have something to show, in order."""
    classifier = data.task.kind == "classification"
    found: list[tuple[str, str, Markup | None]] = [
        ("data", "Data", _data_section(data)),
        ("training", "Training", _training_section(data)),
        *(_scored_sections(data) if classifier or data.parts else []),
        ("folds", "Cross-validation", _folds_section(data)),
        ("importance", "Importance of the inputs", importance_section(data)),
        ("inputs", "Inputs by class" if classifier else "Inputs", inputs_section(data)),
        ("multiplicities", "Multiplicities", multiplicities_section(data)),
        ("statistics", "Statistics", statistics_section(data)),
        ("timing", "Timing", _timing_section(data)),
        ("parameters", "Parameters", _definitions_section("Parameters of the training", data.parameters)),
        ("provenance", "Provenance", _definitions_section("Where it comes from", data.provenance)),
    ]
    return [(key, heading, content) for key, heading, content in found if content]


def _scored_sections(data: ReportData) -> list[Section]:
    filled = any(scored.targets.size for scored in data.parts.values())
    if not filled:
        return []
    return classification_sections(data) if data.task.kind == "classification" else regression_sections(data)


def _header(data: ReportData) -> Markup:
    return element(
        "header",
        element("h1", data.title),
        element("p", _summary(data)),
        element("p", _result(data), class_="result"),
        element("ul", *(element("li", note) for note in data.notes), class_="notes") if data.notes else None,
    )


def _summary(data: ReportData) -> str:
    """What was trained, on what."""
    events = sum(sum(counts) for counts in data.events.values())
    inputs = len(data.columns)
    goal = (
        f"tells apart {_listed(data.task.classes)}"
        if data.task.kind == "classification"
        else "predicts a value (regression)"
    )
    framework = str(data.model.get("framework", ""))
    model = f"A {framework} model" if framework else "A model"
    read = f"{whole(events)} events of {len(data.files)} file{'' if len(data.files) == 1 else 's'}"
    return f"{model} that {goal} from {inputs} inputs, trained, validated and tested on {read}."


def _listed(names: Sequence[str], most: int = 8) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more classes"


def _result(data: ReportData) -> str:
    """The figure that counts, with its error."""
    test = data.parts.get("test")
    if test is None or not test.targets.size:
        return "No test events were measured."
    on = f"on {whole(test.targets.size)} test events"
    if data.task.kind == "regression":
        found = quality(test)
        return f"Test R² {fixed(found['R²'])}, root mean square error {number(found['RMSE'])} {on}"
    area = area_of(data, "test")
    if math.isnan(area.value):
        return f"The test AUC is not known {on}."
    mean = "Mean test AUC" if len(data.task.classes) > 2 else "Test AUC"
    return f"{mean} {with_error(area.value, area.error)} {on}"


def _data_section(data: ReportData) -> Markup | None:
    parts = [part for part in (_classes_table(data), _files_table(data), _cut_flow_table(data)) if part]
    return joined(parts) if parts else None


def _classes_table(data: ReportData) -> Markup | None:
    if not data.events:
        return None
    names = data.task.classes or (ALL_EVENTS,)
    rows: list[list[object]] = [
        [
            name,
            *(counts[place] for counts in data.events.values()),
            sum(counts[place] for counts in data.events.values()),
        ]
        for place, name in enumerate(names)
    ]
    if len(names) > 1:
        sums = [sum(counts) for counts in data.events.values()]
        rows.append(["all", *sums, sum(sums)])
    headers = ["Class" if data.task.classes else "", *data.events, "all"]
    return table("Events by their use", headers, rows)


def _files_table(data: ReportData) -> Markup | None:
    if not data.files:
        return None
    rows = [[file.path, file.tree, file.label, file.entries, file.used, right(_size(file.size))] for file in data.files]
    found = table("Files", ["File", "Tree", "Label", "Entries", "Used", "Size"], rows, css="paths")
    return found if len(rows) <= _SHOWN_FILES else folded(f"{len(rows)} files", found)


def _size(size: int) -> str:
    if size < 0:
        return "\N{EN DASH}"
    power = min(len(str(size)) - 1, 3 * (len(_UNITS) - 1)) // 3
    return f"{number(size / 1000**power, 3)} {_UNITS[power]}"


def _cut_flow_table(data: ReportData) -> Markup | None:
    if not data.cut_flow:
        return None
    total, before = data.cut_flow[0][1], data.cut_flow[0][1]
    rows = []
    for name, events in data.cut_flow:
        rows.append([name, events, right(_percent(events, before)), right(_percent(events, total))])
        before = events
    return table("Cut flow", ["Cut", "Events left", "Of those before", "Of all"], rows)


def _percent(part: int, whole_number: int) -> str:
    return f"{100 * part / whole_number:.2f} %" if whole_number else "\N{EN DASH}"


def _training_section(data: ReportData) -> Markup | None:
    parts = []
    if data.model:
        parts.append(_definitions_section("Model", data.model))
    if curves := training_curves(data):
        parts.append(grid(curves))
    return joined(part for part in parts if part) if parts else None


def _folds_section(data: ReportData) -> Markup | None:
    if not data.folds:
        return None
    keys = [key for key in dict.fromkeys(key for fold in data.folds for key in fold) if key in _FOLD_MEASURES]
    values = np.array([[_real(fold.get(key)) for key in keys] for fold in data.folds])
    rows: list[list[object]] = [
        [f"fold {place}", *(right(fixed(value)) for value in row)] for place, row in enumerate(values.tolist(), 1)
    ]
    rows.append(["mean", *(right(fixed(_finite_mean(column))) for column in values.T)])
    rows.append(["standard deviation", *(right(fixed(_finite_deviation(column))) for column in values.T)])
    return table("Test events of each fold", ["", *map(measure_name, keys)], rows)


def _real(value: object) -> float:
    return float(value) if isinstance(value, Real) else math.nan


def _finite_mean(values: NDArray[np.float64]) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else math.nan


def _finite_deviation(values: NDArray[np.float64]) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.std(ddof=1)) if finite.size > 1 else math.nan


def _timing_section(data: ReportData) -> Markup | None:
    parts = []
    if data.timing:
        total = sum(data.timing.values())
        rows: list[list[object]] = [
            [name, right(f"{seconds:.2f} s"), right(f"{100 * seconds / total:.1f} %" if total else "\N{EN DASH}")]
            for name, seconds in data.timing.items()
        ]
        rows.append(["all", right(f"{total:.2f} s"), ""])
        parts.append(table("Time spent", ["Stage", "Seconds", "Share"], rows))
    if plot := epoch_seconds(data):
        parts.append(grid([plot]))
    return joined(parts) if parts else None


def _definitions_section(caption: str, facts: Mapping[str, object]) -> Markup | None:
    """Names with their values, nested ones as JSON."""
    if not facts:
        return None
    rows = [[name, _shown(value)] for name, value in facts.items()]
    return table(caption, ["Name", "Value"], rows, css="facts")


def _shown(value: object) -> str:
    """As it is written in JSON, texts without quotes."""
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, default=str, ensure_ascii=False)
