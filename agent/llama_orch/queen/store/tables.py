"""The queen's own tables. Times are RFC 3339 text in UTC, so that they sort as they read."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import JSON, Column, Float, Index, Integer, MetaData, String, Table, text
from sqlalchemy.dialects import postgresql

METADATA = MetaData()
# PostgreSQL sorts text as a language does, and looks past the signs in a time at first.
TIME = String().with_variant(postgresql.VARCHAR(collation="C"), "postgresql")

NODES = Table(
    "nodes_state",
    METADATA,
    Column("node_name", String, primary_key=True),
    Column("status", String, nullable=False),
    Column("job_id", String),
    Column("last_seen", TIME),
    Column("last_error", JSON),
    Column("hive", JSON),
    Column("changed_at", TIME),
)

JOBS = Table(
    "jobs",
    METADATA,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("job_id", String, nullable=False, unique=True),
    Column("kind", String, nullable=False),
    Column("node_name", String, nullable=False),
    Column("status", String, nullable=False),
    Column("percentage", Float, nullable=False, default=0.0),
    Column("created_at", TIME, nullable=False),
    Column("started_at", TIME),
    Column("ended_at", TIME),
    Column("error", JSON),
    Column("correlation_id", String, nullable=False),
    Column("force", Integer, nullable=False, default=0),
    Column("had_password", Integer, nullable=False, default=0),
    Column("remedy", String),
    Column("gpu", String),
    Column("condition", String),
)
# The rule that two jobs never work on one host at once is the database's, not the code's.
Index(
    "one_open_job_per_node",
    JOBS.c.node_name,
    unique=True,
    sqlite_where=text("status IN ('queued', 'running', 'cancelling')"),
    postgresql_where=text("status IN ('queued', 'running', 'cancelling')"),
)

JOB_EVENTS = Table(
    "job_events",
    METADATA,
    Column("job_id", String, primary_key=True),
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("event", JSON, nullable=False),
)

AUDIT = Table(
    "audit",
    METADATA,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("at", TIME, nullable=False),
    Column("action", String, nullable=False),
    Column("subject", String, nullable=False),
    Column("correlation_id", String, nullable=False),
    Column("details", JSON),
    Column("principal", String),
    Column("address", String),
)

LEARNT = Table(
    "learnt_tasks",
    METADATA,
    Column("playbook", String, primary_key=True),
    Column("tasks", Integer, nullable=False),
)


def now() -> str:
    """This moment, as the tables have it."""
    return datetime.now(UTC).isoformat()
