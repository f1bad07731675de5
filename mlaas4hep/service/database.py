"""The service's database: users, jobs and browser sessions, in SQLite (WAL) or PostgreSQL."""

from __future__ import annotations

import fcntl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import (
    JSON,
    BigInteger,
    Engine,
    ForeignKey,
    Index,
    String,
    UniqueConstraint,
    create_engine,
    event,
    make_url,
)
from sqlalchemy.exc import ArgumentError, OperationalError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from mlaas4hep.errors import MlaasError, UsageError

_BUSY_SECONDS = 60
_IMMEDIATE = "mlaas4hep_immediate"


class Base(DeclarativeBase):
    """All tables."""


class UserRow(Base):
    """Somebody who has been here.

    Attributes:
        key: see `identity.User.key`.
        quota: what the policy allowed the user when last seen, as the fields of `policy.Quota`.
        seen: time of the last submission or upload, ISO 8601.
    """

    __tablename__ = "users"

    key: Mapped[str] = mapped_column(String(32), primary_key=True)
    issuer: Mapped[str] = mapped_column(String(500))
    subject: Mapped[str] = mapped_column(String(500))
    name: Mapped[str] = mapped_column(String(500))
    quota: Mapped[dict[str, Any]] = mapped_column(JSON)
    seen: Mapped[str] = mapped_column(String(40))


class JobRow(Base):
    """A job; this row is the truth about it.

    Attributes:
        id: in the order of submission.
        key: what the user and its folder call it.
        name, number: `name_number` is its process name in the original service.
        model: name that the finished model is published under.
        phase: see `dispatcher`.
        attempt: counts from 1; 0 before the first.
        cancelled: whether the user wants its end.
        bytes: size of its folder, when it has ended.
        version: of the published model, 0 without one.
        request_key, request_digest: the Idempotency-Key of the submission, and what was asked for.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        UniqueConstraint("user_key", "name", "number"),
        UniqueConstraint("user_key", "request_key"),
        Index("jobs_phase", "phase", "user_key", "id"),
        Index("jobs_user", "user_key", "id"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(String(32), unique=True)
    user_key: Mapped[str] = mapped_column(ForeignKey("users.key"))
    name: Mapped[str] = mapped_column(String(64))
    number: Mapped[int]
    model: Mapped[str] = mapped_column(String(80))
    workspace: Mapped[str] = mapped_column(String(64))
    cpus: Mapped[int]
    memory: Mapped[int] = mapped_column(BigInteger)
    gpus: Mapped[int]
    seconds: Mapped[int]
    disk: Mapped[int] = mapped_column(BigInteger)
    network: Mapped[bool]
    phase: Mapped[str] = mapped_column(String(16))
    attempt: Mapped[int] = mapped_column(default=0)
    state: Mapped[str] = mapped_column(String(20))
    reason: Mapped[str] = mapped_column(default="")
    cancelled: Mapped[bool] = mapped_column(default=False)
    submitted: Mapped[str] = mapped_column(String(40))
    started: Mapped[str] = mapped_column(String(40), default="")
    ended: Mapped[str] = mapped_column(String(40), default="")
    bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    version: Mapped[int] = mapped_column(default=0)
    request_key: Mapped[str | None] = mapped_column(String(255))
    request_digest: Mapped[str] = mapped_column(String(64), default="")


class SessionRow(Base):
    """A browser's session (see `login.SessionStore`)."""

    __tablename__ = "sessions"

    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    value: Mapped[str]
    expires: Mapped[int] = mapped_column(BigInteger, index=True)


class Database:
    """Sessions for reading and for writing."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._writer = engine.execution_options(**{_IMMEDIATE: True})
        # one process's writers queue here: SQLite itself would let them poll
        self._turn = threading.Lock() if engine.dialect.name == "sqlite" else nullcontext()

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A transaction that changes nothing."""
        with Session(self.engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that is committed at the end, or undone when an exception leaves it."""
        with self._turn, Session(self._writer, expire_on_commit=False) as session, session.begin():
            yield session

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def open_database(url: str, data: Path) -> Database:
    """Connect, and bring the tables up to date; several processes may do this at once.

    Args:
        url: `sqlite:///PATH` or `postgresql+psycopg://...`.
        data: the service's data folder, where the lock is.

    Raises UsageError for a URL that is none, MlaasError when the database does not answer.
    """
    try:
        parsed = make_url(url)
        if parsed.drivername == "postgresql":
            parsed = parsed.set(drivername="postgresql+psycopg")
        engine = create_engine(parsed, pool_size=10, max_overflow=40, pool_pre_ping=parsed.drivername != "sqlite")
    except (ArgumentError, ImportError, ValueError) as error:
        raise UsageError(
            "The setting database is no URL of SQLite or PostgreSQL.",
            "Write sqlite:///PATH or postgresql://USER@HOST/NAME.",
        ) from error
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    try:
        _migrate(engine, data)
    except OperationalError as error:
        engine.dispose()
        shown = parsed.render_as_string(hide_password=True)
        raise MlaasError(f"The database {shown} does not answer: {str(error.orig).strip()}.") from error
    return Database(engine)


def _prepare_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # transactions are begun by `_begin_sqlite`
    connection.execute(f"PRAGMA busy_timeout = {_BUSY_SECONDS * 1000}")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    # kB, of each of the pool's connections; more would only repeat what the kernel's page cache holds
    connection.execute("PRAGMA cache_size = -512")


def _begin_sqlite(connection: Any) -> None:
    """A writer takes the lock at once: a reader that becomes one could be refused."""
    immediate = connection.get_execution_options().get(_IMMEDIATE)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


def _migrate(engine: Engine, data: Path) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    with (data / "migrate.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
