"""The executor of a platform: each job is an instance of the unit `mlaas4hep-job@.service`.

The unit's template is installed by the role `mlaas4hep`. It runs `mlaas4hep job run %i` as the service's account,
appends output to the job's log, and calls `mlaas4hep job ended %i` when the process has ended, however it ended.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator

from mlaas4hep.errors import MlaasError
from mlaas4hep.service.jobs import Job, JobStatus, mark_cancelled, status_of

_ALIVE = ("active", "activating", "deactivating", "reloading")
_FOLLOW_INTERVAL = 0.3


class SystemdExecutor:
    """Runs jobs as systemd units; what systemd needs root for, the caller must be root for."""

    def submit(self, job: Job) -> None:
        """Start the job's unit without waiting for it."""
        _systemctl("start", "--no-block", _unit(job))

    def status(self, job: Job) -> JobStatus:
        """Where the job stands; a unit that is gone without a word was interrupted."""
        return status_of(job, self._alive(job))

    def logs(self, job: Job, follow: bool) -> Iterator[bytes]:
        """The log file's contents; with `follow`, until the job has ended."""
        with job.log.open("rb") as stream:
            while True:
                over = not follow or not self._alive(job)
                while piece := stream.read(65536):
                    yield piece
                if over:
                    return
                time.sleep(_FOLLOW_INTERVAL)

    def cancel(self, job: Job) -> None:
        """Stop the job's unit. Raises MlaasError for a job that has ended already."""
        state = self.status(job).state
        if state.final:
            raise MlaasError(f"The job {job.identifier} is already {state}.")
        mark_cancelled(job)
        _systemctl("stop", _unit(job))

    def _alive(self, job: Job) -> bool:
        shown = _systemctl("show", "--property=ActiveState", "--property=Job", _unit(job))
        facts = dict(line.partition("=")[::2] for line in shown.splitlines())
        return facts.get("ActiveState") in _ALIVE or facts.get("Job", "0") not in ("", "0")


def _unit(job: Job) -> str:
    return f"mlaas4hep-job@{job.identifier}.service"


def _systemctl(*words: str) -> str:
    try:
        done = subprocess.run(["systemctl", *words], capture_output=True, text=True, check=False)
    except OSError as error:
        raise MlaasError("systemctl is not there.", "Jobs run on a platform made by provision create.") from error
    if done.returncode:
        problem = done.stderr.strip().splitlines()
        raise MlaasError(f"systemctl {words[0]} failed: {problem[-1] if problem else done.returncode}.")
    return done.stdout
