"""The service's database as PostgreSQL."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import pytest
from sqlalchemy import delete, func, inspect, select, update

from mlaas4hep.errors import MlaasError
from mlaas4hep.service.arrangement import Submission
from mlaas4hep.service.database import Base, JobRow, open_database
from mlaas4hep.service.identity import Role, User
from mlaas4hep.service.operation import dump, load
from mlaas4hep.service.sessions import DatabaseSessions
from mlaas4hep.service.settings import JobSettings
from mlaas4hep.service.submissions import HANDED
from tests.debian import do_without, lacking
from tests.unit.mlaas4hep.service_parts import WORKFLOW, Processes, Running, ended, running, submit, tar_gz, upload


@pytest.fixture(scope="module")
def server() -> Iterator[Path]:
    """The folder of the socket of a PostgreSQL server, whose superuser is `postgres`."""
    if reason := lacking({"pg_lsclusters": "postgresql"}):
        do_without(reason)
    [*_, programs] = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    # the server does not run as root, so its folder must be where others may go
    with tempfile.TemporaryDirectory(prefix="mlaas4hep-postgresql-", dir="/tmp") as name:
        folder = Path(name)
        shutil.chown(folder, "postgres", "postgres")
        as_postgres = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        words = [*as_postgres, f"{programs}/initdb", "-D", f"{folder}/data", "-U", "postgres", "-A", "trust", "-N"]
        subprocess.run(words, check=True, capture_output=True, cwd="/")
        options = f"-k {folder} -c listen_addresses='' -c fsync=off -c max_connections=200"
        control = [*as_postgres, f"{programs}/pg_ctl", "-D", f"{folder}/data", "-w"]
        subprocess.run(
            [*control, "-l", f"{folder}/log", "-o", options, "start"], check=True, capture_output=True, cwd="/"
        )
        try:
            yield folder
        finally:
            subprocess.run([*control, "-m", "immediate", "stop"], check=True, capture_output=True, cwd="/")


@pytest.fixture
def url(server: Path) -> str:
    """An empty database."""
    name = f"service{uuid.uuid4().hex}"
    subprocess.run(
        ["psql", "-h", server, "-U", "postgres", "-c", f"CREATE DATABASE {name}"], check=True, capture_output=True
    )
    return f"postgresql://postgres@/{name}?host={server}"


def test_migrations_make_what_the_tables_say(url: str, tmp_path: Path):
    with ThreadPoolExecutor(4) as pool:
        databases = list(pool.map(lambda _: open_database(url, tmp_path), range(4)))
    for one in (databases[0], open_database(f"sqlite:///{tmp_path / 'x.sqlite'}", tmp_path)):
        found = inspect(one.engine)
        for table in Base.metadata.sorted_tables:
            columns = {column["name"]: column["nullable"] for column in found.get_columns(table.name)}
            assert columns == {column.name: column.nullable for column in table.columns}
            indexes = {index["name"] for index in found.get_indexes(table.name)}
            assert {index.name for index in table.indexes} <= indexes
        one.close()
    for database in databases:
        database.close()


def test_jobs_are_trained_and_listed(url: str, tmp_path: Path):
    with running(tmp_path, database=url) as service:
        client = service.client()
        upload(client)
        keys = [submit(client)["id"] for _ in range(3)]
        assert [ended(client, key)["state"] for key in keys] == ["finished"] * 3
        assert [job["process_name"] for job in client.get("/api/v1/jobs").json()["jobs"]] == [
            "higgs_3",
            "higgs_2",
            "higgs_1",
        ]
        assert client.post(f"/api/v1/jobs/{keys[0]}/cancel").json()["state"] == "finished"
        assert client.delete(f"/api/v1/jobs/{keys[0]}").status_code == 204


def test_concurrent_submissions_are_neither_lost_nor_doubled(url: str, tmp_path: Path):
    service = Running(tmp_path, Processes("true"), database=url, jobs=JobSettings(cpus=10, memory=2**50))
    parts = service.service
    users = [User("i", f"user{number}", roles=frozenset({Role.SUBMIT})) for number in range(10)]
    for user in users:
        parts.workspaces.replace(user.key, "w", BytesIO(tar_gz(WORKFLOW)), lambda _: 2**40)

    def give(number: int) -> str:
        # every submission is sent twice at once
        user = users[number // 2 % 10]
        return parts.submissions.submit(user, Submission(workspace="w"), f"key{number // 2}").key

    with ThreadPoolExecutor(24) as pool:
        keys = list(pool.map(give, range(400)))
    assert set(Counter(keys).values()) == {2}
    assert len(list((service.settings.data / "jobs").iterdir())) == 200
    with parts.database.read() as session:
        per_user = session.execute(
            select(JobRow.user_key, func.count(), func.max(JobRow.number)).group_by(JobRow.user_key)
        )
        assert {tuple(row)[1:] for row in per_user} == {(20, 20)}
    parts.dispatcher.step()
    assert len(service.executor.started) == 10
    service.executor.end()
    parts.dispatcher.stop()
    parts.database.close()


async def _sessions(store: DatabaseSessions) -> None:
    await store.put("key", "value", 2**33)
    await store.put("old", "value", 1.0)
    await store.put("key", "other", 2**33)
    assert await store.get("key") == "other"
    assert await store.get("old") is None
    await store.delete("key")
    await store.delete("key")
    assert await store.get("key") is None


def test_sessions_are_kept_until_they_expire(url: str, tmp_path: Path):
    import asyncio

    for database in (open_database(url, tmp_path), open_database(f"sqlite:///{tmp_path / 'x.sqlite'}", tmp_path)):
        asyncio.run(_sessions(DatabaseSessions(database)))
        database.close()


def test_a_database_that_does_not_answer_is_told_without_its_password(tmp_path: Path):
    with pytest.raises(MlaasError, match="does not answer") as failed:
        open_database(f"postgresql://me:secret@/x?host={tmp_path}", tmp_path)
    assert "secret" not in str(failed.value)
    with pytest.raises(MlaasError, match="no URL"):
        open_database("nothing at all", tmp_path)


def test_a_copy_is_one_state_of_the_database_and_is_put_back_with_its_jobs_interrupted(url: str, tmp_path: Path):
    service = Running(tmp_path, Processes("sleep 600"), database=url)
    alice = User("i", "alice", roles=frozenset({Role.SUBMIT}))
    service.service.workspaces.replace(alice.key, "w", BytesIO(tar_gz(WORKFLOW)), lambda _: 2**40)
    first, second = (service.service.submissions.submit(alice, Submission(workspace="w")).key for _ in range(2))
    with service.service.database.write() as session:
        session.execute(update(JobRow).where(JobRow.key == first).values(phase=HANDED, state="running", attempt=1))
    assert dump(service.settings, tmp_path / "copy")["kind"] == "postgresql"
    with service.service.database.write() as session:
        session.execute(delete(JobRow))
    service.service.dispatcher.stop()
    service.service.database.close()
    assert load(service.settings, tmp_path / "copy", "Restored.") == {"interrupted": [first]}
    database = open_database(url, tmp_path)
    with database.read() as session:
        rows = session.execute(select(JobRow.key, JobRow.state, JobRow.reason).order_by(JobRow.id)).all()
    database.close()
    assert [tuple(row) for row in rows] == [(first, "interrupted", "Restored."), (second, "queued", "")]
    with pytest.raises(MlaasError, match="no copy of a postgresql database"):
        load(service.settings, tmp_path, "")
