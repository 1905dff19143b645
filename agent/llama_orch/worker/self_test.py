"""`python -m llama_orch.worker.self_test`: whether the engine computes on this machine, before a user finds out.

Compilers, hypervisors that show what they do not give, and drivers can be wrong in ways that only a computation with
a quantised model shows. Each library is tried in a process of its own, which may die: llama.cpp ends its process where
something is wrong, and a processor that refuses an instruction does as well. Nothing of the engine is loaded here.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from llama_orch.contract.devices import EngineLibrary, LibraryResult

from .generation import CannotServe
from .llama import backends

CPU_SECONDS = 60.0
# On a GPU that the library was not compiled for, the driver compiles it now.
CUDA_SECONDS = 600.0
CHILD = "llama_orch.worker.self_test_child"
EXIT_WRONG, EXIT_NOT_TESTED = 3, 4


def cpu() -> list[EngineLibrary]:
    """Try CPU libraries, the best first, until one passes. Raises CannotServe without an engine."""
    tried: list[EngineLibrary] = []
    for path in backends.cpu_libraries():
        tried.append(_try(path, "cpu", [str(path)], CPU_SECONDS))
        if tried[-1].result in {LibraryResult.PASSED, LibraryResult.NOT_TESTED}:
            break
    return tried


def cuda(cpu_library: Path, *, confined: bool = False) -> list[EngineLibrary]:
    """Try the CUDA backend on every GPU, where it is installed; it computes beside this CPU library.

    Where it computes it is tried once more as a worker is `confined`: a driver may need what is closed to workers.
    """
    found: list[EngineLibrary] = []
    for path in backends.cuda_libraries():
        arguments = [str(cpu_library), "--cuda", str(path)]
        tried = _try(path, "cuda", arguments, CUDA_SECONDS)
        if confined and tried.result is LibraryResult.PASSED:
            again = _try(path, "cuda", [*arguments, "--confined"], CUDA_SECONDS)
            tried = tried if again.result is LibraryResult.PASSED else _closed_to_workers(again)
        found.append(tried)
    return found


def _closed_to_workers(tried: EngineLibrary) -> EngineLibrary:
    why = f"it computes, but not within what is left to a confined worker: {tried.result}, {tried.reason}"
    return tried.model_copy(update={"result": LibraryResult.WRONG, "reason": why})


def _try(path: Path, backend: backends.Backend, arguments: list[str], seconds: float) -> EngineLibrary:
    began = time.monotonic()
    command = [sys.executable, "-P", "-m", CHILD, *arguments]
    # A session of its own, so that whatever it starts ends with it.
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        # Where llama.cpp gives up, a debugger that it finds on the machine would hold the dying process for minutes.
        env={**os.environ, "GGML_NO_BACKTRACE": "1"},
        start_new_session=True,
    ) as child:
        try:
            said = child.communicate(timeout=seconds)[0].decode(errors="replace").strip()
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            result, reason = LibraryResult.HUNG, f"no answer within {seconds:.0f} s"
        else:
            result, reason = _judged(child.returncode, said)
    name = path.stem.removeprefix("libggml-").removeprefix("cpu-")
    return EngineLibrary(
        file=path.name,
        name=name,
        backend=backend,
        result=result,
        reason=reason or None,
        seconds=round(time.monotonic() - began, 2),
    )


def _judged(status: int, said: str) -> tuple[LibraryResult, str]:
    last = said.splitlines()[-1][:500] if said else ""
    if status == 0:
        return LibraryResult.PASSED, last
    if status == EXIT_WRONG:
        return LibraryResult.WRONG, last
    # Somebody, or the kernel for want of memory, ended it: that says nothing of the library.
    if status in {EXIT_NOT_TESTED, -signal.SIGKILL, -signal.SIGTERM}:
        return LibraryResult.NOT_TESTED, last or f"ended by {signal.Signals(-status).name}"
    if status < 0:
        return LibraryResult.DIED, f"ended by signal {-status} ({signal.Signals(-status).name})"
    return LibraryResult.DIED, f"exited with code {status}" + (f": {last}" if last else "")


def main() -> None:
    """Print what was found, a line for each library or JSON; exits with 0 where a CPU library computes, else 1."""
    parser = argparse.ArgumentParser(prog="python -m llama_orch.worker.self_test", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON list instead of lines")
    parser.add_argument("--cuda", metavar="CPU_LIBRARY", help="try the CUDA backend, beside this CPU library")
    parser.add_argument("--confined", action="store_true", help="try CUDA also as workers are confined")
    arguments = parser.parse_args()
    try:
        if arguments.cuda:
            found = cuda(backends.libraries_folder() / arguments.cuda, confined=arguments.confined)
        else:
            found = cpu()
    except CannotServe as error:
        raise SystemExit(f"{error.message}: {error.what_to_do}") from None
    if arguments.json:
        print(json.dumps([one.model_dump(mode="json") for one in found]))  # noqa: T201
    for one in found if not arguments.json else ():
        print(f"self-test of {one.name}: {one.result.value}" + (f" ({one.reason})" if one.reason else ""))  # noqa: T201
    good = {LibraryResult.PASSED, LibraryResult.NOT_TESTED}
    raise SystemExit(0 if found and found[-1].result in good else 1)


if __name__ == "__main__":
    main()
