"""A download in the running agent."""

from __future__ import annotations

import asyncio
import time

from llama_orch.contract.hive import Download as DownloadView
from llama_orch.contract.hive import DownloadStatus

from .pace import Pace
from .records import DownloadRecord


class Download:
    """A download in this process: its record, its pace and, while it goes on, its task."""

    def __init__(self, record: DownloadRecord) -> None:
        self.record = record
        self.pace = Pace()
        self.ended = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self.cancelling: asyncio.Task[None] | None = None
        if not record.is_open:
            self.ended.set()

    @property
    def goes_on(self) -> bool:
        """Whether it may still become ready."""
        return self.record.is_open and self.cancelling is None

    @property
    def ready(self) -> bool:
        """Whether the model can be used."""
        return self.record.status is DownloadStatus.READY

    def view(self) -> DownloadView:
        """The download as the API shows it."""
        record = self.record
        total = record.model.size_bytes if record.model else record.size_bytes
        done = (total or 0) if self.ready else self.pace.done
        return DownloadView(
            download_id=record.download_id,
            model_ref=record.model_ref,
            filename=record.filename,
            status=record.status,
            bytes_done=done,
            bytes_total=total,
            bytes_per_second=round(self.pace.bytes_per_second(time.monotonic()), 1) if record.is_open else 0.0,
            percentage=round(100.0 * done / total, 1) if total else (100.0 if self.ready else 0.0),
            error=record.error,
            chosen_because=record.model.chosen_because if record.model else None,
            origin=record.origin,
            started_at=record.started_at,
            ended_at=record.ended_at,
        )
