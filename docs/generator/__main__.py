"""`python -m docs.generator`: build the manual and the man pages into `build/`."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from mkdocs.exceptions import MkDocsException

from docs.generator.man import write_man_pages
from docs.generator.site import build

CHECKOUT = Path(__file__).parents[2]


def main() -> None:
    """Build both; what is wrong with a page goes to standard error, and ends with status 1."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        build(CHECKOUT / "build/manual")
    except MkDocsException as error:
        sys.exit(f"The manual was not built: {error}")
    pages = write_man_pages(CHECKOUT / "build/man/man1")
    print(f"The manual is build/manual/index.html. {len(pages)} man pages: man -M build/man provision")


if __name__ == "__main__":
    main()
