"""Ends all sessions of browsers, so that all log in again, and prints how many. The service's account runs it."""

from contextlib import closing

from sqlalchemy import delete

from mlaas4hep.service.database import SessionRow, open_database
from mlaas4hep.service.settings import load_settings

settings = load_settings()
with closing(open_database(settings.database_url, settings.data)) as database, database.write() as session:
    print(session.execute(delete(SessionRow)).rowcount)
