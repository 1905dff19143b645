"""Where models come from: what the downloads need of it, and the hub, asked by processes that may be ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from llama_orch.base.tokens import Token
from llama_orch.contract.model_ref import HubRef

from ...settings import HiveSettings
from ..hub import question
from ..hub.description import FetchOrder, Question, Resolved
from . import run
from .lines import Progress


class Source(Protocol):
    """What a hive asks for models."""

    async def resolve(self, ref: HubRef) -> Resolved:
        """What a reference means. Raises Failed."""
        ...

    async def fetch(self, model: Resolved, on_progress: Callable[[Progress], None]) -> None:
        """Bring what is missing of a model into the cache. Raises Failed where that cannot be, however often tried."""
        ...


class HubSource:
    """The model hub; each question and each try has a process of its own."""

    def __init__(self, settings: HiveSettings, token: Token | None) -> None:
        self._settings = settings
        self._token = token.reveal() if token else None

    async def resolve(self, ref: HubRef) -> Resolved:
        """What a reference means. Raises Failed."""
        asked = Question(ref=ref, endpoint=self._settings.hub_endpoint, token=self._token)
        return await question.ask(asked, self._settings.models_dir)

    async def fetch(self, model: Resolved, on_progress: Callable[[Progress], None]) -> None:
        """Bring what is missing of a model into the cache. Raises Failed where that cannot be, however often tried."""
        settings = self._settings
        order = FetchOrder(endpoint=settings.hub_endpoint, token=self._token, cache=settings.models_dir, model=model)
        await run.until_ready(
            order, on_progress, attempts=settings.download_attempts, stall_s=settings.download_stall_s
        )
