"""What to read: a list of files, a text file with one path a line, or patterns, turned into sources.

The format of a file is that of its suffix, unless it is said: `.root`, `.csv`, `.json`, `.jsonl`, `.ndjson`,
`.parquet`, `.parq`, `.pq`, `.avro`, the text formats also with `.gz` or `.bz2` behind. A file with another suffix is a
ROOT file. Only ROOT files have trees: `file.root:dir/tree` names one; a tree behind another file is refused.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from mlaas4hep.data.remote import HTTP_SCHEMES, XROOTD_SCHEMES, list_matching
from mlaas4hep.errors import MlaasError, UsageError
from mlaas4hep.names import did_you_mean, is_pattern

ROOT = "root"
FORMATS = (ROOT, "csv", "json", "parquet", "avro")
_FORMAT_BY_SUFFIX = {
    ".root": ROOT,
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
    ".parq": "parquet",
    ".pq": "parquet",
    ".avro": "avro",
}
_COMPRESSED = (".gz", ".bz2")
_MAGIC = (b"root", b"PAR1", b"Obj\x01")
_REMOTE = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")
_KNOWN_SUFFIX = "|".join(suffix[1:] for suffix in _FORMAT_BY_SUFFIX)
_FILE_AND_TREE = re.compile(
    rf"^(?P<file>.+\.(?:{_KNOWN_SUFFIX})(?:\.gz|\.bz2)?(?:\?[^:]*)?):(?P<tree>.+)$", re.IGNORECASE
)


@dataclass(frozen=True)
class Source:
    """One tree of one file, or a file of a format without trees.

    Attributes:
        path: absolute local path, or URL (`root://host//path`).
        tree: the tree in the file, with its directories (`boostedAk8/events`); "" for formats without trees.
        item: which item of the user's list it came from, counted from 0 (a pattern makes several sources of one item).
        number: its place among all sources.
        format: one of `FORMATS`.
    """

    path: str
    tree: str
    item: int = 0
    number: int = 0
    format: str = ROOT

    @property
    def remote(self) -> bool:
        """Whether the file is reached by a URL."""
        return is_remote(self.path)

    def __str__(self) -> str:
        return f"{self.path}:{self.tree}" if self.tree else self.path


def is_remote(path: str) -> bool:
    """Whether the path is a URL such as `root://host//path`."""
    return bool(_REMOTE.match(path))


def format_of(path: str, dtype: str = "") -> str:
    """The format of a file: `dtype` when it is given, else that of the suffix, else ROOT.

    Raises UsageError for a `dtype` that is no format.
    """
    if dtype and dtype not in FORMATS:
        raise UsageError(f"There is no format {dtype}.", did_you_mean(dtype, FORMATS, "formats"))
    return dtype or _suffix_format(path) or ROOT


def _suffix_format(path: str) -> str:
    name = Path(urlsplit(path).path if is_remote(path) else path).name.lower()
    for compressed in _COMPRESSED:
        name = name.removesuffix(compressed)
    return _FORMAT_BY_SUFFIX.get(Path(name).suffix, "")


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


def resolve_files(
    files: str,
    tree: str,
    redirector: str = "",
    dtype: str = "",
    matching: Callable[[str], list[str]] = list_matching,
) -> list[Source]:
    """Turn the `files` of a workflow into sources.

    Args:
        files: the path of a text file with one item a line, or a comma-separated list of items. An item is a path, a
            pattern (`data/*.root`), a URL (`root://host//path`, also with `*` in its last part, or `https://host/path`)
            or a path of a grid store (`/store/...`); one of a ROOT file may end in `:dir/tree`. Relative paths are
            looked up beside the text file, then in the current folder.
        tree: the tree to read where an item names none; formats without trees do without.
        redirector: the `root://` server to put before `/store/...` paths.
        dtype: the format of all files, one of `FORMATS`; "" goes by their suffixes.
        matching: gives the URLs that match a URL with `*`; by default it asks the server.

    Raises UsageError for a file that does not exist, a pattern without match, a scheme or format that is not read, a
    tree of a format without trees, or a tree that is listed twice; MlaasError when a server cannot list a folder.
    """
    base, items = _items(files)
    if not items:
        raise UsageError(f"The list of files {files!r} is empty.", "Name at least one file.")
    found = [
        _source(path, inner, number, tree, dtype)
        for number, item in enumerate(items)
        for path, inner in _expand(item, base, redirector, matching)
    ]
    sources = [replace(source, number=number) for number, source in enumerate(found)]
    seen: set[tuple[str, str]] = set()
    for source in sources:
        if (source.path, source.tree) in seen:
            raise UsageError(f"{source} is listed twice.", "List each tree once: its events would count double.")
        seen.add((source.path, source.tree))
    return sources


def _items(files: str) -> tuple[Path, list[str]]:
    """The folder that relative paths belong to, and the items."""
    path = Path(files).expanduser()
    if "," not in files and not is_remote(files) and path.is_file() and not _is_data(path):
        return path.absolute().parent, read_list(path)
    return Path.cwd(), [item.strip() for item in files.split(",") if item.strip()]


def _is_data(path: Path) -> bool:
    """Whether this is a data file rather than a list of files."""
    if _suffix_format(str(path)):
        return True
    try:
        with path.open("rb") as stream:
            begin = stream.read(5)
    except OSError as error:
        raise MlaasError(f"{path} cannot be opened: {error.strerror}.") from error
    # a list may begin with root://
    return begin.startswith(_MAGIC) and begin != b"root:"


def _source(path: str, inner: str, item: int, tree: str, dtype: str) -> Source:
    kind = format_of(path, dtype)
    if kind == ROOT:
        return Source(path, inner or tree, item)
    if inner:
        raise UsageError(f"{path} is read as {kind}, which has no trees.", f"Take :{inner} away.")
    return Source(path, "", item, format=kind)


def _expand(item: str, base: Path, redirector: str, matching: Callable[[str], list[str]]) -> list[tuple[str, str]]:
    """The files that an item stands for, each with the tree that the item names, or ""."""
    if item.startswith("/store/") and not Path(item).exists():
        if not redirector:
            raise UsageError(f"{item} is a path of a grid store.", "Set redirector (root://...) in the parameters.")
        item = f"{redirector.rstrip('/')}/{item}"
    if is_remote(item):
        return _remote(item, matching)
    inner = ""
    found = _local(item, base)
    if not found:
        item, inner = _split_tree(item)
        found = _local(item, base) if inner else []
    if not found:
        wanting = "matches no file" if is_pattern(item) else "does not exist"
        raise UsageError(f"{item} {wanting} (looked in {base} and {Path.cwd()}).", "Correct the list of files.")
    for path in found:
        if Path(path).is_dir():
            raise UsageError(f"{path} is a folder.", f"Name its files, for instance {item.rstrip('/')}/*.root")
    return [(path, inner) for path in found]


def _remote(item: str, matching: Callable[[str], list[str]]) -> list[tuple[str, str]]:
    url, inner = (item, "") if not (matched := _FILE_AND_TREE.match(item)) else (matched["file"], matched["tree"])
    place = urlsplit(url)
    scheme = place.scheme.lower()
    if scheme not in (*XROOTD_SCHEMES, *HTTP_SCHEMES):
        raise UsageError(f"{url}: files are not read over {scheme}://.", "Use root://, https:// or a local path.")
    if scheme in HTTP_SCHEMES and "@" in place.netloc:
        raise UsageError(f"An address at {place.hostname} has a user's name in it, which is not read.", "Leave it out.")
    if "*" not in place.path:
        return [(url, inner)]
    if scheme in HTTP_SCHEMES:
        raise UsageError(f"{url}: a web server does not list its files.", "List them without a pattern.")
    found = matching(url)
    if not found:
        raise UsageError(f"{url} matches no file.", "Correct the list of files.")
    return [(path, inner) for path in found]


def _split_tree(item: str) -> tuple[str, str]:
    """Split `file:dir/tree`; a path with other colons keeps them."""
    if matched := _FILE_AND_TREE.match(item):
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
