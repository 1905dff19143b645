"""What a worker has to have before its process is started: its model, its memory, its threads and a port."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from llama_orch.contract.common import Problem
from llama_orch.contract.model_ref import FileRef, HubRef

from ..models import memory, reading
from ..problems import Failed
from . import requirements
from .records import WorkerRecord
from .shared import Shared
from .state import WorkerState


async def prepare(record: WorkerRecord, state: WorkerState, shared: Shared, save: Callable[[], None]) -> Path:
    """The model's first file, downloaded where it is not there, and all of the record that depends on it.

    Raises ApiError where something lacks.
    """
    request = record.request
    path = path_of_record(record, shared.settings.models_dir)
    if path is None or not await asyncio.to_thread(path.exists):
        path = await _model(record, state, shared, save)
    facts = await reading.facts(path, shared.settings.state_dir)
    record.model_path = str(path)
    record.ctx_per_slot = requirements.context(request.ctx_per_slot, facts)
    needed = memory.of_worker(facts, request, record.ctx_per_slot, record.tensor_split)
    if record.admitted:
        record.promise(needed)
    else:
        await shared.admission.take_on(record, needed)
    record.threads = requirements.threads(request.threads, shared.admission.threads_used(record.id))
    # Its own port again where that is free, so that those who know its address find it.
    await shared.admission.give_port(record)
    return path


def path_of_record(record: WorkerRecord, models_dir: Path) -> Path | None:
    """Where the record says that the model is; None where it says nothing, or what a reference cannot mean."""
    ref = record.request.ref
    if record.model_path is None or (isinstance(ref, FileRef) and record.model_path != ref.path):
        return None
    path = Path(record.model_path)
    if isinstance(ref, HubRef):
        return path if path.is_relative_to(models_dir) and ".." not in path.parts else None
    return path


async def _model(record: WorkerRecord, state: WorkerState, shared: Shared, save: Callable[[], None]) -> Path:
    """Wait for the model's download, begun where there is none."""
    ref = record.request.ref
    if isinstance(ref, FileRef):
        return Path(ref.path)
    download = await shared.downloads.request(ref, record.request.origin, for_worker=True)
    record.download_id, record.filename = download.record.download_id, download.record.filename
    save()
    if not download.ended.is_set():
        state.download()
        await download.ended.wait()
    state.load()
    if not download.ready:
        problem = download.record.error or Problem(
            code="download_cancelled", message="its model's download was cancelled"
        )
        raise Failed(problem.code, problem.message, problem.what_to_do)
    return shared.downloads.path_of(download.record)
