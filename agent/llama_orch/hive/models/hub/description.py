"""A model as the hub has it, in our own words: what the agent keeps without the hub's library (`hub.py`).

Names and hashes become paths below the cache, so each is checked here, whether the hub said it or a record on the disk.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, Field, StringConstraints

from llama_orch.contract import patterns
from llama_orch.contract.model_ref import HubRef

MOST_FILES = 1000
LONGEST_QUESTION_S = 60
_MOST_BYTES = 2**50


def _no_parent(text: str) -> str:
    if ".." in text:
        raise ValueError("must not hold '..'")
    return text


FileName = Annotated[patterns.GgufFilename, AfterValidator(_no_parent)]
Hash = Annotated[str, StringConstraints(pattern=r"^(?:[0-9a-f]{40}|[0-9a-f]{64})$")]
Commit = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")]
Repo = Annotated[str, StringConstraints(pattern=patterns.HF_REPO), AfterValidator(_no_parent)]
Revision = Annotated[str, StringConstraints(pattern=patterns.HF_REVISION), AfterValidator(_no_parent)]
_FILE_NAME = re.compile(patterns.GGUF_FILE)


def is_file_name(name: str) -> bool:
    """Whether a file of that name is one that a model may have."""
    return len(name) <= 255 and ".." not in name and _FILE_NAME.fullmatch(name) is not None and patterns.names_fit(name)


class HubFile(BaseModel):
    """One file of a commit. `etag` is its sha256 where the hub keeps large files apart, else its git hash."""

    name: FileName
    size: int = Field(ge=0, le=_MOST_BYTES)
    etag: Hash


class Resolved(BaseModel):
    """A reference as the hub understood it: one commit and the files of one model."""

    repo: Repo
    revision: Revision
    commit: Commit
    filename: FileName
    files: list[HubFile] = Field(min_length=1, max_length=MOST_FILES)
    chosen_because: str | None = Field(default=None, max_length=4096)

    @property
    def size_bytes(self) -> int:
        """All parts together."""
        return sum(file.size for file in self.files)

    @property
    def sha256(self) -> str | None:
        """The hash of a model in one file."""
        return self.files[0].etag if len(self.files) == 1 and len(self.files[0].etag) == 64 else None


class Question(BaseModel):
    """What a process that asks the hub is to find out: what a reference means."""

    ref: HubRef
    endpoint: str
    token: str | None


class Found(BaseModel):
    """What that process answers."""

    model: Resolved


class FetchOrder(BaseModel):
    """What a download's process is to do."""

    endpoint: str
    token: str | None
    cache: Path
    model: Resolved
