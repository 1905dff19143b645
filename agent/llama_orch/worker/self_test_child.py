"""Tries one of the engine's libraries on models with known answers; may die, hang or answer wrongly (`self_test`)."""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import resource
from pathlib import Path
from typing import Any

import numpy as np

from llama_orch.contract.process import WorkerSpec
from llama_orch.web import landlock

from . import confinement, self_test_model
from .llama import backends
from .llama.binding import llama_cpp
from .self_test import EXIT_NOT_TESTED, EXIT_WRONG

# Enough rows for the kernels that real prompts are read with, and not a round number of their tiles.
ROWS = 67
# One: threads of ggml wait for each other spinning, which on a busy machine would take minutes.
THREADS = 1


class Wrong(Exception):
    """It computed, and not what it should; the message says what."""


class NotTested(Exception):
    """It could not be tried; the message says why."""


def main() -> None:
    """Try it and print in one line what was computed, or why it was not."""
    parser = argparse.ArgumentParser(prog="python -m llama_orch.worker.self_test_child", description=__doc__)
    parser.add_argument("cpu", type=Path, help="the CPU library")
    parser.add_argument("--cuda", type=Path, help="compute on every GPU by this library")
    parser.add_argument("--confined", action="store_true", help="with no more than what is left to a worker")
    arguments = parser.parse_args()
    # A crash is what this process is for; it needs no picture of its memory.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if arguments.cuda is None:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    status = 0
    try:
        if arguments.confined:
            _confine(arguments.cuda)
        said = _test(arguments.cpu, arguments.cuda)
    except Wrong as error:
        said, status = str(error), EXIT_WRONG
    except (NotTested, OSError) as error:
        said, status = str(error), EXIT_NOT_TESTED
    print(said, flush=True)  # noqa: T201
    # Libraries that are taken down while threads of theirs wait can crash; the answer is out.
    os._exit(status)


def _confine(cuda: Path | None) -> None:
    """Leave this process what a worker of that backend keeps, its model and its folder aside; raises OSError."""
    nowhere = Path("/nonexistent")
    spec = WorkerSpec(
        worker_id="self-test",
        model_path=str(nowhere / "model.gguf"),
        model_name="self-test",
        host="127.0.0.1",
        port=1,
        backend="cpu" if cuda is None else "cuda",
    )
    if version := landlock.abi():
        landlock.restrict(confinement.allowed(spec, nowhere), version)


def _test(cpu: Path, cuda: Path | None) -> str:
    llama_cpp.llama_log_set(_SILENT, ctypes.c_void_p(0))
    _check_structures()
    ggml = backends.library()
    for path in (cpu, cuda):
        if path is not None and not ggml.ggml_backend_load(os.fsencode(path)):
            raise _not_loaded(path)
    llama_cpp.llama_backend_init()
    places: list[backends.Device | None] = [None]
    if cuda is not None:
        places = [device for device in backends.devices() if device.is_gpu]
        if not places:
            raise NotTested("CUDA shows no GPU")
    for kind in self_test_model.FORMATS:
        # In memory: the agent's sandbox may leave no folder to write to, and a disk may be full.
        path = Path(f"/proc/self/fd/{os.memfd_create(kind)}")
        self_test_model.write(path, kind)
        for place in places:
            _compute(path, kind, place)
    where = "" if cuda is None else f" on {len(places)} GPU{'s' if len(places) > 1 else ''}"
    return f"{', '.join(self_test_model.FORMATS)}{where}"


def _not_loaded(path: Path) -> Wrong | NotTested:
    """Why ggml took it for no library of its own, in the loader's words where it has any."""
    text = f"{path.name} cannot be loaded"
    why = backends.why_not_loaded(path)
    # The driver brings that one: the library is not wrong where it is missing.
    return NotTested(f"{text}: {why}") if "libcuda.so" in why else Wrong(f"{text}: {why}" if why else text)


def _check_structures() -> None:
    """The binding passes structures by value: raises Wrong where llama.cpp's are of another size.

    `params.json` was written when the engine was built; a llama-cpp-python of somebody else's has none.
    """
    written = backends.libraries_folder() / "params.json"
    if not written.is_file():
        return
    for name, size in json.loads(written.read_text(encoding="utf-8")).items():
        ours = ctypes.sizeof(getattr(llama_cpp, name))
        if ours != size:
            raise Wrong(
                f"{name} has {size} bytes in llama.cpp and {ours} in llama-cpp-python: they do not fit together"
            )


def _compute(path: Path, kind: str, place: backends.Device | None) -> None:
    parameters = llama_cpp.llama_model_default_params()
    chosen = (ctypes.c_void_p * 2)(place.handle if place else None, None)
    parameters.devices = ctypes.cast(chosen, ctypes.c_void_p)
    parameters.n_gpu_layers = -1 if place else 0
    where = f"{kind} on {place.name}" if place else kind
    model = llama_cpp.llama_model_load_from_file(os.fsencode(path), parameters)
    if not model:
        raise NotTested(f"{where}: the model cannot be loaded; perhaps no memory is left")
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_ubatch = self_test_model.CONTEXT, 128, 128
    settings.n_threads = settings.n_threads_batch = THREADS
    settings.offload_kqv = settings.op_offload = place is not None
    context = llama_cpp.llama_init_from_model(model, settings)
    if not context:
        raise NotTested(f"{where}: no context can be made; perhaps no memory is left")
    try:
        _compare(context, where)
    finally:
        llama_cpp.llama_free(context)
        llama_cpp.llama_model_free(model)


def _compare(context: Any, where: str) -> None:
    after = self_test_model.following()
    tokens = np.random.default_rng(ROWS).integers(0, self_test_model.TOKENS, ROWS)
    _check(f"{where}, {ROWS} tokens at once", _decode(context, [int(one) for one in tokens]), after[tokens])
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
    token = 0
    for step in range(ROWS):
        token_after = int(after[token])
        _check(f"{where}, one token at a time, step {step}", _decode(context, [token]), np.array([token_after]))
        token = token_after


def _decode(context: Any, tokens: list[int]) -> Any:
    """The likeliest token after each of them."""
    count = len(tokens)
    # Both are named so that they live as long as the batch, which only points to them.
    array, wanted = (ctypes.c_int32 * count)(*tokens), (ctypes.c_int8 * count)(*([1] * count))
    batch = llama_cpp.llama_batch_get_one(array, count)
    # Logits of every token, not of the last alone.
    batch.logits = ctypes.cast(wanted, type(batch.logits))
    if status := llama_cpp.llama_decode(context, batch):
        raise Wrong(f"llama_decode answers {status}")
    logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits(context), (count, self_test_model.TOKENS))
    if not np.isfinite(logits).all():
        raise Wrong("it computes what is no number")
    return logits.argmax(axis=1)


def _check(what: str, found: Any, expected: Any) -> None:
    if wrong := int((found != expected).sum()):
        raise Wrong(f"{what}: {wrong} of {len(expected)} answers are wrong")


_SILENT = llama_cpp.llama_log_callback(lambda level, text, data: None)


if __name__ == "__main__":
    main()
