"""Whether a worker that serves hangs: judged by what its engine last did, not by its silence alone. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from llama_orch.contract.inference import WorkerHealth

LEAST_S = 15.0
LONGEST_STEPS = 10
# An engine that is silent for longer may be hanging: what the process has of the machine is looked at from then on.
DOUBTED_S = 2.0
# A machine that stood still, or an agent that did, has asked nothing meanwhile.
FAILED_ASKS = 5
# How long a worker may be without an ended step while it reads from its disk, or without an answer while it computes.
AT_WORK_S = 120.0


@dataclass(frozen=True)
class Progress:
    """What a process has had of the machine: processor time, and pages that the kernel fetched from a disk for it."""

    cpu: int
    major_faults: int


def is_doubted(health: WorkerHealth | None) -> bool:
    """Whether an answer, None where none came, leaves open that the worker hangs."""
    return health is None or health.engine_silent_seconds > DOUBTED_S


class Pulse:
    """One process's signs of life. Times are of a monotonic clock, in seconds."""

    def __init__(self, now: float) -> None:
        self._engine_at = self._alive_at = now
        self._longest_step = 0.0
        self._failed_asks = 0
        self._progress: Progress | None = None

    def asked(self, health: WorkerHealth | None, progress: Progress | None, now: float) -> None:
        """Take in the answer to a question, None where none came, and what the process has had by then.

        `progress` is needed where the answer `is_doubted`; of what passes without it nothing is concluded.
        """
        before, self._progress = self._progress, progress
        if health is not None:
            self._failed_asks = 0
            self._longest_step = health.longest_step_seconds
            self._engine_at = now - health.engine_silent_seconds
            self._alive_at = max(self._alive_at, self._engine_at)
        else:
            self._failed_asks += 1
        if before is None or progress is None:
            return
        reads = progress.major_faults > before.major_faults
        computes = progress.cpu > before.cpu
        # An engine that turns in circles computes as well; so this counts only where nobody could tell of it.
        if reads or (health is None and computes):
            self._alive_at = now

    @property
    def limit_s(self) -> float:
        """How long no step may end."""
        return max(LEAST_S, LONGEST_STEPS * self._longest_step)

    def hangs(self, now: float) -> str | None:
        """How it is known that the worker hangs; None while it does not."""
        if 0 < self._failed_asks < FAILED_ASKS:
            return None
        if now - self._alive_at > self.limit_s or now - self._engine_at > max(AT_WORK_S, self.limit_s):
            seconds = now - self._engine_at
            if self._failed_asks:
                return f"it has not answered for {seconds:.0f} s"
            return (
                f"its engine has ended no step for {seconds:.0f} s, where the longest before took "
                f"{self._longest_step:.1f} s"
            )
        return None
