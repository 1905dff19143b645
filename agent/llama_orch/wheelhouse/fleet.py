"""Which GPUs the hosts of the inventory have, by `playbooks/gpus.yml`, and what has to be compiled for them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_orch.wheelhouse.cuda_runtime import RUNTIMES
from llama_orch.wheelhouse.errors import WheelhouseError
from llama_orch.wheelhouse.pip import say

# A host that is not there takes two minutes, and Ansible asks 25 at a time.
ASK_SECONDS = 1800.0
_END_SECONDS = 30.0


@dataclass(frozen=True)
class Host:
    """One host of the inventory.

    `capabilities` are those of its GPUs, sorted, as a compiler writes them (86 is 8.6); there are none where nothing
    is compiled for it, and `reason` says why.
    """

    name: str
    capabilities: tuple[int, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class Library:
    """One library to compile: the major version of CUDA, for which architectures, and the hosts that it is for."""

    cuda: int
    capabilities: tuple[int, ...]
    hosts: tuple[str, ...]

    def architectures(self) -> str:
        """As CMake writes them: machine code for exactly these GPUs."""
        return ";".join(f"{one}-real" for one in self.capabilities)


def ask(project: Path) -> list[Host]:
    """All hives of the checkout's inventory. Raises WheelhouseError where they cannot be asked."""
    program = Path(sys.executable).with_name("ansible-playbook")
    if not program.is_file():
        raise WheelhouseError(
            f"{program} is missing, which asks the hosts for their GPUs; run `make wheelhouse-cuda`, or name with "
            "--architectures what to compile for"
        )
    say("asking the hosts of the inventory for their GPUs")
    with tempfile.TemporaryDirectory(prefix="llama-orch-gpus-") as folder:
        report = Path(folder, "report")
        extra = json.dumps({"gpus_report": str(report)})
        said = _run([str(program), "playbooks/gpus.yml", "--extra-vars", extra], project)
        if not report.is_file():
            tail = "\n".join(said.splitlines()[-25:])
            raise WheelhouseError(f"playbooks/gpus.yml could not ask the hosts for their GPUs:\n{tail}")
        found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    return [host(name, facts) for name, facts in found.items()]


def host(name: str, facts: Mapping[str, Any]) -> Host:
    """A host as the playbook reports it."""
    gpus = facts.get("gpus", [])
    labels = ", ".join(gpu["label"] for gpu in gpus)
    capabilities = tuple(sorted({int(gpu["compute"].replace(".", "")) for gpu in gpus if gpu["compute"]}))
    if problem := facts.get("problem"):
        reason = " ".join(str(problem).removeprefix("Task failed: ").split())
    elif facts["hive_cuda"] == "false":
        reason = "hive_cuda is false"
    elif not gpus:
        reason = "no NVIDIA GPU"
    elif facts["arch"] != "x86_64":
        reason = f"is {facts['arch']}, and wheels are built for x86_64 only"
    elif not all(gpu["compute"] for gpu in gpus):
        reason = f"{labels}: name its compute capability with --architectures"
    elif not facts["one_driver"]:
        reason = f"no one driver drives all of {labels}"
    elif _cuda_for(capabilities) is None:
        reason = f"no CUDA that hives can get has code for {labels}"
    else:
        return Host(name, capabilities)
    return Host(name, reason=reason)


def libraries(hosts: Iterable[Host]) -> list[Library]:
    """What to compile: for each set of compute capabilities that a host has, by the newest CUDA that knows them all."""
    names: dict[tuple[int, ...], list[str]] = {}
    for one in hosts:
        if one.capabilities:
            names.setdefault(one.capabilities, []).append(one.name)
    found = ((_cuda_for(capabilities), capabilities, tuple(of)) for capabilities, of in names.items())
    wanted = [Library(cuda, capabilities, of) for cuda, capabilities, of in found if cuda is not None]
    return sorted(wanted, key=lambda one: (-one.cuda, one.capabilities))


def _cuda_for(capabilities: Sequence[int]) -> int | None:
    return max((one.major for one in RUNTIMES.values() if one.least_capability <= min(capabilities)), default=None)


def _run(command: list[str], folder: Path) -> str:
    """What it prints, whatever it ends with: hosts that do not answer are in its report."""
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as child:
        try:
            return child.communicate(timeout=ASK_SECONDS)[0]
        except subprocess.TimeoutExpired:
            # As Ctrl-C does: it ends what it started.
            child.send_signal(signal.SIGINT)
            try:
                child.communicate(timeout=_END_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
            raise WheelhouseError(
                f"not all hosts answered within {ASK_SECONDS:.0f} s; name with --architectures what to compile for"
            ) from None
