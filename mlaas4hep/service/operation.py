"""What an administrator's programs ask of the service beside HTTP: its jobs, and copies of its database.

    python -m mlaas4hep.service.operation running [SECONDS]      jobs that run, once none does or after SECONDS, as JSON
    python -m mlaas4hep.service.operation dump FOLDER            a consistent copy of the database, while it is used
    python -m mlaas4hep.service.operation load FOLDER REASON     the copy becomes the database of a stopped service

The settings are those of the service (MLAAS4HEP_CONFIG, by default /etc/mlaas4hep/service.toml). It is run by the
service's account.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from sqlalchemy import make_url, select, update
from sqlalchemy.engine import URL

from mlaas4hep import __version__
from mlaas4hep.errors import MlaasError
from mlaas4hep.service.attempts import held
from mlaas4hep.service.database import JobRow, open_database
from mlaas4hep.service.executor import State
from mlaas4hep.service.jobs import all_jobs, now
from mlaas4hep.service.settings import Settings, load_settings
from mlaas4hep.service.submissions import ENDED, HANDED, HANDING

FACTS = "database.json"
_LOOK_SECONDS = 2.0
_SQLITE = "service.sqlite"
_POSTGRESQL = "service.pgdump"


def running(settings: Settings) -> list[dict[str, str]]:
    """Jobs that run, of the service and of users over SSH: id, user and time of the start, "" when not known."""
    database = open_database(settings.database_url, settings.data)
    with closing(database), database.read() as session:
        rows = session.scalars(select(JobRow).where(JobRow.phase.in_((HANDING, HANDED))).order_by(JobRow.id)).all()
        found = [{"id": row.key, "user": row.user_key, "started": row.started} for row in rows]
    over_ssh = [job for job in all_jobs(settings.data / "jobs") if held(job.folder)]
    return found + [{"id": job.identifier, "user": "", "started": job.submitted} for job in over_ssh]


def wait(settings: Settings, seconds: float) -> list[dict[str, str]]:
    """Wait until no job runs, for at most so many seconds; the jobs that still run."""
    end = time.monotonic() + seconds
    while (found := running(settings)) and time.monotonic() < end:
        time.sleep(min(_LOOK_SECONDS, max(0.0, end - time.monotonic())))
    return found


def dump(settings: Settings, folder: Path) -> dict[str, Any]:
    """Write a consistent copy of the database into a folder, and return facts about it.

    Raises MlaasError when the copy cannot be made or is damaged.
    """
    url = make_url(settings.database_url)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if url.get_backend_name() == "sqlite":
        _copy_sqlite(Path(str(url.database)), folder / _SQLITE)
    else:
        _postgresql("pg_dump", url, ["--format=custom", f"--file={folder / _POSTGRESQL}"])
    facts = {"kind": url.get_backend_name(), "taken": now(), "framework": __version__}
    (folder / FACTS).write_text(json.dumps(facts), encoding="utf-8")
    return facts


def load(settings: Settings, folder: Path, reason: str) -> dict[str, Any]:
    """Put a copy in the place of the database of a stopped service; jobs that ran when it was taken are interrupted.

    Args:
        settings: of the service.
        folder: what `dump` has filled.
        reason: for the users of those jobs.

    Raises MlaasError when there is no copy for this kind of database, or it cannot be put back.
    """
    url = make_url(settings.database_url)
    sqlite = url.get_backend_name() == "sqlite"
    copy = folder / (_SQLITE if sqlite else _POSTGRESQL)
    if not copy.is_file():
        raise MlaasError(f"There is no copy of a {url.get_backend_name()} database in {folder}.")
    if sqlite:
        target = Path(str(url.database))
        for name in ("-wal", "-shm"):
            target.with_name(target.name + name).unlink(missing_ok=True)
        _copy_sqlite(copy, target)
    else:
        words = ["--clean", "--if-exists", "--no-owner", "--single-transaction", f"--dbname={url.database}"]
        _postgresql("pg_restore", url, [*words, str(copy)])
    database = open_database(settings.database_url, settings.data)
    with closing(database), database.write() as session:
        rows = session.scalars(select(JobRow).where(JobRow.phase.in_((HANDING, HANDED)))).all()
        values = {"phase": ENDED, "state": State.INTERRUPTED.value, "reason": reason, "ended": now()}
        session.execute(update(JobRow).where(JobRow.id.in_([row.id for row in rows])).values(**values))
        return {"interrupted": [row.key for row in rows]}


def _copy_sqlite(source: Path, target: Path) -> None:
    """By SQLite itself, so that the copy is one state of the database, whoever writes meanwhile."""
    if not source.is_file():
        raise MlaasError(f"There is no database {source}.")
    incoming = target.with_name(f".{target.name}.incoming")
    incoming.unlink(missing_ok=True)
    try:
        with closing(sqlite3.connect(source)) as one, closing(sqlite3.connect(incoming)) as other:
            one.backup(other)
            said = str(other.execute("PRAGMA integrity_check").fetchone()[0])
    except sqlite3.Error as error:
        raise MlaasError(f"The database {source} cannot be copied: {error}.") from error
    if said != "ok":
        raise MlaasError(f"The database {source} is damaged: {said}.")
    incoming.chmod(0o640)
    incoming.replace(target)


def _postgresql(program: str, url: URL, words: list[str]) -> None:
    """Run one of PostgreSQL's programs; the password is in its environment, never among its arguments."""
    given = {
        "PGHOST": url.host,
        "PGPORT": url.port,
        "PGUSER": url.username,
        "PGPASSWORD": url.password,
        "PGDATABASE": url.database,
        **{f"PG{name.upper()}": value for name, value in url.query.items()},
    }
    environment = {**os.environ, **{name: str(value) for name, value in given.items() if value is not None}}
    if "host" in url.query:
        environment["PGHOST"] = str(url.query["host"])
    try:
        done = subprocess.run(
            [program, "--no-password", *words], env=environment, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise MlaasError(f"There is no program {program}.", "Install the package postgresql-client.") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise MlaasError(f"{program} failed: {last}.")


def main(words: list[str]) -> int:
    """Do what the words say; see the module."""
    try:
        settings = load_settings()
        match words:
            case ["running", *seconds] if len(seconds) <= 1:
                print(json.dumps(wait(settings, float(seconds[0]) if seconds else 0)))
            case ["dump", folder]:
                print(json.dumps(dump(settings, Path(folder))))
            case ["load", folder, reason]:
                print(json.dumps(load(settings, Path(folder), reason)))
            case _:
                print(__doc__, file=sys.stderr)
                return 2
    except MlaasError as error:
        print(f"mlaas4hep: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
