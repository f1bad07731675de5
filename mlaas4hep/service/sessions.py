"""Browsers' sessions in the database."""

from __future__ import annotations

import asyncio
import time

from sqlalchemy import ColumnElement, delete, select

from mlaas4hep.service.database import Database, SessionRow


class DatabaseSessions:
    """The `SessionStore` of `login`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def put(self, key: str, value: str, expires: float) -> None:
        """Keep a value until a time in seconds since 1970; what has expired is forgotten."""
        await asyncio.to_thread(self._put, SessionRow(key=key, value=value, expires=int(expires)))

    async def get(self, key: str) -> str | None:
        """The value; None when it is unknown or has expired."""
        return await asyncio.to_thread(self._get, key)

    async def delete(self, key: str) -> None:
        """Forget a value."""
        await asyncio.to_thread(self._delete, SessionRow.key == key)

    def _put(self, row: SessionRow) -> None:
        self._delete(SessionRow.expires <= int(time.time()))
        with self._database.write() as session:
            session.merge(row)

    def _get(self, key: str) -> str | None:
        chosen = (SessionRow.key == key, SessionRow.expires > int(time.time()))
        with self._database.read() as session:
            return session.scalar(select(SessionRow.value).where(*chosen))

    def _delete(self, chosen: ColumnElement[bool]) -> None:
        with self._database.write() as session:
            session.execute(delete(SessionRow).where(chosen))
