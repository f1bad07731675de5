"""The example notebooks: each runs from top to bottom in a kernel of its own, as a user would run it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from mlaas4hep.example.notebooks import FOLDER
from tests.confinement import require_confinement
from tests.conftest import REPOSITORY

BOOKS = sorted(FOLDER.glob("*.ipynb"))
PATIENCE = 600  # seconds that a cell may take on a busy machine
SHOWN = {
    "1-inspect": ["Histograms of the first 1", "Missing transverse momentum", "type: 1800 * var * float32"],
    "2-train": ["Logloss after each round", "Input vector of", "leading_pt", "'label': 'signal'"],
    "3-report": ["srcdoc=", "AUC 0.", "signal (2"],
    "4-serve": ["finished", "higgs, version 1", "probabilities", "A model of XGBoost"],
    "5-remote": ["One branch: ", "Missing transverse momentum", "A model of scikit-learn"],
}


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs_and_names_of_a_machine(path: Path) -> None:
    book = read(path)
    nbformat.validate(book)
    for cell in book.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None
    assert set(book.metadata) == {"kernelspec", "language_info"}
    text = path.read_text(encoding="utf-8")
    assert os.uname().nodename not in text
    # an absolute path, which is none of a URL and no closing tag
    assert re.findall(r"(?<![\w.:/<}])/[A-Za-z][\w.-]*/", text) == []


def test_the_examples_have_the_notebooks_of_the_package() -> None:
    assert {path.stem for path in BOOKS} == set(SHOWN)
    assert (REPOSITORY / "examples/notebooks").resolve() == FOLDER.resolve()


@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(
    path: Path, user_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if path.stem == "4-serve":
        require_confinement()
    for name in [name for name in os.environ if name.startswith(("MLAAS4HEP_", "JUPYTER_", "IPYTHON"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MLAAS4HEP_KERNELS", "numpy")  # ready sooner, and the same results
    folder = tmp_path / "notebooks"
    folder.mkdir()
    book = read(path)
    NotebookClient(
        book,
        timeout=PATIENCE,
        startup_timeout=PATIENCE,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    ).execute()
    if kept := os.environ.get("KEEP_NOTEBOOKS"):
        nbformat.write(book, Path(kept, path.name))
    said = outputs(book)
    assert not [text for text in SHOWN[path.stem] if text not in said]


def outputs(book: Any) -> str:
    """All that the cells have printed or shown."""
    texts = []
    for output in [output for cell in book.cells for output in cell.get("outputs", [])]:
        assert output.get("name") != "stderr", output
        texts += [output.get("text", ""), *map(str, output.get("data", {}).values())]
    return "\n".join(texts)
