"""What the hub for tests holds: files, the commits of repositories, its faults, and what it was asked."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHUNK = 64 * 1024
_LFS_FROM = 10_000_000


@dataclass(frozen=True)
class HubFile:
    """One file of a commit; content is in memory or read from the disk at each request."""

    name: str
    content: bytes | Path
    size: int
    sha256: str
    blob_id: str

    @classmethod
    def of(cls, name: str, content: bytes | Path) -> HubFile:
        size = content.stat().st_size if isinstance(content, Path) else len(content)
        sha256, blob = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        for chunk in chunks(content, 0, size):
            sha256.update(chunk)
            blob.update(chunk)
        return cls(name, content, size, sha256.hexdigest(), blob.hexdigest())

    @property
    def is_lfs(self) -> bool:
        return self.name.endswith(".gguf") or self.size >= _LFS_FROM

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_lfs else self.blob_id

    def sibling(self, *, blobs: bool) -> dict[str, Any]:
        """Word the file as it stands in a model's `siblings`."""
        if not blobs:
            return {"rfilename": self.name}
        lfs = {"lfs": {"sha256": self.sha256, "size": self.size, "pointerSize": 134}} if self.is_lfs else {}
        return {"rfilename": self.name, "size": self.size, "blobId": self.blob_id, **lfs}

    def entry(self) -> dict[str, Any]:
        """Word the file as it stands in a tree listing, where the hash has another name."""
        lfs = {"lfs": {"oid": self.sha256, "size": self.size, "pointerSize": 134}} if self.is_lfs else {}
        return {"type": "file", "path": self.name, "size": self.size, "oid": self.blob_id, **lfs}


@dataclass
class Repo:
    """A model repository: its commits, and which of them each branch or tag is."""

    name: str
    gated: bool = False
    private: bool = False
    revisions: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, HubFile]] = field(default_factory=dict)

    def add_commit(self, files: Mapping[str, bytes | Path], revision: str) -> str:
        """Add a commit with exactly these files, point `revision` to it, and return the commit's hash."""
        tree = {path: HubFile.of(path, content) for path, content in sorted(files.items())}
        listing = "\n".join(f"{file.name} {file.sha256}" for file in tree.values())
        commit = hashlib.sha1(f"{self.name}\n{listing}".encode(), usedforsecurity=False).hexdigest()
        self.commits[commit] = tree
        self.revisions[revision] = commit
        return commit

    def model_info(self, commit: str, *, blobs: bool) -> dict[str, Any]:
        """Word a commit as `GET /api/models/…` does, with sizes and hashes if asked for `blobs`."""
        return {
            "_id": commit[:24],
            "id": self.name,
            "modelId": self.name,
            "sha": commit,
            "private": self.private,
            "gated": "manual" if self.gated else False,
            "disabled": False,
            "tags": ["gguf"],
            "lastModified": "2026-01-01T00:00:00.000Z",
            "createdAt": "2026-01-01T00:00:00.000Z",
            "downloads": 0,
            "likes": 0,
            "siblings": [file.sibling(blobs=blobs) for file in self.commits[commit].values()],
        }


@dataclass
class Faults:
    """What goes wrong from now on. Set fields on `Hub.faults`, or replace it by `Faults()` to be well again."""

    bytes_per_second: int = 0
    """Limits each body of a file; 0 is no limit."""
    cut_after: int = 0
    """With `cuts`: the connection is closed when this many bytes of a file's body were sent."""
    cuts: int = 0
    """How many bodies are still to be cut."""
    stall_after: int | None = None
    """A file's body stops here, with the connection left open, until the faults are replaced."""
    silent: bool = False
    """Requests are taken and never answered, until the faults are replaced."""
    corrupt: bool = False
    """The byte in the middle of each file is another one; sizes and headers are as they were."""
    unavailable: int = 0
    """How many of the next requests get 503."""
    ignore_range: bool = False
    """Range requests get the whole file and 200."""


@dataclass
class Request:
    """One request as the hub saw it; `sent` counts the bytes of a file's body and grows while it is sent."""

    method: str
    path: str
    file: str = ""
    first_byte: int = 0
    token: str = ""
    status: int = 0
    sent: int = 0


def chunks(content: bytes | Path, first: int, end: int) -> Iterator[bytes]:
    """Yield the bytes from `first` up to `end`, piece by piece, without reading a file into memory."""
    if isinstance(content, bytes):
        for start in range(first, end, CHUNK):
            yield content[start : min(start + CHUNK, end)]
        return
    with content.open("rb") as stream:
        stream.seek(first)
        while first < end and (chunk := stream.read(min(CHUNK, end - first))):
            first += len(chunk)
            yield chunk
