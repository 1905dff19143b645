"""A model as the hub has it, in our own words: what the agent keeps without the hub's library (`hub.py`)."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel


class HubFile(BaseModel):
    """One file of a commit. `etag` is its sha256 where the hub keeps large files apart, else its git hash."""

    name: str
    size: int
    etag: str


class Resolved(BaseModel):
    """A reference as the hub understood it: one commit and the files of one model."""

    repo: str
    revision: str
    commit: str
    filename: str
    files: list[HubFile]
    chosen_because: str | None = None

    @property
    def size_bytes(self) -> int:
        """All parts together."""
        return sum(file.size for file in self.files)

    @property
    def sha256(self) -> str | None:
        """The hash of a model in one file."""
        return self.files[0].etag if len(self.files) == 1 and len(self.files[0].etag) == 64 else None


class FetchJob(BaseModel):
    """What a download's process is to do."""

    endpoint: str
    token: str | None
    cache: Path
    model: Resolved
