"""What to read: a list of files, a text file with one path a line, or patterns, turned into sources."""

from __future__ import annotations

import glob
import re
from dataclasses import dataclass, replace
from pathlib import Path

from mlaas4hep.errors import MlaasError, UsageError
from mlaas4hep.names import is_pattern

_REMOTE = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")
_ROOT_AND_TREE = re.compile(r"^(?P<file>.+\.root(?:\?[^:]*)?):(?P<tree>.+)$")


@dataclass(frozen=True)
class Source:
    """One tree of one file.

    Attributes:
        path: absolute local path, or URL (`root://host//path`).
        tree: the tree in the file, with its directories (`boostedAk8/events`).
        item: which item of the user's list it came from, counted from 0 (a pattern makes several sources of one item).
        number: its place among all sources.
    """

    path: str
    tree: str
    item: int = 0
    number: int = 0

    @property
    def remote(self) -> bool:
        """Whether the file is reached by a URL."""
        return is_remote(self.path)

    def __str__(self) -> str:
        return f"{self.path}:{self.tree}"


def is_remote(path: str) -> bool:
    """Whether the path is a URL such as `root://host//path`."""
    return bool(_REMOTE.match(path))


def read_list(path: Path) -> list[str]:
    """The lines of a text file without comments (`#` at the start or after a blank) and empty lines.

    Raises UsageError when the file is not there or is no text.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"The list {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"The list {path} is no text file.", "Write one item a line.") from error
    lines = (re.sub(r"(^|\s)#.*$", "", line).strip() for line in text.splitlines())
    return [line for line in lines if line]


def resolve_files(files: str, tree: str, redirector: str = "") -> list[Source]:
    """Turn the `files` of a workflow into sources.

    Args:
        files: the path of a text file with one item a line, or a comma-separated list of items. An item is a path, a
            pattern (`data/*.root`), a URL (`root://host//path`) or a path of a grid store (`/store/...`); any of them
            may end in `:dir/tree`. Relative paths are looked up beside the text file, then in the current folder.
        tree: the tree to read where an item names none.
        redirector: the `root://` server to put before `/store/...` paths.

    Raises UsageError for a file that does not exist, a pattern without match, a scheme that is not read, or a tree
    that is listed twice.
    """
    base, items = _items(files)
    if not items:
        raise UsageError(f"The list of files {files!r} is empty.", "Name at least one ROOT file.")
    sources = [source for number, item in enumerate(items) for source in _expand(item, number, base, tree, redirector)]
    sources = [replace(source, number=number) for number, source in enumerate(sources)]
    seen: set[tuple[str, str]] = set()
    for source in sources:
        if (source.path, source.tree) in seen:
            raise UsageError(f"{source} is listed twice.", "List each tree once: its events would count double.")
        seen.add((source.path, source.tree))
    return sources


def _items(files: str) -> tuple[Path, list[str]]:
    """The folder that relative paths belong to, and the items."""
    path = Path(files).expanduser()
    if "," not in files and not is_remote(files) and path.is_file() and not _begins_as_root(path):
        return path.absolute().parent, read_list(path)
    return Path.cwd(), [item.strip() for item in files.split(",") if item.strip()]


def _begins_as_root(path: Path) -> bool:
    """Whether this is a data file rather than a list of files."""
    if path.suffix == ".root":
        return True
    try:
        with path.open("rb") as stream:
            return stream.read(4) == b"root"
    except OSError as error:
        raise MlaasError(f"{path} cannot be opened: {error.strerror}.") from error


def _expand(item: str, number: int, base: Path, tree: str, redirector: str) -> list[Source]:
    if item.startswith("/store/") and not Path(item).exists():
        if not redirector:
            raise UsageError(f"{item} is a path of a grid store.", "Set redirector (root://...) in the parameters.")
        item = f"{redirector.rstrip('/')}/{item}"
    if is_remote(item):
        return [_remote(item, number, tree)]
    found = _local(item, base)
    if not found:
        item, inner = _split_tree(item)
        if inner:
            tree, found = inner, _local(item, base)
    if not found:
        wanting = "matches no file" if is_pattern(item) else "does not exist"
        raise UsageError(f"{item} {wanting} (looked in {base} and {Path.cwd()}).", "Correct the list of files.")
    for path in found:
        if Path(path).is_dir():
            raise UsageError(f"{path} is a folder.", f"Name its files, for instance {item.rstrip('/')}/*.root")
    return [Source(path, tree, number) for path in found]


def _remote(item: str, number: int, tree: str) -> Source:
    url, inner = item, ""
    if matched := _ROOT_AND_TREE.match(item):
        url, inner = matched["file"], matched["tree"]
    scheme = url.partition("://")[0].lower()
    if scheme not in ("root", "roots", "xroot", "xroots"):
        raise UsageError(f"{url}: files are not read over {scheme}:// by this version.", "Use root:// or a local path.")
    return Source(url, inner or tree, number)


def _split_tree(item: str) -> tuple[str, str]:
    """Split `file:dir/tree`; a path with other colons keeps them."""
    if matched := _ROOT_AND_TREE.match(item):
        return matched["file"], matched["tree"]
    head, _, tail = item.rpartition(":")
    return (head, tail) if head else (item, "")


def _local(item: str, base: Path) -> list[str]:
    """Absolute paths of the existing files that a local path or pattern stands for, in sorted order."""
    given = Path(item).expanduser()
    candidates = [given] if given.is_absolute() else [base / given, Path.cwd() / given]
    for candidate in candidates:
        if candidate.exists():
            return [str(candidate.absolute())]
        if is_pattern(item) and (matches := sorted(glob.glob(str(candidate), recursive=True))):  # noqa: PTH207 (takes absolute patterns)
            return [str(Path(match).absolute()) for match in matches]
    return []
