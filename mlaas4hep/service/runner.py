"""The training of a job, inside its sandbox: `python -m mlaas4hep.service.runner INPUT MODEL PROGRESS OUTCOME`.

PROGRESS and OUTCOME are the numbers of open files: one JSON object a line while it runs, and why it failed.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

from mlaas4hep.errors import MlaasError

_LINES = 3


def main(folder: str, model: str, progress: str, outcome: str) -> int:
    """Train; returns the exit status, 1 when it failed for a reason that is told."""
    try:
        _train(Path(folder), Path(model), int(progress))
    except MlaasError as error:
        print(f"mlaas4hep: {error}", file=sys.stderr)
        _tell(int(outcome), str(error))
    except Exception:
        text = traceback.format_exc()
        print(text, file=sys.stderr)
        _tell(int(outcome), "\n".join(text.strip().splitlines()[-_LINES:]))
    else:
        return 0
    return 1


def _train(folder: Path, model: Path, progress: int) -> None:
    from mlaas4hep.training.experiment import train
    from mlaas4hep.training.progress import both, json_lines, plain
    from mlaas4hep.training.workflow import load_folder

    with os.fdopen(progress, "a", encoding="utf-8") as stream:
        # an attempt that was interrupted may have written the model already
        train(load_folder(folder), model, both(plain(sys.stderr), json_lines(stream)), overwrite=model.exists())


def _tell(outcome: int, reason: str) -> None:
    with os.fdopen(outcome, "w", encoding="utf-8", errors="replace") as stream:
        stream.write(reason)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
