"""The tables of version 0.1.0, which wrote no version of Alembic's: what is there already is kept."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None

_TIME = sa.String().with_variant(postgresql.VARCHAR(collation="C"), "postgresql")
_OPEN = sa.text("status IN ('queued', 'running', 'cancelling')")


def upgrade() -> None:
    """Make what is missing."""
    inspector = sa.inspect(op.get_bind())
    there = set(inspector.get_table_names())
    for name, columns in _tables().items():
        if name not in there:
            op.create_table(name, *columns)
    if "jobs" not in there:
        op.create_index(
            "one_open_job_per_node",
            "jobs",
            ["node_name"],
            unique=True,
            sqlite_where=_OPEN,
            postgresql_where=_OPEN,
        )
        return
    # The first databases of 0.1.0 had no remedies; a crash between two columns left some of them.
    has = {column["name"] for column in inspector.get_columns("jobs")}
    for name in ("remedy", "gpu", "condition"):
        if name not in has:
            op.add_column("jobs", sa.Column(name, sa.String))


def _tables() -> dict[str, list[sa.Column[object]]]:
    return {
        "nodes_state": [
            sa.Column("node_name", sa.String, primary_key=True),
            sa.Column("status", sa.String, nullable=False),
            sa.Column("job_id", sa.String),
            sa.Column("last_seen", _TIME),
            sa.Column("last_error", sa.JSON),
            sa.Column("hive", sa.JSON),
            sa.Column("changed_at", _TIME),
        ],
        "jobs": [
            sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
            sa.Column("job_id", sa.String, nullable=False, unique=True),
            sa.Column("kind", sa.String, nullable=False),
            sa.Column("node_name", sa.String, nullable=False),
            sa.Column("status", sa.String, nullable=False),
            sa.Column("percentage", sa.Float, nullable=False),
            sa.Column("created_at", _TIME, nullable=False),
            sa.Column("started_at", _TIME),
            sa.Column("ended_at", _TIME),
            sa.Column("error", sa.JSON),
            sa.Column("correlation_id", sa.String, nullable=False),
            sa.Column("force", sa.Integer, nullable=False),
            sa.Column("had_password", sa.Integer, nullable=False),
            sa.Column("remedy", sa.String),
            sa.Column("gpu", sa.String),
            sa.Column("condition", sa.String),
        ],
        "job_events": [
            sa.Column("job_id", sa.String, primary_key=True),
            sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
            sa.Column("event", sa.JSON, nullable=False),
        ],
        "audit": [
            sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
            sa.Column("at", _TIME, nullable=False),
            sa.Column("action", sa.String, nullable=False),
            sa.Column("subject", sa.String, nullable=False),
            sa.Column("correlation_id", sa.String, nullable=False),
            sa.Column("details", sa.JSON),
        ],
        "learnt_tasks": [
            sa.Column("playbook", sa.String, primary_key=True),
            sa.Column("tasks", sa.Integer, nullable=False),
        ],
    }
