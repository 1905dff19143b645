"""What a worker's model may be called in a request, and what tells one worker's answers from another's."""

from __future__ import annotations

import hashlib
from importlib.metadata import PackageNotFoundError, version

from llama_orch import __version__
from llama_orch.contract.process import WorkerSpec


def aliases(spec: WorkerSpec) -> list[str]:
    """The other names of the model: its reference, that without `hf:`, and its file's name without the ending.

    A reference that is a path on this machine is taken where somebody knows it, and told to nobody.
    """
    reference = spec.model_ref if spec.model_ref and not spec.model_ref.startswith("file:") else ""
    found = [reference, reference.removeprefix("hf:"), _without_ending(spec.model_name)]
    return [name for name in dict.fromkeys(found) if name and name != spec.model_name]


def _without_ending(name: str) -> str:
    return name[: -len(".gguf")] if name.lower().endswith(".gguf") else name


def fingerprint(spec: WorkerSpec) -> str:
    """`system_fingerprint` of OpenAI's: the same for workers that answer alike to the same seed."""
    parts = (
        *(__version__, _engine(), spec.model_name, spec.model_ref),
        *(spec.backend, spec.cpu_library, spec.gpu_layers, spec.split_mode),
    )
    return "fp_" + hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def _engine() -> str:
    try:
        return version("llama-cpp-python")
    except PackageNotFoundError:
        # The engine loads or fails by itself; a name for it is not worth a worker.
        return ""
