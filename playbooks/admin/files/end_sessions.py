"""Prints how many sessions of browsers there are, and with `end` ends them, so that all log in again.

The service's account runs it.
"""

import sys
from contextlib import closing

from sqlalchemy import delete, func, select

from mlaas4hep.service.database import SessionRow, open_database
from mlaas4hep.service.settings import load_settings

settings = load_settings()
with closing(open_database(settings.database_url, settings.data)) as database, database.write() as session:
    if sys.argv[1] == "end":
        print(session.execute(delete(SessionRow)).rowcount)
    else:
        print(session.scalar(select(func.count()).select_from(SessionRow)))
