"""The bundle: a folder with the trained model and everything that it needs, and that proves where it came from.

================  ==================================================================================
bundle.json       format, framework, task, classes, what predicts it, digests of the other files
model.*           the model in its framework's own form
model.onnx        the same for ONNX Runtime, checked against it (see `onnx_export`)
schema.json       the layout of the input vector with its scaling and the preprocessing
params.json       all parameters, defaults included
metrics.json      measures after each epoch and of the finished model on each part of the events
provenance.json   files with size, identifier and entries used; cut flow, versions, command, host, times
statistics.json   minimum, maximum, mean, deviation, NaN and multiplicity of each input
histograms.json   inputs by class (with the parameter `hist`)
code/             the user's files
README.md         the model card; not covered by the digests, so that people can add to it
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
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

import mlaas4hep
from mlaas4hep.data.preprocessing import Preprocessing
from mlaas4hep.data.schema import SCHEMA_FORMAT, Schema
from mlaas4hep.errors import MlaasError, UsageError
from mlaas4hep.training.card import model_card
from mlaas4hep.training.contract import Adapter, Task
from mlaas4hep.training.onnx_model import MODEL_FILE

if TYPE_CHECKING:
    from mlaas4hep.data.store import PackedStore
    from mlaas4hep.training.onnx_export import Export, HeldOut
    from mlaas4hep.training.workflow import Workflow

BUNDLE_FORMAT = 2
MANIFEST = "bundle.json"
CARD = "README.md"
CODE = "code"
Runtime = Literal["onnx", "native"]
_LIBRARIES = (
    "awkward",
    "fastavro",
    "jax",
    "keras",
    "numba",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "pyarrow",
    "scikit-learn",
    "skl2onnx",
    "tensorflow",
    "tensorflow-cpu",
    "tf2onnx",
    "torch",
    "uproot",
    "xgboost",
    "xgboost-cpu",
)


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk, whose files are as they were written.

    Attributes:
        folder: where it is.
        framework: `keras`, `torch`, `sklearn` or `xgboost`.
        task: classes in the order of the probabilities, or a regression.
        schema: the layout of the input vector.
        threshold: probability from which a two-class model decides for the second class.
        runtime: what predicts it: `onnx`, or `native` for its framework.
        native: the file of the model in its framework's own form.
        code: the user's file with the model.
        preprocessing_file: a Python file with the preprocessing, "" without one.
        identifiers: names and patterns of branches that tell events apart.
        tree: the tree that the training read where a file named none.
        redirector: the server that the training put before `/store/...` paths.
    """

    folder: Path
    framework: str
    task: Task
    schema: Schema
    threshold: float
    runtime: Runtime
    native: str
    code: str
    preprocessing_file: str = ""
    identifiers: tuple[str, ...] = ()
    tree: str = ""
    redirector: str = ""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the probabilities."""
        return self.task.classes

    @property
    def metrics(self) -> dict[str, Any]:
        """metrics.json: `history` of the training, and `final` measures of each part of the events.

        Raises MlaasError when it cannot be read.
        """
        try:
            return cast(dict[str, Any], json.loads((self.folder / "metrics.json").read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise MlaasError(f"The measures of {self.folder} cannot be read ({error}).", "Train it again.") from error

    def _repr_html_(self) -> str:
        from mlaas4hep.display import bundle_html

        return bundle_html(self)

    def preprocessing(self) -> Preprocessing | None:
        """What is done to events first; a user's function still has to see a sample of them."""
        if self.preprocessing_file:
            return Preprocessing.load(self.folder / self.preprocessing_file)
        rules = self.schema.preprocessing
        return None if rules is None else Preprocessing.from_json(rules, str(self.folder / "schema.json"))


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
    task: Task,
    adapter: Adapter,
    held_out: HeldOut,
    metrics: Mapping[str, Any],
    store: PackedStore,
    started: datetime,
    histograms: Mapping[str, Any] | None = None,
    runtime: Runtime = "onnx",
    more: Callable[[Path], None] | None = None,
) -> Bundle:
    """Write a bundle beside its place and rename it, so that it is there completely or not at all.

    Args:
        out: the folder.
        workflow: what was trained.
        schema: the layout of the input vector.
        task: what was learned.
        adapter: the trained model.
        held_out: events to check the ONNX model with.
        metrics: the measures.
        store: the events.
        started: when the training began.
        histograms: inputs by class, if they are wanted.
        runtime: `native` leaves out the ONNX model.
        more: writes further files (a report) into the folder that it gets.

    Raises ExportError when the ONNX model does not give what the trained one gives, MlaasError when the folder cannot
    be written.
    """
    out = out.absolute()
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        native = adapter.save(partial)
        code = _copy_code(workflow, partial)
        (partial / "schema.json").write_text(schema.model_dump_json(indent=1), encoding="utf-8")
        export = _export(partial, adapter, task, schema, held_out, workflow, runtime)
        provenance = _provenance(workflow, store, started)
        _write_json(partial / "params.json", _parameters(workflow))
        _write_json(partial / "metrics.json", metrics)
        _write_json(partial / "provenance.json", provenance)
        _write_json(partial / "statistics.json", [asdict(feature) for feature in store.facts.statistics])
        if histograms is not None:
            _write_json(partial / "histograms.json", histograms)
        if more:
            more(partial)
        manifest = _manifest(adapter, task, workflow, export, native) | code
        card = model_card(out.name, schema, task, manifest, metrics, provenance, store.facts.statistics)
        (partial / CARD).write_text(card, encoding="utf-8")
        _write_json(partial / MANIFEST, manifest | {"files": _digests(partial)})
        _put_in_place(partial, out)
    except OSError as error:
        raise MlaasError(f"The model folder {out} cannot be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return read_bundle(out)


def read_bundle(folder: Path) -> Bundle:
    """Open a bundle for prediction; nothing of the model is loaded, and no framework.

    Raises UsageError for a folder that is no bundle, MlaasError for one that is damaged, was changed after it was
    written, or comes from another version.
    """
    if not (folder / MANIFEST).is_file():
        raise UsageError(f"{folder} is not a model folder.", "Name the folder that mlaas4hep train wrote.")
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != BUNDLE_FORMAT:
            raise MlaasError(
                f"The model folder {folder} was written by another version of mlaas4hep"
                f" (its format is {manifest['format']}, not {BUNDLE_FORMAT}).",
                "Train it again.",
            )
        _refuse_changed(folder, manifest["files"])
        schema = Schema.model_validate_json((folder / "schema.json").read_text(encoding="utf-8"))
        bundle = Bundle(
            folder,
            str(manifest["framework"]),
            Task(manifest["task"], tuple(manifest["classes"])),
            schema,
            float(manifest["threshold"]),
            manifest["runtime"],
            str(manifest["native"]),
            str(manifest["code"]),
            str(manifest["preprocessing_file"]),
            tuple(manifest["identifiers"]),
            str(manifest["tree"]),
            str(manifest["redirector"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise MlaasError(
            f"The model folder {folder} is damaged ({type(error).__name__}).", "Train it again."
        ) from error
    needed = [bundle.native, bundle.code, bundle.preprocessing_file, MODEL_FILE if bundle.runtime == "onnx" else ""]
    if lacking := [name for name in needed if name and name not in manifest["files"]]:
        raise MlaasError(f"The model folder {folder} is damaged: it lacks {lacking[0]}.", "Train it again.")
    if schema.format != SCHEMA_FORMAT:
        raise MlaasError(f"The model folder {folder} was written by another version of mlaas4hep.", "Train it again.")
    return bundle


def _export(
    folder: Path,
    adapter: Adapter,
    task: Task,
    schema: Schema,
    held_out: HeldOut,
    workflow: Workflow,
    runtime: Runtime,
) -> Export:
    from mlaas4hep.training.onnx_export import Export, export_onnx

    if runtime == "native":
        return Export("native", "The parameters ask for it.")
    digest = _digest(folder / "schema.json")
    return export_onnx(adapter, task, folder, held_out, schema_digest=digest, fill=schema.fill, code=workflow.model)


def _manifest(adapter: Adapter, task: Task, workflow: Workflow, export: Export, native: str) -> dict[str, Any]:
    from mlaas4hep.training.onnx_export import TOLERANCE

    check = {"events": export.events, "largest_difference": export.difference, "tolerance": TOLERANCE}
    return {
        "format": BUNDLE_FORMAT,
        "framework": adapter.framework,
        "task": task.kind,
        "classes": list(task.classes),
        "threshold": workflow.parameters.threshold,
        "takes_mask": adapter.takes_mask,
        "runtime": export.runtime,
        "runtime_reason": export.reason,
        "onnx_check": check if export.runtime == "onnx" else None,
        "native": native,
        "identifiers": list(workflow.parameters.identifier),
        "tree": workflow.parameters.branch,
        "redirector": workflow.parameters.redirector,
        "version": mlaas4hep.__version__,
        "versions": _versions(),
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _copy_code(workflow: Workflow, folder: Path) -> dict[str, str]:
    """Keep the user's files: the model's with what it has imported from its folder, and a preprocessing in Python."""
    base = workflow.model.parent
    (folder / CODE).mkdir()
    for path in _user_files(workflow.model):
        target = folder / CODE / path.relative_to(base)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    preprocessing = ""
    if workflow.preprocessing_file is not None and workflow.preprocessing_file.suffix == ".py":
        preprocessing = f"{CODE}/{workflow.preprocessing_file.name}"
        shutil.copyfile(workflow.preprocessing_file, folder / preprocessing)
    return {"code": f"{CODE}/{workflow.model.name}", "preprocessing_file": preprocessing}


def _user_files(model: Path) -> list[Path]:
    """The model's file, and the modules beside it that are loaded."""
    found = {model}
    for module in list(sys.modules.values()):
        name = getattr(module, "__file__", None)
        path = Path(name) if isinstance(name, str) else None
        inside = path is not None and path.suffix == ".py" and path.is_relative_to(model.parent) and path.is_file()
        own = getattr(module, "__name__", "").partition(".")[0] != "mlaas4hep"
        if path is not None and inside and own and "site-packages" not in path.parts:
            found.add(path)
    return sorted(found)


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file but the card, by its path in the folder."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / CARD)
    return {path.relative_to(folder).as_posix(): _digest(path) for path in paths}


def _refuse_changed(folder: Path, files: Mapping[str, str]) -> None:
    for name, digest in files.items():
        inner = PurePosixPath(name)
        if inner.is_absolute() or ".." in inner.parts:
            raise MlaasError(f"The model folder {folder} names the file {name} outside of it.", "Train it again.")
        path = folder / name
        if not path.is_file():
            raise MlaasError(f"The model folder {folder} is damaged: it lacks {name}.", "Train it again.")
        if _digest(path) != digest:
            raise MlaasError(
                f"{path} was changed after the model was written, so the model is not used.",
                "Take the folder from where it was trained, or train it again.",
            )


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
                "identity": file.identity,
                "entries": file.entries,
                "entries_read": file.read,
                "entries_used": file.stop - file.start,
                "parts": np.bincount(parts[file.start : file.stop], minlength=3).tolist(),
                "label": labels.branch or (labels.by_source[file.number] if labels.by_source else ""),
            }
            for file in store.facts.files
        ],
        "cut_flow": [asdict(cut) for cut in store.facts.cut_flow],
        "store": store.facts.key,
        "code": {path.name: _digest(path) for path in _user_files(workflow.model)},
        "versions": _versions(),
        "backend": os.environ.get("KERAS_BACKEND", ""),
        "command": sys.argv,
        "host": socket.gethostname(),
        "system": platform.platform(),
        "started": started.isoformat(timespec="seconds"),
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _versions() -> dict[str, str]:
    found = {"mlaas4hep": mlaas4hep.__version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


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
