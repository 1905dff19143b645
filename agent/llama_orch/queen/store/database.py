"""One database and the one thread that reads and writes it: the event loop never waits for a disk."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, Engine, Insert, Table, create_engine, event, make_url
from sqlalchemy.dialects import postgresql, sqlite

T = TypeVar("T")
CONNECT_S = 10


class Database:
    """SQLite or PostgreSQL, by its URL."""

    def __init__(self, url: str | URL) -> None:
        self.engine = engine_for(make_url(url))
        self._thread = ThreadPoolExecutor(1, "store")

    async def do(self, work: Callable[[Connection], T]) -> T:
        """What `work` answers, in a transaction of its own. Raises what it raises, and SQLAlchemy's errors."""

        def in_transaction() -> T:
            with self.engine.begin() as connection:
                return work(connection)

        return await asyncio.get_running_loop().run_in_executor(self._thread, in_transaction)

    async def close(self) -> None:
        """Finish what is being written."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self.engine.dispose)
        self._thread.shutdown(wait=False)


def engine_for(url: URL) -> Engine:
    """An engine with what our tables need of each kind of database."""
    compact = functools.partial(json.dumps, separators=(",", ":"))
    if url.get_backend_name() == "postgresql":
        # A server that was restarted has closed its connections: each is tried before it is used.
        return create_engine(
            url,
            json_serializer=compact,
            pool_size=1,
            max_overflow=0,
            pool_pre_ping=True,
            connect_args={"connect_timeout": CONNECT_S, "application_name": "llama-orch-queen"},
        )
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


def insert_new(connection: Connection, table: Table) -> Insert:
    """An INSERT that leaves rows alone whose key is there already."""
    if connection.dialect.name == "postgresql":
        return postgresql.insert(table).on_conflict_do_nothing()
    return sqlite.insert(table).on_conflict_do_nothing()
