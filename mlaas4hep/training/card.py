"""The model card: what a bundle is for, in Markdown, on one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mlaas4hep.data.schema import Schema

if TYPE_CHECKING:
    from mlaas4hep.data.statistics import FeatureStatistics
    from mlaas4hep.training.contract import Task

_MEASURES = {
    "auc": "AUC",
    "accuracy": "accuracy",
    "loss": "loss",
    "mae": "mean absolute error",
    "mse": "mean squared error",
    "r2": "R2",
}
_FRAMEWORKS = {"keras": "Keras", "torch": "PyTorch", "sklearn": "scikit-learn", "xgboost": "XGBoost"}
_LISTED_INPUTS = 200


def model_card(
    name: str,
    schema: Schema,
    task: Task,
    manifest: Mapping[str, Any],
    metrics: Mapping[str, Any],
    provenance: Mapping[str, Any],
    statistics: Sequence[FeatureStatistics],
) -> str:
    """The card as Markdown.

    Args:
        name: the bundle's.
        schema: the layout of the input vector.
        task: what was learned.
        manifest: bundle.json.
        metrics: metrics.json.
        provenance: provenance.json.
        statistics: one a feature, in the order of the schema.
    """
    sections = [
        [f"# {name}", "", purpose(schema, task, manifest["framework"])],
        ["## Data", "", *_data(provenance)],
        ["## Measures", "", *_measures(metrics)],
        ["## Inputs", "", *_inputs(schema, statistics)],
        ["## Limits", "", *_limits(schema, provenance)],
        ["## Use", "", *_use(name, task, manifest)],
        ["## Made with", "", *_made(manifest, provenance)],
    ]
    return "\n\n".join("\n".join(section) for section in sections) + "\n"


def _cell(text: Any) -> str:
    return str(text).replace("|", "\\|")


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines]


def purpose(schema: Schema, task: Task, framework: str) -> str:
    """What the model does, in one sentence."""
    inputs = f"{schema.idim} inputs ({len(schema.flat)} flat columns, {len(schema.jagged)} jagged branches)"
    what = f"tells apart the classes {', '.join(task.classes)}" if task.classes else "predicts a value"
    return f"A model of {_FRAMEWORKS[framework]} that {what} from {inputs}."


def _data(provenance: Mapping[str, Any]) -> list[str]:
    rows = []
    for file in provenance["files"]:
        place = f"{file['path']}:{file['tree']}" if file["tree"] else file["path"]
        train, validation, test = file["parts"]
        rows.append([f"`{place}`", file["label"], file["entries_used"], train, validation, test])
    lines = _table(["file", "label", "events", "training", "validation", "test"], rows)
    if provenance["cut_flow"]:
        lines += ["", "Cut flow:", ""]
        lines += _table(["cut", "events"], [[cut["cut"], cut["events"]] for cut in provenance["cut_flow"]])
    return lines


def _measures(metrics: Mapping[str, Any]) -> list[str]:
    head, rows = measures_table(metrics)
    if not rows:
        return ["Not measured."]
    lines = _table(head, rows)
    lines += ["", "The error of the AUC is that of DeLong. Only the test events had no part in the training."]
    if folds := metrics.get("folds"):
        values = [fold["auc"] for fold in folds if fold.get("auc") is not None]
        if values:
            lines += ["", f"Cross-validation, AUC of each fold: {', '.join(f'{value:.4f}' for value in values)}."]
    return lines


def measures_table(metrics: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """Heads and rows of a table of the finished model's measures, a row for each part of the events."""
    final = metrics.get("final") or {}
    names = [name for name in _MEASURES if any(found.get(name) is not None for found in final.values())]
    rows = [
        [part, found.get("events", ""), *(_measure(found, name) for name in names)] for part, found in final.items()
    ]
    return ["events of", "number", *(_MEASURES[name] for name in names)], rows


def _measure(found: Mapping[str, Any], name: str) -> str:
    value, error = found.get(name), found.get(f"{name}_error")
    if value is None:
        return ""
    return f"{value:.4f}" if error is None else f"{value:.4f} +- {error:.4f}"


def _inputs(schema: Schema, statistics: Sequence[FeatureStatistics]) -> list[str]:
    kinds, rooms = schema.kinds, schema.multiplicities
    rows = []
    for feature in statistics[:_LISTED_INPUTS]:
        room = f", up to {rooms[feature.name]}" if feature.name in rooms else ""
        rows.append(
            [
                f"`{feature.name}`",
                kinds[feature.name] + room,
                f"{feature.minimum:.6g}",
                f"{feature.maximum:.6g}",
                f"{feature.mean:.6g}",
                f"{feature.deviation:.6g}",
            ]
        )
    lines = _table(["input", "kind", "minimum", "maximum", "mean", "deviation"], rows)
    if len(statistics) > _LISTED_INPUTS:
        lines += ["", f"And {len(statistics) - _LISTED_INPUTS} more: see statistics.json."]
    if schema.preprocessing is not None:
        lines += ["", "They are computed by the preprocessing in schema.json."]
    return lines


def _limits(schema: Schema, provenance: Mapping[str, Any]) -> list[str]:
    lines = [
        "- It has seen nothing beyond the minima and maxima above: outside of them its answer is an extrapolation.",
        "- It was trained on the data above; other detectors, generators and selections need a check of their own.",
    ]
    if schema.jagged:
        lines.append("- Of lists that are longer than their room, only the first values count.")
    if provenance["cut_flow"]:
        lines.append("- Events that the cuts remove get no prediction.")
    return lines


def _use(name: str, task: Task, manifest: Mapping[str, Any]) -> list[str]:
    scores = "one score a class and the decision" if task.classes else "the prediction"
    lines = [
        f"`mlaas4hep predict {name} FILES --out scores.root` writes {scores} of each event;"
        f" `mlaas4hep predict {name} EVENT.json` answers for events given as JSON with their raw values.",
        "",
    ]
    if manifest["runtime"] == "onnx":
        check = manifest["onnx_check"]
        lines.append(
            f"ONNX Runtime predicts it: on {check['events']} events model.onnx differed from the trained model by"
            f" {check['largest_difference']:.2g} at most ({check['tolerance']:g} is tolerated)."
        )
    else:
        lines.append(f"{_FRAMEWORKS[manifest['framework']]} itself predicts it: {manifest['runtime_reason']}")
    if len(task.classes) == 2:
        lines.append(f"An event is taken for {task.classes[1]} from a score of {manifest['threshold']:g} on.")
    return lines


def _made(manifest: Mapping[str, Any], provenance: Mapping[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in manifest["versions"].items())
    command = " ".join(provenance["command"])
    return [
        f"{versions}.",
        "",
        f"`{command}` on {provenance['host']}, {provenance['started']} to {provenance['ended']}.",
    ]
