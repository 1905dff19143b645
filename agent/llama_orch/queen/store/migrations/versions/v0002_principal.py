"""The audit trail says who asked, and from where."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Null in what was noted before."""
    for name in ("principal", "address"):
        op.add_column("audit", sa.Column(name, sa.String))
