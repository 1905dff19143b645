"""A download as it is kept on the disk, so that the next start of the agent goes on with it."""

from __future__ import annotations

import contextlib
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, StringConstraints, ValidationError

from llama_orch.base import files
from llama_orch.contract.common import Problem
from llama_orch.contract.hive import DownloadStatus, Origin
from llama_orch.contract.patterns import IDENTIFIER

from ..hub.description import Resolved

log = logging.getLogger(__name__)
OPEN = frozenset({DownloadStatus.QUEUED, DownloadStatus.DOWNLOADING, DownloadStatus.VERIFYING})
KEEP_ENDED = 100
# What a record is called that cannot be read, and how many of them are kept to be looked at.
DAMAGED = ".damaged"
DAMAGED_KEPT = 20


class DownloadRecord(BaseModel):
    """One download. `asked_filename` is what the user named; `file_path` stands for a model that was there already.

    `for_workers` marks one that only a spawn wanted: it ends with the last worker that waits for it.
    """

    download_id: Annotated[str, StringConstraints(pattern=IDENTIFIER)]
    model_ref: str
    asked_filename: str | None
    model: Resolved | None = None
    file_path: str | None = None
    size_bytes: int | None = None
    status: DownloadStatus = DownloadStatus.QUEUED
    origin: Origin = "rest"
    for_workers: bool = False
    error: Problem | None = None
    started_at: datetime
    ended_at: datetime | None = None

    @property
    def filename(self) -> str:
        """The model's file, or its first part."""
        return self.model.filename if self.model else Path(self.file_path or "").name

    @property
    def is_open(self) -> bool:
        """Whether it still goes on."""
        return self.status in OPEN


class DownloadRecords:
    """The records' folder."""

    def __init__(self, folder: Path) -> None:
        self.damaged = 0
        self._folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def load(self) -> list[DownloadRecord]:
        """All records that can be read, oldest first; the others are set aside, and counted in `damaged`."""
        files.sweep(self._folder, files.begun("*"))
        records: list[DownloadRecord] = []
        for path in self._folder.glob("*.json"):
            try:
                record = DownloadRecord.model_validate_json(files.read_bytes(path))
            except (OSError, ValidationError):
                record = None
            if record is not None and record.download_id == path.stem:
                records.append(record)
            else:
                self._set_aside(path)
        return sorted(records, key=lambda record: record.started_at)

    def _set_aside(self, path: Path) -> None:
        self.damaged += 1
        aside = path.with_name(path.name + DAMAGED)
        log.error("the record %s of a download is damaged, and set aside as %s", path.name, aside.name)
        with contextlib.suppress(OSError):
            path.replace(aside)
            for old in sorted(self._folder.glob("*" + DAMAGED), key=_changed_at)[:-DAMAGED_KEPT]:
                old.unlink(missing_ok=True)

    def save(self, record: DownloadRecord) -> None:
        """Write one record. Raises OSError."""
        self.write(record.download_id, record.model_dump_json())

    def write(self, download_id: str, text: str) -> None:
        """Write one record that is JSON already. Raises OSError."""
        files.write_text(self._folder / f"{download_id}.json", text)

    def remove(self, download_id: str) -> None:
        """Forget one record."""
        (self._folder / f"{download_id}.json").unlink(missing_ok=True)


def _changed_at(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except OSError:
        return 0.0


def now() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)
