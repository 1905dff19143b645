"""The last known state of each node."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import Connection, delete, insert, select, update

from ..records import NodeRecord
from .database import Database
from .tables import NODES

_RECORD = TypeAdapter(NodeRecord)


class NodeTable:
    """Records of nodes by their names."""

    def __init__(self, database: Database) -> None:
        self._do = database.do

    async def all(self) -> dict[str, NodeRecord]:
        """Every node's record by name."""
        # What is read is checked by the store's thread too: hundreds of rows at once would hold up the loop.
        return await self._do(lambda c: {row["node_name"]: read(row) for row in c.execute(select(NODES)).mappings()})

    async def save(self, records: Sequence[NodeRecord]) -> None:
        """Write these records, all or none."""
        if records:
            await self._do(lambda c: _replace(c, records))

    async def forget(self, name: str) -> None:
        """Remove a node's record."""
        await self._do(lambda c: c.execute(delete(NODES).where(NODES.c.node_name == name)))


def read(row: Any) -> NodeRecord:
    """A row as a record. Raises ValueError where it is damaged."""
    return _RECORD.validate_python({name: row[name] for name in NodeRecord.__dataclass_fields__})


def _replace(connection: Connection, records: Iterable[NodeRecord]) -> None:
    for record in records:
        values = _RECORD.dump_python(record, mode="json", exclude={"node_name"})
        changed = connection.execute(update(NODES).where(NODES.c.node_name == record.node_name).values(**values))
        if changed.rowcount == 0:
            connection.execute(insert(NODES).values(node_name=record.node_name, **values))
