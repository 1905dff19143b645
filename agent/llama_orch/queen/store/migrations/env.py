"""How Alembic reaches the database: by the connection of `schema.upgrade`, and within its transaction."""

from __future__ import annotations

from alembic import context

from llama_orch.queen.store.tables import METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA)
with context.begin_transaction():
    context.run_migrations()
