"""The example notebooks."""

from __future__ import annotations

import shutil
from pathlib import Path

from mlaas4hep.errors import MlaasError

FOLDER = Path(__file__).parent


def copy_notebooks(target: Path) -> tuple[list[Path], list[Path]]:
    """Copy the notebooks into a folder, which is made; those that it has already stay as they are.

    Returns the ones that were copied, and the ones that were there.

    Raises MlaasError when the folder cannot be written.
    """
    copied, there = [], []
    try:
        target.mkdir(parents=True, exist_ok=True)
        for source in sorted(FOLDER.glob("*.ipynb")):
            file = target / source.name
            if file.exists():
                there.append(file)
            else:
                shutil.copyfile(source, file)
                copied.append(file)
    except OSError as error:
        raise MlaasError(f"The notebooks cannot be copied to {target}: {error.strerror or error}.") from error
    return copied, there
