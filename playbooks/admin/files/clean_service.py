"""Removes what is old of the service's data; run by its account, with the framework's own Python.

    python -I - POLICY    a JSON object: `remove`, and the days after which `jobs`, `workspaces`, `stores` go (0: never)

Prints what goes, or with `remove` false what would go, as a JSON list of findings with their bytes. Models never go. Of
jobs only those go that have ended, of workspaces those of which no job waits or runs, of stores those that nobody has
open.
"""

import fcntl
import json
import os
import shutil
import sys
import time
from contextlib import closing, suppress
from datetime import datetime
from pathlib import Path

from sqlalchemy import delete, select

from mlaas4hep.service.archive import Bounds
from mlaas4hep.service.attempts import hold
from mlaas4hep.service.database import JobRow, open_database
from mlaas4hep.service.jobs import all_jobs
from mlaas4hep.service.settings import load_settings
from mlaas4hep.service.submissions import ENDED
from mlaas4hep.service.workspaces import AbsentError, Workspaces, size_of

DAY = 86400


def service_jobs(database, folder, before, remove):
    """Jobs of the service that ended before a time in seconds since 1970."""
    with database.read() as session:
        rows = session.scalars(
            select(JobRow).where(JobRow.phase == ENDED, JobRow.ended != "").order_by(JobRow.id)
        ).all()
    for row in rows:
        if datetime.fromisoformat(row.ended).timestamp() < before:
            yield "job", f"{row.name}_{row.number} of {row.user_key}", size_of(folder / row.key)
            if remove:
                # the row goes first: a folder without one is swept
                with database.write() as session:
                    session.execute(delete(JobRow).where(JobRow.key == row.key, JobRow.phase == ENDED))
                shutil.rmtree(folder / row.key, ignore_errors=True)


def ssh_jobs(folder, before, remove):
    """Jobs that were submitted over SSH, of which nobody holds the lock."""
    for job in all_jobs(folder):
        result = job.folder / "result.json"
        if not result.is_file() or result.stat().st_mtime >= before:
            continue
        lock = hold(job.folder)
        if lock is not None:
            yield "job", job.identifier, size_of(job.folder)
            if remove:
                shutil.rmtree(job.folder, ignore_errors=True)
            os.close(lock)


def old_workspaces(database, folder, before, remove):
    """Workspaces that did not change since, and of which no job waits or runs."""
    with database.read() as session:
        busy = set(map(tuple, session.execute(select(JobRow.user_key, JobRow.workspace).where(JobRow.phase != ENDED))))
    workspaces = Workspaces(folder, Bounds(0, 0))
    for home in sorted(folder.glob("u*")):
        for info in workspaces.all(home.name):
            if datetime.fromisoformat(info.changed).timestamp() < before and (home.name, info.name) not in busy:
                yield "workspace", f"{info.name} of {home.name}", info.bytes
                if remove:
                    with suppress(AbsentError):
                        workspaces.delete(home.name, info.name)


def opened(folder):
    """Names in a folder that a process of this account has open or mapped."""
    found, start = set(), f"{folder}/"
    for process in Path("/proc").glob("[0-9]*"):
        paths = []
        with suppress(OSError):
            paths = [line[line.index("/") :] for line in (process / "maps").read_text().splitlines() if "/" in line]
        with suppress(OSError):
            for link in (process / "fd").iterdir():
                with suppress(OSError):  # it was closed meanwhile
                    paths.append(str(link.readlink()))
        found |= {path[len(start) :].split("/")[0] for path in paths if path.startswith(start)}
    return found


def old_stores(folder, before, remove):
    """Packed stores that nobody has read since."""
    used = opened(folder)
    for store in sorted(path.parent for path in folder.glob("*/store.json")):
        times = [max(facts.st_atime, facts.st_mtime) for facts in map(Path.stat, store.iterdir())]
        if store.name in used or max(times) >= before:
            continue
        with (folder / f"{store.name}.lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield "store", store.name, size_of(store)
            if remove:
                shutil.rmtree(store, ignore_errors=True)


def clean(settings, policy, at):
    """What goes, at a time in seconds since 1970."""
    jobs, remove = settings.data / "jobs", policy["remove"]
    # these need no database, which cannot be opened on a full disk
    if policy["stores"]:
        yield from old_stores(settings.data / "store", at - policy["stores"] * DAY, remove)
    if not policy["jobs"] and not policy["workspaces"]:
        return
    with closing(open_database(settings.database_url, settings.data)) as database:
        if policy["jobs"]:
            yield from service_jobs(database, jobs, at - policy["jobs"] * DAY, remove)
            yield from ssh_jobs(jobs, at - policy["jobs"] * DAY, remove)
        if policy["workspaces"]:
            yield from old_workspaces(database, settings.data / "workspaces", at - policy["workspaces"] * DAY, remove)


if __name__ == "__main__":
    gone = list(clean(load_settings(), json.loads(sys.argv[1]), time.time()))
    facts = [(f"{kind} {name}", size) for kind, name, size in gone]
    print(json.dumps([{"check": c, "good": True, "words": f"{n / 1e6:.1f} MB", "bytes": n} for c, n in facts]))
