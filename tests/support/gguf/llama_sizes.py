"""What llama.cpp says that a context will take: `python -m tests.support.gguf.llama_sizes PATH SLOTS CTX_PER_SLOT`.

Prints one JSON object of bytes, `{"cache": …, "compute": …}`. Nothing is allocated (`no_alloc`), so a model of any size
can be asked about. In a process of its own, as llama.cpp ends the process where a file is not what it expects.
"""

from __future__ import annotations

import ctypes
import json
import re
import sys
from typing import Any

import llama_cpp as binding

from llama_orch.worker.llama import backends

llama_cpp: Any = binding

_MIB = 2**20
_CACHE = re.compile(r"size =\s*(?P<size>[\d.]+) MiB \(\s*\d+ cells")
_COMPUTE = re.compile(r"compute buffer size =\s*(?P<size>[\d.]+) MiB")
# llama_load_mode of llama.h: maps no file.
_LOAD_MODE_NONE = 0


def sizes(path: str, slots: int, ctx_per_slot: int) -> dict[str, float]:
    """The sizes that llama.cpp logs for the context of an engine."""
    lines: list[str] = []
    callback = llama_cpp.llama_log_callback(lambda level, text, _: lines.append(text.decode(errors="replace")))
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    backends.load()
    llama_cpp.llama_backend_init()
    wanted = llama_cpp.llama_model_default_params()
    wanted.devices = ctypes.cast((ctypes.c_void_p * 1)(None), ctypes.c_void_p)
    wanted.n_gpu_layers = 0
    wanted.no_alloc, wanted.load_mode = True, _LOAD_MODE_NONE
    model = llama_cpp.llama_model_load_from_file(path.encode(), wanted)
    parameters = llama_cpp.llama_context_default_params()
    parameters.n_ctx, parameters.n_seq_max = slots * ctx_per_slot, slots
    parameters.n_batch = parameters.n_ubatch = 512
    parameters.offload_kqv = parameters.op_offload = False
    if not model or not llama_cpp.llama_init_from_model(model, parameters):
        raise SystemExit("".join(lines)[-2000:])
    log = "".join(lines)
    return {
        "cache": sum(float(found["size"]) for found in _CACHE.finditer(log)) * _MIB,
        "compute": sum(float(found["size"]) for found in _COMPUTE.finditer(log)) * _MIB,
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(sizes(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))) + "\n")
