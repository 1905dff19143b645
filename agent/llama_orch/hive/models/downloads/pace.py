"""How much of a download is done, and how fast it goes."""

from __future__ import annotations

from collections import deque


class Pace:
    """How much is done, and how fast in the last seconds."""

    WINDOW_S = 5.0

    def __init__(self) -> None:
        self.done = 0
        self._samples: deque[tuple[float, int]] = deque()

    def at(self, done: int, now: float) -> None:
        """`done` bytes are there at that monotonic time."""
        if done < self.done:
            self._samples.clear()
        self.done = done
        self._samples.append((now, done))
        while now - self._samples[0][0] > self.WINDOW_S:
            self._samples.popleft()

    def bytes_per_second(self, now: float) -> float:
        """The rate over the last seconds; 0 when nothing came."""
        recent = [sample for sample in self._samples if now - sample[0] <= self.WINDOW_S]
        if len(recent) < 2 or recent[-1][0] <= recent[0][0]:
            return 0.0
        return (recent[-1][1] - recent[0][1]) / (max(now, recent[-1][0]) - recent[0][0])
