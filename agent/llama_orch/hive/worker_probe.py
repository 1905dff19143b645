"""Asks a worker how it is, over HTTP; what does not answer in time is no error but an answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import ValidationError

from llama_orch.contract.inference import WorkerHealth
from llama_orch.contract.operations import WORKER_HEALTH

from .settings import HiveSettings

if TYPE_CHECKING:
    import aiohttp

TIMEOUT_S = 2.0
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  compared, not bound


def load() -> None:
    """Import what a question needs. It takes long: to be called in a thread, before the first one."""
    import aiohttp  # noqa: F401, PLC0415

    from llama_orch.client import bounded  # noqa: F401, PLC0415


class Probe:
    """Knows where workers listen."""

    def __init__(self, settings: HiveSettings) -> None:
        self._local = _host(_WILDCARDS.get(settings.host, settings.host))
        self._advertised = _host(settings.worker_address())
        self._session: aiohttp.ClientSession | None = None

    def url(self, port: int) -> str:
        """A worker's address for others."""
        return f"http://{self._advertised}:{port}"

    async def health(self, worker_id: str, port: int) -> WorkerHealth | None:
        """What the worker says; None where it does not answer, or somebody else does on its port."""
        # A third of what an agent's start would cost, and before its first worker it asks nobody.
        import aiohttp  # noqa: PLC0415

        from llama_orch.client.bounded import read_whole  # noqa: PLC0415

        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=TIMEOUT_S), connector=aiohttp.TCPConnector(limit=0)
            )
        try:
            async with self._session.get(f"http://{self._local}:{port}{WORKER_HEALTH.path}") as answer:
                health = WorkerHealth.model_validate_json(await read_whole(answer, 64 * 1024))
        except (aiohttp.ClientError, TimeoutError, OSError, ValidationError):
            return None
        return health if health.worker_id == worker_id else None

    async def close(self) -> None:
        """Close its connections."""
        if self._session is not None:
            await self._session.close()


def _host(address: str) -> str:
    return f"[{address}]" if ":" in address else address
