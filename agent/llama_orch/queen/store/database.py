"""One database and the one thread that reads and writes it: the event loop never waits for a disk."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import psycopg
from sqlalchemy import URL, Connection, Engine, Insert, Table, create_engine, event, make_url
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, InterfaceError, OperationalError

from llama_orch.contract.common import Problem
from llama_orch.contract.errors import NotReady

T = TypeVar("T")
# The queen finds out so soon that a server is gone whose machine or line is: libpq and TCP wait for minutes or hours.
# https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS
_PATIENCE = {
    "connect_timeout": "10",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "4",
    "tcp_user_timeout": "30000",
}
# Of PostgreSQL's advisory locks, which belong to a database: the one of a queen. Its digits mean nothing.
_LOCK = 7_310_460_281
# A server that was just told that a queen is gone may need a moment to let go.
_LOCK_WAIT_MS = 2000
# A server finds out within half a minute that a queen is gone whose machine or line is. Of ours no statement takes long
# but one that waits for somebody else's lock.
_OPTIONS = " ".join(
    f"-c {option}"
    for option in (
        "tcp_keepalives_idle=10",
        "tcp_keepalives_interval=5",
        "tcp_keepalives_count=4",
        "statement_timeout=60000",
    )
)


class DatabaseTaken(Exception):
    """Another queen works with this database: two would run every job twice."""

    def __init__(self) -> None:
        super().__init__(
            "another queen works with this database, or did until less than half a minute ago: stop it, or give this "
            "one another database"
        )


class Database:
    """SQLite or PostgreSQL, by its URL."""

    def __init__(self, url: str | URL) -> None:
        self.engine = engine_for(make_url(url))
        self._thread = ThreadPoolExecutor(1, "store")
        # Why a server did not do what it was last asked for.
        self.problem: Problem | None = None

    async def do(self, work: Callable[[Connection], T]) -> T:
        """What `work` answers, in a transaction of its own. Raises what it raises, and SQLAlchemy's errors.

        A server that does not answer is NotReady: who asked may ask again.
        """

        def in_transaction() -> T:
            with self.engine.begin() as connection:
                return work(connection)

        try:
            answer = await asyncio.get_running_loop().run_in_executor(self._thread, in_transaction)
        except (OperationalError, InterfaceError, DatabaseTaken) as error:
            if not is_server(self.engine.url):
                raise
            self.problem = _unavailable(error)
            raise NotReady(f"{self.problem.message}; it is asked again", code=self.problem.code) from error
        self.problem = None
        return answer

    async def close(self) -> None:
        """Finish what is being written."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self.engine.dispose)
        self._thread.shutdown(wait=False)


def is_server(url: URL) -> bool:
    """Whether it is a server's, and no file."""
    return url.get_backend_name() == "postgresql"


def located(url: str, password: str | None = None) -> URL:
    """Where a database is, with the password that stands apart from it; it shows in no text of the URL.

    Raises ValueError where it is no URL.
    """
    try:
        found = make_url(url)
    except (ArgumentError, ValueError):
        raise ValueError("is no URL of a database: postgresql+psycopg://USER@HOST:PORT/NAME is one") from None
    if is_server(found):
        # What somebody gave in the URL counts.
        found = found.set(query={**_PATIENCE, **found.query})
    return found if password is None else found.set(password=password)


def engine_for(url: URL) -> Engine:
    """An engine with what our tables need of each kind of database."""
    compact = functools.partial(json.dumps, separators=(",", ":"))
    if is_server(url):
        # A server that was restarted has closed its connections: each is tried before it is used.
        engine = create_engine(
            url,
            json_serializer=compact,
            pool_size=1,
            max_overflow=0,
            pool_pre_ping=True,
            connect_args={"application_name": "llama-orch-queen", "options": _OPTIONS},
        )

        @event.listens_for(engine, "connect")
        def take_lock(connection: Any, _record: Any) -> None:
            # It is the session's: it goes with this one connection, and comes with the next one.
            try:
                connection.execute(f"SET LOCAL lock_timeout = {_LOCK_WAIT_MS}")
                connection.execute("SELECT pg_advisory_lock(%s)", (_LOCK,))
            except psycopg.errors.LockNotAvailable:
                connection.close()
                raise DatabaseTaken from None
            connection.commit()

        return engine
    engine = create_engine(url, json_serializer=compact)

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: Any) -> None:
        # Python's driver would begin a transaction at the first change of data only, and so commit each change of a
        # table by itself: https://docs.sqlalchemy.org/en/21/dialects/sqlite.html#pysqlite-serializable
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=10000"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    return engine


def reason(error: Exception) -> str:
    """The first line of what the server or its driver says; neither tells a password."""
    said = str(getattr(error, "orig", None) or error).strip()
    return (said.splitlines() or ["no reason given"])[0]


def _unavailable(error: Exception) -> Problem:
    return Problem(
        code="database_unavailable",
        message=f"the queen's database does not answer: {reason(error)}",
        what_to_do="start the server that database_url names, or mend the way to it; jobs wait and then go on",
    )


def insert_new(connection: Connection, table: Table) -> Insert:
    """An INSERT that leaves rows alone whose key is there already."""
    if is_server(connection.engine.url):
        return postgresql.insert(table).on_conflict_do_nothing()
    return sqlite.insert(table).on_conflict_do_nothing()
