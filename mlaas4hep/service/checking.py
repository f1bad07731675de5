"""What a submission would train, without training it: its files are opened and its inputs chosen, as a training does.

`python -m mlaas4hep.service.checking FOLDER` is the process that looks, see `bounded`; the submission is its standard
input. It is in the sandbox of a job without network: lists and parameters can name any path, and what a job would not
see must not be told. Users' Python files are not run.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel

from mlaas4hep.data.preprocessing import Preprocessing
from mlaas4hep.data.sources import read_list, resolve_files
from mlaas4hep.errors import MlaasError, UsageError
from mlaas4hep.service.arrangement import Submission, arrange
from mlaas4hep.service.bounded import ENVIRONMENT, NoAnswerError, answer, ask
from mlaas4hep.service.endpoints import needed
from mlaas4hep.service.sandbox import sandboxed, shortage
from mlaas4hep.training.parameters import load_parameters
from mlaas4hep.training.workflow import Labels, files_of, read_labels

if TYPE_CHECKING:
    from mlaas4hep.data.sources import Source
    from mlaas4hep.training.parameters import Parameters

_SHOWN_FILES = 500
_NOBODY = 65534
_LIST_BYTES = 16 * 2**20
_TEMPORARY_BYTES = 64 * 2**20


class CheckedFile(BaseModel):
    """A file that would be trained on; `entries` is null when it is on a server, and was not looked at."""

    path: str
    tree: str
    entries: int | None


class SubmissionCheck(BaseModel):
    """What a submission would train.

    Attributes:
        files: the first 500 of them.
        number: how many there are; a pattern on a server counts as one.
        looked: how many of them were looked at.
        entries: of those, together.
        servers: HOST:PORT of the servers that the job would read from.
        inputs: the input branches by their kind; empty when no file was looked at, or preproc.py makes them.
        width: columns of the input vector; null when that depends on the values of jagged branches.
        label: the branch that holds the label, "" when labels come by file.
        classes: of labels by file.
        weight: the branch that holds the weight, "" without weights.
        notes: what else is worth telling, one sentence each.
    """

    files: list[CheckedFile]
    number: int
    looked: int
    entries: int = 0
    servers: list[str]
    inputs: dict[str, list[str]] = {}
    width: int | None = None
    label: str
    classes: list[str] = []
    weight: str
    notes: list[str]


def check_in_process(folder: Path, submission: Submission, reads: Iterable[Path]) -> SubmissionCheck:
    """Look at a submission in a process of its own.

    Args:
        folder: the workspace's.
        submission: what is asked for.
        reads: folders that jobs may read.

    Raises UsageError for what the training would refuse, and for files that cannot be looked at in bounded time and
    memory; MlaasError when too many ask, or where no sandbox can be made.
    """
    root = os.geteuid() == 0
    words = sandboxed(
        [sys.executable, "-I", "-m", __name__, str(folder)],
        reads=[folder, *(path for path in reads if path.exists())],
        environment={"HOME": "/tmp", **ENVIRONMENT},  # noqa: S108  (its own)
        temporary=_TEMPORARY_BYTES,
        account=_NOBODY if root else None,
        group=folder.stat().st_gid if root else None,
    )
    try:
        found = ask(words, submission.model_dump_json().encode())
    except NoAnswerError as error:
        if reason := shortage():
            raise MlaasError(reason) from error
        raise UsageError(
            "A data file is damaged, or the files are too many or too large to be looked at.",
            "Look at the branches of each file, or submit without a check.",
        ) from error
    if "error" in found:
        raise UsageError(str(found["error"]), str(found["remedy"]))
    return SubmissionCheck.model_validate(found)


def look(folder: Path, place: Path, submission: Submission) -> SubmissionCheck:
    """Look at a submission in this process.

    Args:
        folder: the workspace's.
        place: an empty folder, for links to the workspace's files.
        submission: what is asked for.

    Raises UsageError for what the training would refuse.
    """
    given = place / "input"
    try:
        given.mkdir()
        for path in folder.iterdir():
            (given / path.name).symlink_to(path)
        return _looked(given, submission)
    except MlaasError as error:
        raise UsageError(_inner(error.message, given), _inner(error.remedy, given)) from error
    except OSError as error:
        raise UsageError(f"The workspace cannot be looked at: {error.strerror or error}.") from error


def _inner(text: str, given: Path) -> str:
    """A text with the paths that the user knows."""
    inner = text.replace(f"{given}/", "").replace(str(given), "the workspace")
    return inner.replace(str(_own(given.parent)), "the job's own folder")


def _own(place: Path) -> Path:
    """Where the process is, as a job is in a folder of its own."""
    return place / "own"


def _looked(given: Path, submission: Submission) -> SubmissionCheck:
    # here, as below, so that the service itself does not load what reads events
    from mlaas4hep.training.targets import classes_of_files

    arrange(given, submission)
    files = files_of(given)
    parameters = load_parameters(Path(files.params))
    unlisted: list[str] = []

    def itself(url: str) -> list[str]:
        unlisted.append(url)
        return [url]

    sources = resolve_files(files.files, parameters.branch, parameters.redirector, matching=itself)
    try:
        labels = read_labels(files.labels, sources)
    except UsageError:
        if not unlisted:
            raise
        labels = Labels()
    found = SubmissionCheck(
        files=[],
        number=len(sources),
        looked=sum(not source.remote for source in sources),
        servers=needed(read_list(Path(files.files)), parameters.redirector),
        label=labels.branch,
        weight=parameters.weight,
        notes=[f"{url} stands for files on a server, which was not asked for them." for url in unlisted],
    )
    entries = _chosen(found, sources, labels, parameters, files.preproc)
    if labels.by_source:
        texts = [labels.by_source[source.number] for source in sources if source.remote or source.number in entries]
        found.classes = list(classes_of_files(texts, parameters))
    found.entries = sum(entries.values())
    for source in sources[:_SHOWN_FILES]:
        seen = None if source.remote else entries.get(source.number, 0)
        found.files.append(CheckedFile(path=_inner(source.path, given), tree=source.tree, entries=seen))
    found.notes = [_inner(note, given) for note in found.notes]
    return found


def _chosen(
    found: SubmissionCheck, sources: Sequence[Source], labels: Labels, parameters: Parameters, preproc: str
) -> dict[int, int]:
    """Tell the inputs that are chosen in the local files; returns the entries of each of these that has some."""
    from mlaas4hep.data.ingest import scan
    from mlaas4hep.training.preparation import choose

    local = [source for source in sources if not source.remote]
    if preproc and Path(preproc).suffix == ".py":
        found.notes.append("preproc.py is not run by a check: what it makes of the events is not known.")
        scanned, _, notes = scan(local, parameters.differing_branches) if local else ([], {}, [])
        found.notes += notes
        return {file.source.number: file.entries for file in scanned}
    rules = Preprocessing.load(Path(preproc)) if preproc else None
    if not local:
        return {}
    choice = choose(local, labels, parameters, rules)
    selection = choice.selection
    found.notes += selection.notes
    for name in selection.inputs:
        found.inputs.setdefault(choice.offered[name].kind.value, []).append(name)
    found.width = None if selection.jagged else len(selection.flat)
    return {file.source.number: file.entries for file in choice.files}


def main() -> None:
    """Answer the command line."""
    submission = Submission.model_validate_json(sys.stdin.buffer.read())
    place = Path(tempfile.mkdtemp())
    _own(place).mkdir()
    os.chdir(_own(place))
    answer(lambda: look(Path(sys.argv[1]), place, submission), _LIST_BYTES)


if __name__ == "__main__":
    main()
