"""Builds the site."""

from __future__ import annotations

from pathlib import Path

from mkdocs.commands.build import build as build_site
from mkdocs.config import load_config

_CONFIGURATION = Path(__file__).parents[2] / "mkdocs.yml"


def build(folder: Path) -> None:
    """Build the site into a folder.

    Raises mkdocs.exceptions.Abort when there is any warning: a link, an anchor, or a page that is in no menu.
    """
    configuration = load_config(str(_CONFIGURATION), site_dir=str(folder), strict=True)
    configuration.plugins.on_startup(command="build", dirty=False)
    try:
        build_site(configuration)
    finally:
        configuration.plugins.on_shutdown()
