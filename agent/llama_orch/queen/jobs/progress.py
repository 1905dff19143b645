"""How far a job is, 0 to 100, counted in tasks: it never goes back, and 100 is for a job that succeeded."""

from __future__ import annotations

PREFLIGHT_SHARE = 5.0
PLAYBOOK_END = 95.0
# Tasks of a playbook that has never run to its end here.
GUESSED_TASKS = {"hive": 60, "remove": 20, "reboot": 20, "collect_gpu_report": 12}
FALLBACK_TASKS = 40


class Progress:
    """The percentage of one job."""

    def __init__(self, reached: float = 0.0) -> None:
        self.percentage = reached
        self._expected = FALLBACK_TASKS
        self._done = 0

    def expect(self, tasks: int) -> None:
        """A playbook begins, which should have this many tasks."""
        self._expected = max(1, tasks)
        self._done = 0
        self._rise(PREFLIGHT_SHARE)

    def again(self) -> None:
        """The playbook begins anew, with the tasks that it had."""
        self._done = 0

    def task_began(self) -> None:
        """One more task; the ones before it are done."""
        share = min(self._done / self._expected, 1.0)
        self._done += 1
        self._rise(PREFLIGHT_SHARE + share * (PLAYBOOK_END - PREFLIGHT_SHARE))

    def playbook_ended(self) -> None:
        """The playbook went through; what remains is that the hive answers."""
        self._rise(PLAYBOOK_END)

    def succeeded(self) -> None:
        """The job is done."""
        self._rise(100.0)

    def _rise(self, to: float) -> None:
        self.percentage = max(self.percentage, round(to, 1))
