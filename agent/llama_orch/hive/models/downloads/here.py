"""What of a model is on the disk already, and how much room is left for the rest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llama_orch.contract.devices import MemoryInfo
from llama_orch.contract.errors import DoesNotFit
from llama_orch.contract.model_ref import HubRef

from ...devices import machine
from ...settings import HiveSettings
from .. import cache as model_cache
from .. import files, quantisation
from ..hub.description import Resolved


@dataclass(frozen=True)
class OnDisk:
    """What there is of a model, and room for more; `promised_bytes` are those that other downloads still want."""

    ready: bool
    present_bytes: int
    promised_bytes: int
    disk: MemoryInfo

    def check_room(self, model: Resolved, settings: HiveSettings) -> None:
        """Raises DoesNotFit where the disk has no room for what is missing."""
        available = self.disk.available_bytes - settings.reserved_disk(self.disk.total_bytes) - self.promised_bytes
        needed = model.size_bytes - self.present_bytes
        if needed > available:
            raise DoesNotFit(
                f"{model.filename} needs {needed} bytes more on the disk and {max(0, available)} may be used: "
                "delete models, or enlarge the disk of models_dir",
                code="disk_full",
                needed_bytes=needed,
                available_bytes=max(0, available),
            )


def look(cache: Path, model: Resolved, others: list[Resolved]) -> OnDisk:
    """What there is of the model, beside the `others` that are being downloaded."""
    promised = sum(other.size_bytes - files.present(cache, other) for other in others)
    return OnDisk(
        ready=files.ready(cache, model),
        present_bytes=files.present(cache, model),
        promised_bytes=promised,
        disk=machine.disk(cache),
    )


def meant_by(ref: HubRef, cache: Path, *, even_beside: bool = False) -> Resolved | None:
    """What of the models that are here a reference means; None where only the hub can tell.

    Where nothing is here but what goes beside models, the hub may have the model itself; `even_beside` takes that.
    """
    here = model_cache.models(cache)
    cached = {model.filename: model for model in here if model.answers(ref.repo, ref.revision)}
    name, because = ref.filename, None
    if name is None:
        choice = quantisation.choose(cached)
        if choice is None or (quantisation.goes_beside(choice[0]) and not even_beside):
            return None
        name, why = choice
        several = len(quantisation.models_of(cached)) > 1
        because = f"of those that are here, {why}; name another with ::file=" if several else None
    if name not in cached:
        return None
    try:
        return files.as_resolved(ref, cached[name], because)
    except ValueError:
        # Somebody else put it there, under a name that becomes no path of ours.
        return None
