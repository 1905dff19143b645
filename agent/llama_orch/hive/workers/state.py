"""The life of a worker. Nothing else assigns a WorkerStatus."""

from __future__ import annotations

from llama_orch.contract.hive import WorkerStatus

S = WorkerStatus
_NEXT: dict[WorkerStatus, frozenset[WorkerStatus]] = {
    S.DOWNLOADING: frozenset({S.LOADING, S.FAILED, S.DRAINING}),
    S.LOADING: frozenset({S.DOWNLOADING, S.IDLE, S.BUSY, S.FAILED, S.DRAINING}),
    S.IDLE: frozenset({S.BUSY, S.LOADING, S.FAILED, S.DRAINING}),
    S.BUSY: frozenset({S.IDLE, S.LOADING, S.FAILED, S.DRAINING}),
    S.DRAINING: frozenset({S.STOPPED, S.FAILED}),
    S.FAILED: frozenset({S.LOADING, S.DRAINING}),
    S.STOPPED: frozenset(),
}


class WrongTransition(Exception):
    """A worker cannot go from the one state to the other: an error of ours."""


class WorkerState:
    """Where a worker stands in its life. It begins as loading: what it may need is found out first."""

    def __init__(self) -> None:
        self._status = S.LOADING

    @property
    def status(self) -> WorkerStatus:
        """The status as the API shows it."""
        return self._status

    def download(self) -> None:
        """Its model is on the way."""
        self._move(S.DOWNLOADING)

    def load(self) -> None:
        """Its process is about to start, or started and loads the model; so too between a crash and the next start."""
        self._move(S.LOADING)

    def serve(self, slots_busy: int) -> None:
        """It answered that it is ready, with this many slots in use."""
        self._move(S.BUSY if slots_busy else S.IDLE)

    def drain(self) -> None:
        """It is to end: nothing new is accepted."""
        self._move(S.DRAINING)

    def stop(self) -> None:
        """Its process is gone, as was asked."""
        self._move(S.STOPPED)

    def fail(self) -> None:
        """It cannot run, and nobody tries again until a user asks for it."""
        self._move(S.FAILED)

    @property
    def serving(self) -> bool:
        """Whether it takes requests."""
        return self._status in {S.IDLE, S.BUSY}

    def _move(self, to: WorkerStatus) -> None:
        if to == self._status:
            return
        if to not in _NEXT[self._status]:
            raise WrongTransition(f"a worker cannot go from {self._status} to {to}")
        self._status = to
