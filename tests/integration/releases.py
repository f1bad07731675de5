"""Releases of the framework that differ from this checkout's."""

from __future__ import annotations

import zipfile
from pathlib import Path


def variant(wheel: Path, folder: Path, name: str, text: str) -> Path:
    """The wheel with a text at the end of one of its modules: another release.

    Args:
        wheel: of the checkout.
        folder: that the other one is put into; it must not exist.
        name: path of the module in it.
        text: what is added.
    """
    folder.mkdir()
    target = folder / wheel.name
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as made:
        for item in source.infolist():
            data = source.read(item)
            if item.filename.endswith("RECORD"):
                # pip checks the digests
                lines = data.decode().splitlines()
                data = "\n".join(
                    f"{line.split(',')[0]},," if line.startswith(name) else line for line in lines
                ).encode()
            made.writestr(item, data + text.encode() if item.filename == name else data)
    return target
