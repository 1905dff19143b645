"""The builds of the CUDA backend that the hosts of the inventory need: one for each set of GPUs that a host has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llama_orch.wheelhouse import cuda, fleet
from llama_orch.wheelhouse.cuda import Backend
from llama_orch.wheelhouse.errors import WheelhouseError
from llama_orch.wheelhouse.pip import say


def backends(project: Path, cache: Path, nvcc: Path | None) -> tuple[list[Backend], list[str]]:
    """What to build, and in words what cannot be built without more being given.

    `nvcc` compiles what needs its major version of CUDA; NVIDIA's wheels compile what theirs is for. Raises
    WheelhouseError where the hosts cannot be asked, none has a GPU to compile for, or nothing can be built.
    """
    given = None if nvcc is None else cuda.compiler_for(project, nvcc)[0]
    hosts = fleet.ask(project)
    for host in hosts:
        if host.reason:
            say(f"left out: {host.name}: {host.reason}")
    wanted = fleet.libraries(hosts)
    if not wanted:
        raise WheelhouseError(_nothing(hosts))
    found: list[Backend] = []
    lacking: list[str] = []
    for library in wanted:
        architectures = library.architectures()
        if given is not None and library.cuda == given.major:
            found.append(cuda.backend(project, cache, nvcc, architectures))
        elif library.cuda == cuda.FROM_WHEELS:
            found.append(cuda.backend(project, cache, None, architectures))
        else:
            lacking.append(_lacks(library))
            continue
        say(f"for {', '.join(library.hosts)}: {found[-1].told()}")
    for text in lacking:
        say(text)
    if not found:
        raise WheelhouseError("nothing can be compiled: " + " ".join(lacking))
    return found, lacking


def _lacks(library: fleet.Library) -> str:
    return (
        f"for {', '.join(library.hosts)} nothing is compiled: only CUDA {library.cuda} has code for "
        f"{library.architectures()}, and NVIDIA's wheels hold no compiler of it. Install a toolkit of CUDA "
        f"{library.cuda} with cuBLAS on this machine and run `make wheelhouse-cuda "
        f'CUDA_FLAGS="--nvcc /usr/local/cuda-{library.cuda}/bin/nvcc"`'
    )


def _nothing(hosts: Sequence[fleet.Host]) -> str:
    by_hand = 'or name what to compile for: `make wheelhouse-cuda CUDA_FLAGS="--architectures 86-real"`'
    if not hosts:
        return f"the inventory has no hives. Put hosts into inventory/hosts.yml, {by_hand}"
    return (
        f"no host of the inventory has a GPU that something could be compiled for. Mend what is said above, {by_hand}"
    )
