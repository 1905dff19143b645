"""CPU threads that stay from one step to the next; by itself llama.cpp starts them anew for every one.

Source: ggml's public headers `ggml.h` (`struct ggml_threadpool_params`) and `ggml-cpu.h`, llama.cpp's `llama.h`.
"""

from __future__ import annotations

import ctypes
import logging
from typing import Any

log = logging.getLogger(__name__)

_MOST_THREADS = 512  # GGML_MAX_N_THREADS


class _Params(ctypes.Structure):
    _fields_ = (
        ("cpumask", ctypes.c_bool * _MOST_THREADS),
        ("n_threads", ctypes.c_int),
        ("prio", ctypes.c_int),
        ("poll", ctypes.c_uint32),
        ("strict_cpu", ctypes.c_bool),
        ("paused", ctypes.c_bool),
    )


def keep_threads(ggml: ctypes.CDLL, llama: ctypes.CDLL, context: Any, count: int) -> None:
    """Let the context compute with `count` threads that are started here and live as long as the process.

    `ggml` and `llama` are the loaded libraries. Where they do not know such pools, all stays as it is.
    """
    make = _maker(ggml)
    if make is None:
        log.warning("llama.cpp has no lasting threads here; it starts them for every step")
        return
    default = ggml.ggml_threadpool_params_default
    default.argtypes, default.restype = [ctypes.c_int], _Params
    params = default(count)
    if (params.n_threads, params.paused) != (count, False):
        log.warning("llama.cpp describes its threads in another way than expected; it starts them for every step")
        return
    # Between two steps they sleep: spinning, they would hold cores that serve meanwhile.
    params.poll = 0
    pool = make(ctypes.byref(params))
    attach = llama.llama_attach_threadpool
    attach.argtypes, attach.restype = [ctypes.c_void_p] * 3, None
    attach(context, pool, pool)


def _maker(ggml: ctypes.CDLL) -> Any:
    by_name, address_of = ggml.ggml_backend_reg_by_name, ggml.ggml_backend_reg_get_proc_address
    by_name.argtypes, by_name.restype = [ctypes.c_char_p], ctypes.c_void_p
    address_of.argtypes, address_of.restype = [ctypes.c_void_p, ctypes.c_char_p], ctypes.c_void_p
    registered = by_name(b"CPU")
    address = address_of(registered, b"ggml_threadpool_new") if registered else None
    return ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(_Params))(address) if address else None
