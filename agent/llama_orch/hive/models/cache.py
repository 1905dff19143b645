"""What is in the hub's cache folder, read from its layout without the hub's library or the network.

models--ORG--REPO/{blobs/ETAG, refs/REVISION, snapshots/COMMIT/FILE → ../../blobs/ETAG}. A blob gets its name only after
its hash was checked, so a model whose parts are all there is ready.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from llama_orch.base import locks
from llama_orch.contract.model_ref import HubRef

from .gguf_header import part_names, split_name

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class CachedModel:
    """A model in the cache; `path` is its first part. `revisions` are the branches and tags that mean its commit."""

    repo: str
    commit: str
    revisions: tuple[str, ...]
    filename: str
    path: Path
    size_bytes: int
    sha256: str | None
    parts: int

    @property
    def ref(self) -> HubRef:
        """The reference by which it is listed."""
        if HubRef.DEFAULT_REVISION in self.revisions:
            return HubRef(self.repo)
        return HubRef(self.repo, self.revisions[0] if self.revisions else self.commit)

    def answers(self, repo: str, revision: str | None) -> bool:
        """Whether this is what a reference with that revision means."""
        wanted = revision or HubRef.DEFAULT_REVISION
        return repo == self.repo and (wanted in self.revisions or wanted == self.commit)


def repo_folder(cache: Path, repo: str) -> Path:
    """Where the cache keeps a repository. Raises ValueError where that would not be a folder of the cache's own."""
    return _in(cache, f"models--{repo.replace('/', '--')}")


def models(cache: Path) -> list[CachedModel]:
    """Every whole model in the cache."""
    found: list[CachedModel] = []
    for home in sorted(cache.glob("models--*--*")):
        repo = "/".join(home.name.split("--")[1:])
        refs = _refs(home)
        for snapshot in sorted((home / "snapshots").glob("*")):
            revisions = tuple(sorted(name for name, commit in refs.items() if commit == snapshot.name))
            found += [
                model
                for path in sorted(snapshot.rglob("*"))
                if path.suffix.lower() == ".gguf" and (model := _model(repo, snapshot, revisions, path)) is not None
            ]
    return found


def _refs(home: Path) -> dict[str, str]:
    folder = home / "refs"
    return {
        str(path.relative_to(folder)): path.read_text().strip() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def _model(repo: str, snapshot: Path, revisions: tuple[str, ...], path: Path) -> CachedModel | None:
    parts = split_name(path.name)
    # A name that is no UTF-8 is none that an answer can have.
    if (parts is not None and parts[1] != 1) or not _is_text(path):
        return None
    files = [path.parent / name for name in part_names(path.name)]
    # exists() follows the link: one whose blob was taken away is no model.
    if not all(file.exists() for file in files):
        return None
    blob = path.resolve().name
    return CachedModel(
        repo=repo,
        commit=snapshot.name,
        revisions=revisions,
        filename=str(path.relative_to(snapshot)),
        path=path,
        size_bytes=sum(file.stat().st_size for file in files),
        sha256=blob if len(files) == 1 and _SHA256.fullmatch(blob) else None,
        parts=len(files),
    )


def _is_text(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def remove(cache: Path, model: CachedModel) -> None:
    """Delete a model's files, and what of its repository's folder serves nothing else."""
    home = repo_folder(cache, model.repo)
    for file in [model.path.parent / name for name in part_names(model.path.name)]:
        blob = file.resolve()
        file.unlink(missing_ok=True)
        if not any(link.resolve() == blob for link in (home / "snapshots").rglob("*") if link.is_symlink()):
            blob.unlink(missing_ok=True)
    snapshot = home / "snapshots" / model.commit
    if not any(path.is_symlink() or path.is_file() for path in snapshot.rglob("*")):
        shutil.rmtree(snapshot, ignore_errors=True)
        for name, commit in _refs(home).items():
            if commit == model.commit:
                (home / "refs" / name).unlink(missing_ok=True)
    if not any((home / "snapshots").glob("*")) and not any((home / "blobs").glob("*")):
        shutil.rmtree(home, ignore_errors=True)
        shutil.rmtree(cache / ".locks" / home.name, ignore_errors=True)


def part_file(cache: Path, repo: str, etag: str) -> Path:
    """Where a file is kept while it is downloaded, beside the blob that it will become. Raises ValueError."""
    return _in(repo_folder(cache, repo) / "blobs", f"{etag}.part")


def drop_parts(cache: Path, keep: Collection[Path]) -> list[Path]:
    """Delete the begun files that are not among these and that nobody writes to; answers which they were."""
    dropped: list[Path] = []
    for part in cache.glob("models--*--*/blobs/*.part"):
        with contextlib.suppress(OSError):
            if part not in keep and _is_left(part):
                part.unlink()
                dropped.append(part)
    return dropped


def _is_left(part: Path) -> bool:
    """Whether no process holds it, as one that downloads into it does."""
    with part.open("rb") as file:
        return locks.take(file)


def revision_file(cache: Path, repo: str, revision: str) -> Path:
    """What says which commit a branch or tag means. Raises ValueError where it would be outside of its folder."""
    folder = repo_folder(cache, repo) / "refs"
    return _in(_in(folder, *revision.split("/")[:-1]), revision.rpartition("/")[2])


def _in(folder: Path, *names: str) -> Path:
    """The path of these names one below the other, each a plain one: the last wall behind the patterns of names."""
    if any(name in {"", ".", ".."} or "/" in name or "\0" in name for name in names):
        raise ValueError(f"'{'/'.join(names)[:100]}' is no name in {folder.name}")
    return folder.joinpath(*names)
