"""From a model's bytes to text that may be shown: whole characters only, and no part of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextAssembler:
    """Collects the bytes of tokens and gives out the text that is safe to show."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._stops = [stop for stop in stops if stop]
        self._beginnings = {stop[:size] for stop in self._stops for size in range(1, len(stop))}
        self._longest = max(map(len, self._beginnings), default=0)
        self._held = ""
        self.stopped = False

    def feed(self, piece: bytes) -> str:
        """Text that may be shown now; afterwards `stopped` says whether a stop string has come."""
        if self.stopped:
            return ""
        self._held += self._decoder.decode(piece)
        end = self._earliest_stop()
        if end is not None:
            self.stopped = True
            shown, self._held = self._held[:end], ""
            return shown
        keep = self._unfinished_stop()
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def finish(self) -> str:
        """The rest, once no more will come: what looked like a stop string was none. Half a character is left out."""
        rest, self._held = self._held, ""
        return "" if self.stopped else rest

    def _earliest_stop(self) -> int | None:
        found = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        return min(found, default=None)

    def _unfinished_stop(self) -> int:
        """How many characters at the end might be the beginning of a stop string."""
        for size in range(min(self._longest, len(self._held)), 0, -1):
            if self._held[-size:] in self._beginnings:
                return size
        return 0
