"""The form of the tables: brought to the present one at each start, by Alembic's migrations (`migrations/`)."""

from __future__ import annotations

import logging
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, make_url
from sqlalchemy.exc import DatabaseError, OperationalError

from .database import DatabaseTaken, engine_for, is_server, reason

# It tells at each start what it looks at.
logging.getLogger("alembic").setLevel(logging.WARNING)
MIGRATIONS = Path(__file__).with_name("migrations")
# Version 0.1.0 wrote 1 and 2 there, and refuses what is more than it knows. Only SQLite has it.
_USER_VERSION = 3


class WrongSchema(Exception):
    """The database was written by a newer version."""

    def __init__(self, found: str) -> None:
        super().__init__(
            f"the queen's database has schema {found}, which this version does not know: install the newer version "
            "again, or restore the database of before"
        )


def upgrade(connection: Connection) -> None:
    """Bring the tables to their present form, wholly or not at all. Raises WrongSchema."""
    if found := _unknown(connection):
        raise WrongSchema(found)
    command.upgrade(_config(connection), "head")
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql(f"PRAGMA user_version = {_USER_VERSION}")


def refusal(url: str | URL) -> str:
    """Why the queen cannot start with this database, and what to do; nothing where she can.

    What is wrong with a file of SQLite's otherwise is seen to when the store is opened.
    """
    url = make_url(url)
    is_file = not is_server(url)
    if is_file and not (url.database and Path(url.database).exists()):
        return ""
    engine = engine_for(url)
    try:
        with engine.connect() as connection:
            found = _unknown(connection)
    except DatabaseTaken as error:
        return f"'database_url': {error}"
    except OperationalError as error:
        where = f"{url.host or 'the local socket'} port {url.port or 5432}"
        return "" if is_file else f"'database_url' names a server at {where} that cannot be used: {reason(error)}"
    except DatabaseError as error:
        return "" if is_file else f"'database_url': {reason(error)}"
    finally:
        engine.dispose()
    return str(WrongSchema(found)) if found else ""


def _unknown(connection: Connection) -> str:
    """The version of a database that a newer version of ours wrote."""
    if connection.dialect.name == "sqlite":
        version = connection.exec_driver_sql("PRAGMA user_version").scalar() or 0
        if version > _USER_VERSION:
            return str(version)
    known = {script.revision for script in ScriptDirectory(str(MIGRATIONS)).walk_revisions()}
    return ", ".join(sorted(set(MigrationContext.configure(connection).get_current_heads()) - known))


def _config(connection: Connection) -> Config:
    config = Config(attributes={"connection": connection})
    # The option is read as a template.
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    return config
