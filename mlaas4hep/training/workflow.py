"""What a user hands over for a training: files, labels, model and parameters.

They are given one by one, or as a folder, which is also what travels to a platform:

==============  ==========================================================================
files.txt       one file (or pattern, or URL) a line; `#` starts a comment
labels.txt      one label a line, in the order of files.txt; or a single line with the name
                of the branch that holds the label
model.py        `def model(idim)` or `def model(schema)`, or `def model()`; see `user_model`
params.json     parameters; may be left out when the defaults do
preproc.json    preprocessing (or preproc.py), if there is any
anything else   data (relative paths in files.txt start at the folder), modules of the user
==============  ==========================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlaas4hep.data.preprocessing import Preprocessing
from mlaas4hep.data.sources import Source, is_remote, read_list, resolve_files
from mlaas4hep.data.specs import Specs, read_specs
from mlaas4hep.errors import UsageError
from mlaas4hep.training.parameters import Parameters, load_parameters, parse_parameters

FILES, LABELS, MODEL, PARAMS = "files.txt", "labels.txt", "model.py", "params.json"
PREPROC = ("preproc.json", "preproc.py")


@dataclass(frozen=True)
class Labels:
    """Where the labels come from: one text for each source, or a branch of the trees."""

    by_source: tuple[str, ...] = ()
    branch: str = ""


@dataclass(frozen=True)
class Given:
    """The arguments of `load_workflow` that a folder stands for."""

    files: str
    labels: str
    model: str
    params: str
    preproc: str


@dataclass(frozen=True)
class Workflow:
    """A complete request for a training."""

    sources: tuple[Source, ...]
    labels: Labels
    model: Path
    parameters: Parameters
    preprocessing: Preprocessing | None = None
    preprocessing_file: Path | None = None
    specs: Specs | None = None


def load_workflow(
    files: str,
    labels: str,
    model: str,
    params: str,
    *,
    preproc: str = "",
    dtype: str = "",
    specs: str = "",
    **overrides: Any,
) -> Workflow:
    """Check everything that can be checked without opening the data.

    Args:
        files: see `resolve_files`.
        labels: a text file with one label a line, a comma-separated list, or the name of a branch.
        model: a Python file.
        params: a JSON file, "" for the defaults.
        preproc: a JSON or Python file with the preprocessing, "" for none.
        dtype: the format of all files; "" goes by their suffixes.
        specs: a specs file with the ranges and multiplicities to use, "" to take those of the files.
        overrides: parameters that replace those of the file, where they are not None.

    Raises UsageError for whatever is missing or contradictory.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    parameters = load_parameters(Path(params), **given) if params else parse_parameters(given, "the command line")
    path = Path(model).expanduser().absolute()
    if not path.is_file():
        raise UsageError(f"The model {model} does not exist.", "Name a Python file with a function model(idim).")
    sources = resolve_files(files, parameters.branch, parameters.redirector, dtype)
    rules = Path(preproc).expanduser().absolute() if preproc else None
    preprocessing = Preprocessing.load(rules) if rules else None
    found = read_specs(Path(specs).expanduser()) if specs else None
    return Workflow(tuple(sources), read_labels(labels, sources), path, parameters, preprocessing, rules, found)


def load_folder(folder: Path, *, dtype: str = "", specs: str = "", **overrides: Any) -> Workflow:
    """The workflow of a folder, laid out as this module says."""
    given = files_of(folder)
    return load_workflow(
        given.files,
        given.labels,
        given.model,
        given.params,
        preproc=given.preproc,
        dtype=dtype,
        specs=specs,
        **overrides,
    )


def files_of(folder: Path) -> Given:
    """What a workflow folder hands over. Raises UsageError for one that lacks a file, or has two for one purpose."""
    check_folder(folder)
    params = str(folder / PARAMS) if (folder / PARAMS).is_file() else ""
    rules = [name for name in PREPROC if (folder / name).is_file()]
    if len(rules) > 1:
        raise UsageError(f"The folder {folder} has {' and '.join(rules)}.", "Keep the one that is meant.")
    preproc = str(folder / rules[0]) if rules else ""
    return Given(str(folder / FILES), _labels_of(folder / LABELS), str(folder / MODEL), params, preproc)


def check_folder(folder: Path) -> None:
    """Raise UsageError unless the folder has the files of a workflow."""
    if not folder.is_dir():
        raise UsageError(f"The folder {folder} does not exist.")
    missing = [name for name in (FILES, LABELS, MODEL) if not (folder / name).is_file()]
    if missing:
        raise UsageError(
            f"The folder {folder} has no {' and no '.join(missing)}.",
            f"A workflow folder holds {FILES}, {LABELS}, {MODEL} and {PARAMS}.",
        )


def _labels_of(path: Path) -> str:
    """The name of the label branch when the file has one line that is no label, else the file itself."""
    lines = read_list(path)
    return lines[0] if len(lines) == 1 and not _is_number(lines[0]) else str(path)


def read_labels(labels: str, sources: Sequence[Source]) -> Labels:
    """Match labels with sources: one label a source, or one label an item of the list of files.

    Raises UsageError when their numbers differ.
    """
    path = Path(labels).expanduser()
    if path.is_file():
        texts = read_list(path)
    elif "," in labels or _is_number(labels):
        texts = [label.strip() for label in labels.split(",") if label.strip()]
    elif not labels.strip() or "/" in labels or path.suffix == ".txt" or is_remote(labels):
        raise UsageError(f"The labels {labels!r} are no file, no list and no branch.", "Give one label a file.")
    else:
        return Labels(branch=labels)
    items = 1 + max(source.item for source in sources)
    if len(texts) == len(sources):
        return Labels(by_source=tuple(texts))
    if len(texts) == items:
        return Labels(by_source=tuple(texts[source.item] for source in sources))
    raise UsageError(
        f"There are {len(texts)} labels for {len(sources)} files.", "Give one label a file, in the order of the files."
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
