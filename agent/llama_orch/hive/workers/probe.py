"""Asks a worker how it is, over HTTP; what does not answer in time is no error but an answer."""

from __future__ import annotations

import asyncio
import importlib
from typing import TYPE_CHECKING, Protocol

from llama_orch.contract.errors import ApiError
from llama_orch.contract.inference import WorkerHealth

from ..settings import HiveSettings

if TYPE_CHECKING:
    import aiohttp

TIMEOUT_S = 2.0
MOST_BYTES = 64 * 1024
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  compared, not bound


class Probe(Protocol):
    """What the hive asks of workers, each by its id and port."""

    def url(self, port: int) -> str:
        """A worker's address for others."""
        ...

    async def load(self) -> None:
        """Get ready for questions; to be called before the first one, and more than once does no harm."""
        ...

    async def health(self, worker_id: str, port: int) -> WorkerHealth | None:
        """What the worker says; None where it does not answer, or somebody else does on its port."""
        ...

    async def close(self) -> None:
        """Close all connections."""
        ...


class HttpProbe:
    """Asks over HTTP; knows where workers listen."""

    def __init__(self, settings: HiveSettings) -> None:
        self._local = _host(_WILDCARDS.get(settings.host, settings.host))
        self._advertised = _host(settings.worker_address())
        self._session: aiohttp.ClientSession | None = None

    def url(self, port: int) -> str:
        """A worker's address for others."""
        return f"http://{self._advertised}:{port}"

    async def load(self) -> None:
        """Import what a question needs: it takes long, and is done in a thread."""
        await asyncio.to_thread(importlib.import_module, "llama_orch.client.worker")

    async def health(self, worker_id: str, port: int) -> WorkerHealth | None:
        """What the worker says; None where it does not answer, or somebody else does on its port."""
        # A third of what an agent's start would cost, and before its first worker it asks nobody.
        import aiohttp  # noqa: PLC0415

        from llama_orch.client.worker import Worker  # noqa: PLC0415

        if self._session is None:
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        url = f"http://{self._local}:{port}"
        worker = Worker(url, timeout=TIMEOUT_S, most_bytes=MOST_BYTES, session=self._session)
        try:
            health = await worker.health()
        except ApiError:
            return None
        return health if health.worker_id == worker_id else None

    async def close(self) -> None:
        """Close its connections."""
        if self._session is not None:
            await self._session.close()


def _host(address: str) -> str:
    return f"[{address}]" if ":" in address else address
