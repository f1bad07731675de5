"""Puts the man pages into the wheel: an environment's `share/man` is where `man` looks for its programs."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ManPages(BuildHookInterface):
    """Has the manual's generator write the pages, from the command lines themselves."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the pages to a wheel; a checkout that is installed editable has them by `make docs`."""
        if version == "editable":
            return
        self._folder = tempfile.TemporaryDirectory(prefix="mlaas4hep-man-")
        command = [sys.executable, "-m", "docs.generator.man", self._folder.name]
        subprocess.run(command, cwd=self.root, check=True)
        for page in sorted(Path(self._folder.name).iterdir()):
            build_data["shared_data"][str(page)] = f"share/man/man1/{page.name}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was written."""
        if version != "editable":
            self._folder.cleanup()
