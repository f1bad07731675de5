"""What MkDocs does with each page of ours: generated pages, figures of the README, links out of `docs/`."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

from docs.generator.reference import pages

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.pages import Page

_CHECKOUT = Path(__file__).parents[2]
_SECTION = re.compile(r"^<!-- README: (.+) -->$", re.MULTILINE)
_LINK = re.compile(r"\[([^\]]+)\]\(((?:\.\./)+[^)#]*)(?:#[^)]*)?\)")
_RUNS = re.compile(r"^(```\w+) runs$", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the reference, which is made from the code."""
    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put in what the README has, and make plain text of links to files that the site has not."""
    markdown = _SECTION.sub(lambda found: readme_section(found[1]), markdown)
    folder = PurePosixPath(page.file.src_uri).parent

    def outside(link: re.Match[str]) -> str:
        steps: list[str] = []
        for part in ("docs" / folder / link[2]).parts:
            if part == "..":
                steps.pop()
            else:
                steps.append(part)
        if steps[0] == "docs":
            return link[0]
        path = "/".join(steps)
        if not (_CHECKOUT / path).exists():
            raise PluginError(f"{page.file.src_uri} links to {path}, which is not there.")
        return f"{link[1]} (`{path}`)" if link[1] != path else f"`{path}`"

    return _RUNS.sub(r"\1", _LINK.sub(outside, markdown))


def readme_section(title: str) -> str:
    """What stands below a heading of the README, up to the next heading.

    Raises PluginError when there is no such heading.
    """
    text = (_CHECKOUT / "README.md").read_text(encoding="utf-8")
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)
    if not found:
        raise PluginError(f"The README has no heading {title!r}.")
    return found[1].strip()
