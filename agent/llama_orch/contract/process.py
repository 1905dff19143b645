"""What a hive and its workers tell each other through files: the worker's order, and how it ended.

All of them lie in the worker's own folder, `<state_dir>/workers/<worker_id>/`. Hive and worker speak no other
language than these files, signals and the worker's HTTP.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, Field, StringConstraints

from .common import Request, Response
from .devices import MOST_DEVICES, Backend, DeviceIndex, SplitMode
from .patterns import IDENTIFIER, GpuUuid, Network, WebOrigin

SPEC_FILE = "spec.json"
# In the one folder that a confined worker may write to; what is there is a worker's claim, and read as such.
FAILURE_FILE = "tmp/failure.json"
ENDED_FILE = "ended.json"

EXIT_STOPPED = 0
# The worker knows why and has written FAILURE_FILE; every other code is a crash.
EXIT_KNOWN_FAILURE = 3

# What a worker takes where `ctx_per_slot` is null, or what the model was trained with, whichever is less.
DEFAULT_CONTEXT = 4096

# What the hive reckons a worker's memory with, and the worker makes its context by: one number each, since a worker
# that computed more at once than was reckoned with would run out of memory.
# Tokens that the engine takes in one step (`n_batch`), and computes at once (`n_ubatch`); for a text's vector, all that
# a slot holds.
BATCH_TOKENS = 512
UBATCH_TOKENS = BATCH_TOKENS
# For how many of them a slot may want logits in one step, where `echo` and `logprobs` ask for those of its prompt: each
# takes a row of the vocabulary, so such a prompt is read in small parts.
OUTPUTS_PER_SLOT = 64
# Whether blocks with a sliding window keep the whole context too, so that a slot's prefix can be used again: `swa_full`
# of llama.cpp's `llama_context_params`.
KEEPS_WHOLE_WINDOWS = True

FailureCode = Literal[
    "model_unreadable", "model_truncated", "out_of_memory", "port_in_use", "cannot_listen", "backend_unavailable"
]


class WorkerSpec(Request):
    """`spec.json`, written by the hive: what the worker is to do.

    `model_path` is the first part of a model in parts. `model_name` and `model_ref` are the names under which
    the model may be asked for. `device_uuids` says which GPUs `devices` meant: numbers shift when a GPU is gone.
    `tensor_split` is the part of the model that each of several devices gets.
    `ctx_per_slot` is in tokens; null leaves the choice to the worker. `cpu_library` is the engine's library that the
    machine's self-test chose; null takes the one that rates itself best. From `gateways` a request may name its scope;
    `reuse_across_scopes` lets each reuse what any left in a slot. Web pages of `cors_origins` may ask.
    A worker that is `confined` can reach no more files than it needs, as far as the kernel can do that. `record` is
    nothing for the worker: the hive knows it again by that where its own record is damaged.
    """

    worker_id: Annotated[str, StringConstraints(pattern=IDENTIFIER, max_length=64)]
    model_path: str = Field(min_length=1, max_length=4096)
    model_name: str = Field(min_length=1, max_length=1024)
    model_ref: str | None = Field(default=None, min_length=1, max_length=1024)
    host: str = Field(min_length=1, max_length=253)
    port: int = Field(ge=1, le=65535)
    backend: Backend
    devices: list[DeviceIndex] = Field(default=[0], min_length=1, max_length=MOST_DEVICES)
    device_uuids: list[GpuUuid] = Field(default=[], max_length=MOST_DEVICES)
    split_mode: SplitMode | None = None
    tensor_split: list[Annotated[float, Field(ge=0, allow_inf_nan=False)]] | None = None
    slots: int = Field(default=1, ge=1, le=256)
    ctx_per_slot: int | None = Field(default=None, ge=64, le=1_048_576)
    threads: int | None = Field(default=None, ge=1, le=512)
    gpu_layers: int | None = Field(default=None, ge=-1, le=10_000)
    cpu_library: Annotated[str, StringConstraints(pattern=r"^libggml-cpu-[A-Za-z0-9_]{1,32}\.so$")] | None = None
    gateways: list[Network] = Field(default=[], max_length=256)
    cors_origins: list[WebOrigin] = Field(default=[], max_length=256)
    reuse_across_scopes: bool = False
    confined: bool = True
    record: dict[str, Any] | None = None


class WorkerFailure(Response):
    """`tmp/failure.json`, written by a worker before it exits with EXIT_KNOWN_FAILURE."""

    code: FailureCode
    message: str
    what_to_do: str = ""


class WorkerEnded(Response):
    """`ended.json`, written by the worker's shim: one of `exit_code` and `signal` (its number) is set.

    `uptime_s` is the same moment as `at` in seconds since the machine's boot, which no setting of its clock changes.
    """

    exit_code: int | None
    signal: int | None
    at: AwareDatetime
    uptime_s: float | None = None
