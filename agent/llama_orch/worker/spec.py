"""The worker's order: `spec.json` as the hive wrote it, and the token that came by descriptor."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

from pydantic import ValidationError

from llama_orch.base.tokens import Token, WrongTokenFile
from llama_orch.contract.process import WorkerSpec
from llama_orch.web.errors import from_validation

log = logging.getLogger(__name__)

# A token is some dozens of bytes; whoever hands us an endless stream must not fill the memory.
MAX_TOKEN_BYTES = 4096


class WrongOrder(Exception):
    """The worker was started wrongly; the message says what to change."""


def read_spec(path: Path) -> WorkerSpec:
    """Read and check `spec.json`. Raises WrongOrder naming each field at fault."""
    try:
        return WorkerSpec.model_validate_json(path.read_bytes())
    except OSError as error:
        raise WrongOrder(f"cannot read the spec {path}: {error.strerror}") from None
    except ValidationError as error:
        raise WrongOrder(f"the spec {path} is wrong: {from_validation(error, 'file').message}") from None


def read_token(descriptor: int) -> Token:
    """Read the inference token from an inherited descriptor to its end, and close it. Raises WrongOrder.

    In lines behind it are those that are taken as well.
    """
    try:
        with os.fdopen(descriptor, "rb", buffering=0) as stream:
            # A memory file stands where its writer left off; a pipe has no place to go back to.
            with contextlib.suppress(OSError):
                stream.seek(0)
            value = b""
            while len(value) <= MAX_TOKEN_BYTES and (part := stream.read(MAX_TOKEN_BYTES)):
                value += part
    except OSError as error:
        raise WrongOrder(f"--token-fd {descriptor} cannot be read: {error.strerror}") from None
    try:
        return _tokens(value.decode("ascii").strip().split("\n"))
    except (UnicodeDecodeError, WrongTokenFile):
        raise WrongOrder(
            f"--token-fd {descriptor} gave no token: at least 16 printable ASCII characters without spaces"
        ) from None


def _tokens(lines: list[str]) -> Token:
    return Token(lines[0], also=_tokens(lines[1:]) if lines[1:] else None)


def threads_for(spec: WorkerSpec) -> int:
    """Threads to compute with: those asked for, or one for each core that this process may use."""
    cores = max(1, len(os.sched_getaffinity(0)))
    if spec.threads is not None and spec.threads > cores:
        # ggml's threads spin while they wait for each other, so this can cost far more than it gains.
        log.warning("threads is %d but only %d cores are available: expect it to be slow", spec.threads, cores)
    return spec.threads or cores
