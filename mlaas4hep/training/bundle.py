"""The bundle: a folder with the trained model and everything that it needs, and that proves where it came from.

================  ==================================================================================
bundle.json       format, framework, classes, when it was made, by which version
model.keras       the model
schema.json       the layout of the input vector with its scaling
params.json       all parameters, defaults included
metrics.json      measures after each epoch and of the finished model on each part of the events
provenance.json   files with size, identifier and entries used; versions, command, host, times
statistics.json   minimum, maximum, mean, deviation, NaN and multiplicity of each input
histograms.json   inputs by class (with the parameter `hist`)
model.py          the user's file
README.md         the same for people, on one page
================  ==================================================================================
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import shutil
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

import mlaas4hep
from mlaas4hep.data.schema import SCHEMA_FORMAT, Schema
from mlaas4hep.data.store import PackedStore
from mlaas4hep.errors import MlaasError, UsageError
from mlaas4hep.training.workflow import Workflow

BUNDLE_FORMAT = 1
MANIFEST = "bundle.json"
_LIBRARIES = ("numpy", "awkward", "uproot", "keras", "tensorflow-cpu", "tensorflow")


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk.

    Attributes:
        folder: where it is.
        classes: names of the classes, in the order of the probabilities.
        schema: the layout of the input vector.
        threshold: probability from which a two-class model decides for the second class.
    """

    folder: Path
    classes: tuple[str, ...]
    schema: Schema
    threshold: float


def check_target(out: Path, overwrite: bool) -> None:
    """Raise UsageError unless a bundle may be written to `out`."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        if not out.absolute().parent.is_dir():
            raise UsageError(f"The folder {out.absolute().parent} does not exist.", "Make it first.")
        return
    if not overwrite:
        raise UsageError(f"{out} exists.", "Name another folder, or replace a bundle with --overwrite.")
    if not (out / MANIFEST).is_file():
        raise UsageError(f"{out} is not a model folder, so it is not overwritten.", "Name another folder.")


def write_bundle(
    out: Path,
    *,
    workflow: Workflow,
    schema: Schema,
    classes: Sequence[str],
    save_model: Callable[[Path], str],
    metrics: dict[str, Any],
    store: PackedStore,
    histograms: dict[str, Any] | None,
    started: datetime,
) -> Bundle:
    """Write a bundle beside its place and rename it, so that it is there completely or not at all."""
    out = out.absolute()
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        save_model(partial)
        provenance = _provenance(workflow, store, started)
        shutil.copyfile(workflow.model, partial / "model.py")
        (partial / "schema.json").write_text(schema.model_dump_json(indent=1), encoding="utf-8")
        _write_json(partial / "params.json", _parameters(workflow))
        _write_json(partial / "metrics.json", metrics)
        _write_json(partial / "provenance.json", provenance)
        _write_json(partial / "statistics.json", [asdict(feature) for feature in store.facts.statistics])
        if histograms is not None:
            _write_json(partial / "histograms.json", histograms)
        (partial / "README.md").write_text(_card(out.name, schema, classes, metrics, provenance), encoding="utf-8")
        _write_json(partial / MANIFEST, _manifest(classes, workflow))
        _put_in_place(partial, out)
    except OSError as error:
        raise MlaasError(f"The model folder {out} cannot be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Bundle(out, tuple(classes), schema, workflow.parameters.threshold)


def read_bundle(folder: Path) -> Bundle:
    """Open a bundle for prediction.

    Raises UsageError for a folder that is no bundle, MlaasError for one that another version wrote differently.
    """
    if not (folder / MANIFEST).is_file():
        raise UsageError(f"{folder} is not a model folder.", "Name the folder that mlaas4hep train wrote.")
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        schema = Schema.model_validate_json((folder / "schema.json").read_text(encoding="utf-8"))
        known = manifest["format"] == BUNDLE_FORMAT and schema.format == SCHEMA_FORMAT
        bundle = Bundle(folder, tuple(manifest["classes"]), schema, float(manifest["threshold"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MlaasError(
            f"The model folder {folder} is damaged ({type(error).__name__}).", "Train it again."
        ) from error
    if not known:
        raise MlaasError(f"The model folder {folder} was written by another version of mlaas4hep.", "Train it again.")
    return bundle


def _manifest(classes: Sequence[str], workflow: Workflow) -> dict[str, Any]:
    return {
        "format": BUNDLE_FORMAT,
        "framework": "keras",
        "classes": list(classes),
        "threshold": workflow.parameters.threshold,
        "version": mlaas4hep.__version__,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _parameters(workflow: Workflow) -> dict[str, Any]:
    """All parameters; NaN, which JSON lacks, as null."""
    data = workflow.parameters.model_dump()
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in data.items()}


def _provenance(workflow: Workflow, store: PackedStore, started: datetime) -> dict[str, Any]:
    labels = workflow.labels
    parts = store.parts
    return {
        "files": [
            {
                "path": file.path,
                "tree": file.tree,
                "size": file.size,
                "uuid": file.uuid,
                "entries": file.entries,
                "entries_used": file.stop - file.start,
                "parts": np.bincount(parts[file.start : file.stop], minlength=3).tolist(),
                "label": labels.branch or labels.by_source[file.number],
            }
            for file in store.facts.files
        ],
        "store": store.facts.key,
        "model": {"path": str(workflow.model), "sha256": hashlib.sha256(workflow.model.read_bytes()).hexdigest()},
        "versions": {"mlaas4hep": mlaas4hep.__version__, "python": platform.python_version()} | _installed(),
        "backend": os.environ.get("KERAS_BACKEND", ""),
        "command": sys.argv,
        "host": socket.gethostname(),
        "system": platform.platform(),
        "started": started.isoformat(timespec="seconds"),
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _installed() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _card(
    name: str, schema: Schema, classes: Sequence[str], metrics: dict[str, Any], provenance: dict[str, Any]
) -> str:
    files = [
        f"- `{file['path']}:{file['tree']}`: {file['entries_used']} events, label {file['label']}"
        for file in provenance["files"]
    ]
    test = metrics["final"].get("test")
    result = (
        [f"Test AUC {test['auc']:.4f} +- {test['auc_error']:.4f}, accuracy {test['accuracy']:.4f}."] if test else []
    )
    return "\n".join(
        [
            f"# {name}",
            "",
            f"Tells apart the classes {', '.join(classes)} from {schema.idim} inputs"
            f" ({len(schema.flat)} flat columns, {len(schema.jagged)} jagged branches). {' '.join(result)}",
            "",
            f"Predict with `mlaas4hep predict {name} EVENT.json`.",
            "",
            "Trained on",
            "",
            *files,
            "",
        ]
    )


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=1, default=list), encoding="utf-8")


def _put_in_place(partial: Path, out: Path) -> None:
    """Rename the new folder to its name; an older bundle there is moved aside first and then removed."""
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if (out / MANIFEST).is_file():
        out.rename(old)
    partial.rename(out)
    shutil.rmtree(old, ignore_errors=True)
