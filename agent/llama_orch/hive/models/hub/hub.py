"""The model hub; with `hub_failures.py` the only importer of huggingface_hub.

Everything here blocks: call it in a thread or a process.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, Self
from urllib.parse import urlsplit

from huggingface_hub import HfApi, HfFileMetadata, constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers
from pydantic import ValidationError

from llama_orch.base import locks
from llama_orch.contract.model_ref import HubRef

from ...problems import Failed
from .. import cache, quantisation
from ..gguf_header import part_names
from . import failures
from .description import FetchOrder, HubFile, Resolved, is_file_name

log = logging.getLogger(__name__)
TIMEOUT_S = 10
# The library's 10 MiB would lose as much when a download is cut, and show progress in jumps.
_CHUNK = 64 * 1024
Phase = Literal["downloading", "verifying"]
Report = Callable[[Phase, int], None]


def resolve(ref: HubRef, endpoint: str, token: str | None) -> Resolved:
    """Ask the hub what a reference means, and whether it lets us have it. Raises Failed."""
    with failures.explained(ref.repo, ref.revision):
        info = HfApi(endpoint=endpoint or None, token=token or False).model_info(
            ref.repo, revision=ref.revision, files_metadata=True, timeout=TIMEOUT_S
        )
        # What has another name is not looked at: names become paths.
        siblings = {
            sibling.rfilename: sibling for sibling in info.siblings or [] if is_file_name(str(sibling.rfilename))
        }
        models = quantisation.models_of(siblings)
        because = None
        if ref.filename is not None:
            filename = ref.filename
        elif (choice := quantisation.choose(siblings)) is not None:
            filename, because = choice
        else:
            raise Failed(
                "file_not_found", f"there is no .gguf file in {ref.repo}", "name a repository of GGUF files", files=[]
            )
        names = [str(Path(filename).with_name(name)) for name in part_names(Path(filename).name)]
        if missing := [name for name in names if name not in siblings]:
            raise Failed(
                "file_not_found",
                f"there is no file {missing[0]} in {ref.repo}",
                f"it has: {', '.join(models[:50]) or 'no .gguf file'}",
                files=models[:200],
            )
        # Asking what a repository holds is open to all even where its files are not.
        _metadata(ref.repo, names[0], str(info.sha), endpoint or constants.ENDPOINT, token)
    try:
        return Resolved(
            repo=ref.repo,
            revision=ref.revision or HubRef.DEFAULT_REVISION,
            commit=str(info.sha),
            filename=names[0],
            files=[_file(name, siblings[name]) for name in names],
            chosen_because=because,
        )
    except ValidationError as error:
        what = ".".join(str(part) for part in error.errors(include_input=False)[0]["loc"])
        raise Failed(
            "hub_failed", f"the hub says of {ref.repo} what cannot be: its {what}", "see that hub_endpoint is a hub"
        ) from None


def _metadata(repo: str, name: str, commit: str, endpoint: str, token: str | None) -> HfFileMetadata:
    """Where a file is, and whether the hub lets us have it. Raises Failed where no hub answers."""
    meta = get_hf_file_metadata(
        hf_hub_url(repo, name, revision=commit, endpoint=endpoint),
        token=token or False,
        timeout=TIMEOUT_S,
        endpoint=endpoint,
    )
    # Each file of a hub has one; what else would come would be written behind the bytes that are there.
    if meta.etag is None:
        raise failures.no_hub()
    return meta


def _file(name: str, sibling: Any) -> HubFile:
    if sibling.lfs is not None:
        return HubFile(name=name, size=sibling.lfs.size, etag=sibling.lfs.sha256)
    return HubFile(name=name, size=sibling.size, etag=sibling.blob_id)


def fetch(order: FetchOrder, report: Report) -> None:
    """Download what is missing of a model, check every byte of it, and only then make it visible. Raises Failed.

    The library's own download starts from nothing after each interruption, so the bytes are kept in a file of ours
    beside the blobs; it then finds the blob complete and does its own bookkeeping.
    """
    constants.DOWNLOAD_CHUNK_SIZE = _CHUNK
    before = 0
    with failures.explained(order.model.repo, order.model.revision), _disk_full_explained():
        for file in order.model.files:
            _fetch_file(order, file, lambda phase, done, start=before: report(phase, start + done))
            before += file.size
        _point_revision(order)


def _fetch_file(order: FetchOrder, file: HubFile, report: Report) -> None:
    repo, token, endpoint = order.model.repo, order.token or False, order.endpoint or None
    part = cache.part_file(order.cache, repo, file.etag)
    blob = part.with_suffix("")
    if not blob.exists():
        part.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab") as target:
            _lock(target, file.name)
            resumed = target.tell() > 0
            try:
                _receive_and_verify(order, file, target, report)
            except _WrongContent:
                if not resumed:
                    part.unlink()
                    raise
                _from_its_beginning(order, file, target, report)
            part.replace(blob)
    report("downloading", file.size)
    hf_hub_download(
        repo,
        file.name,
        revision=order.model.commit,
        cache_dir=order.cache,
        endpoint=endpoint,
        token=token,
        etag_timeout=TIMEOUT_S,
    )


class _WrongContent(Failed):
    """The file's content is not what the hub states."""

    def __init__(self, message: str, what_to_do: str) -> None:
        super().__init__(code="checksum_mismatch", message=message, what_to_do=what_to_do)


def _receive_and_verify(order: FetchOrder, file: HubFile, target: BinaryIO, report: Report) -> None:
    """Take up what is there and check the whole. Raises Failed."""
    _receive(order, file, target, report)
    report("verifying", 0)
    target.flush()
    os.fsync(target.fileno())
    _verify(Path(target.name), file, report)


def _from_its_beginning(order: FetchOrder, file: HubFile, target: BinaryIO, report: Report) -> None:
    """Once more and without what was there before, as that may be what is damaged. Raises Failed."""
    log.warning("what there was of %s is damaged: it is downloaded again from its beginning", file.name)
    target.seek(0)
    target.truncate()
    try:
        _receive_and_verify(order, file, target, report)
    except _WrongContent:
        Path(target.name).unlink()
        raise


def _lock(target: BinaryIO, name: str) -> None:
    if not locks.take(target):
        raise Failed("download_in_use", f"another process downloads {name}", "wait for it", retry=True)


def _receive(order: FetchOrder, file: HubFile, target: BinaryIO, report: Report) -> None:
    endpoint = order.endpoint or constants.ENDPOINT
    meta = _metadata(order.model.repo, file.name, order.model.commit, endpoint, order.token)
    if target.tell() > file.size:
        target.truncate(0)
        target.seek(0)
    headers = build_hf_headers(token=order.token or False)
    if urlsplit(meta.location).netloc != urlsplit(endpoint).netloc:
        # The storage behind the hub has its own permission in the URL; the token is none of its business.
        headers.pop("authorization", None)
    done = target.tell()
    report("downloading", done)
    http_get(
        meta.location,
        target,
        resume_size=done,
        headers=headers,
        expected_size=file.size,
        tqdm_class=_bar(report, file),  # pyright: ignore[reportArgumentType]
    )


def _bar(report: Report, file: HubFile) -> type:
    class Bar:
        """What the library's download needs of a progress bar; it ends one that brings more than was said."""

        def __init__(self, *, initial: int = 0, **_: object) -> None:
            self.done = initial

        def __enter__(self) -> Self:
            return self

        def __exit__(
            self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
        ) -> None:
            pass

        def update(self, count: int) -> None:
            self.done += count
            if self.done > file.size:
                raise _WrongContent(
                    f"the hub sent more of {file.name} than the {file.size} bytes that it has",
                    "see that hub_endpoint is a hub, and that no proxy on the way changes what it sends",
                )
            report("downloading", self.done)

    return Bar


def _verify(part: Path, file: HubFile, report: Report) -> None:
    is_sha256 = len(file.etag) == 64
    digest = hashlib.sha256() if is_sha256 else hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
    done = 0
    with part.open("rb") as content:
        while chunk := content.read(1024 * 1024):
            digest.update(chunk)
            done += len(chunk)
            report("verifying", done)
    if digest.hexdigest() != file.etag:
        raise _WrongContent(
            f"{file.name} arrived with another checksum than the hub states; what arrived was deleted",
            "download it again; if that repeats, a proxy or a disk on the way changes it",
        )


def _point_revision(order: FetchOrder) -> None:
    if order.model.revision == order.model.commit:
        return
    ref = cache.revision_file(order.cache, order.model.repo, order.model.revision)
    ref.parent.mkdir(parents=True, exist_ok=True)
    ref.write_text(order.model.commit)


@contextmanager
def _disk_full_explained() -> Iterator[None]:
    try:
        yield
    except ssl.SSLError:
        # Its numbers are not the system's.
        raise
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise Failed(
                "disk_full", "the disk is full", "delete models or enlarge the disk of models_dir, then ask again"
            ) from None
        if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
            raise Failed("disk_refused", "models_dir cannot be written", "let the hive's user write there") from None
        if "Consistency check failed" in str(error):
            raise Failed("hub_failed", "the hub sent less of a file than it has", "ask again", retry=True) from None
        raise
