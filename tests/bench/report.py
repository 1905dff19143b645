"""Medians over the rounds, as a table for people and as ratios for scripts."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from .measure import SCENARIOS, SHORT, Measured, Scenario
from .servers import LLAMA_CPP_SERVER, LLAMA_SERVER, OURS, SERVERS


@dataclass
class Results:
    """All that was measured: for each scenario, number of streams and server, one entry per round."""

    rounds: dict[tuple[str, int, str], list[Measured]] = field(
        default_factory=dict[tuple[str, int, str], list[Measured]]
    )

    def add(self, scenario: Scenario, streams: int, server: str, measured: Measured) -> None:
        self.rounds.setdefault((scenario.name, streams, server), []).append(measured)

    def median(self, scenario: str, streams: int, server: str, value: Callable[[Measured], float]) -> float | None:
        """The median over the rounds, or None where nothing was measured."""
        measured = self.rounds.get((scenario, streams, server))
        return statistics.median(map(value, measured)) if measured else None

    def errors(self) -> list[str]:
        """One line for each request that failed."""
        return [
            f"{server}, {streams} streams, {scenario}: {error}"
            for (scenario, streams, server), rounds in self.rounds.items()
            for measured in rounds
            for error in measured.errors
        ]

    def disturbed(self, cores: float) -> tuple[int, int]:
        """How many measurements had others use more than so many cores meanwhile, and of how many."""
        all_of_them = [measured for rounds in self.rounds.values() for measured in rounds]
        return sum(measured.others > cores for measured in all_of_them), len(all_of_them)


def ratios(results: Results) -> dict[str, dict[str, float]]:
    """Ours over theirs, by the number of streams, for short prompts that share nothing."""

    def over(server: str, value: Callable[[Measured], float]) -> dict[str, float]:
        found: dict[str, float] = {}
        for streams in sorted({streams for _, streams, _ in results.rounds}):
            ours = results.median(SHORT.name, streams, OURS, value)
            theirs = results.median(SHORT.name, streams, server, value)
            if ours is not None and theirs:
                found[str(streams)] = round(ours / theirs, 3)
        return found

    return {
        "tokens_per_s_over_llama_server": over(LLAMA_SERVER, lambda one: one.tokens_per_s),
        "tokens_per_s_over_llama_cpp_server": over(LLAMA_CPP_SERVER, lambda one: one.tokens_per_s),
        "ttft_p95_over_llama_server": over(LLAMA_SERVER, lambda one: one.ttft_p95),
        "cpu_over_llama_server": over(LLAMA_SERVER, lambda one: one.cpu_per_1000),
    }


_COLUMNS: tuple[tuple[str, Callable[[Measured], float], str], ...] = (
    ("tokens/s", lambda one: one.tokens_per_s, ".0f"),
    ("TTFT p50 ms", lambda one: one.ttft_p50 * 1000, ".0f"),
    ("TTFT p95 ms", lambda one: one.ttft_p95 * 1000, ".0f"),
    ("CPU s/1000", lambda one: one.cpu_per_1000, ".1f"),
    ("RSS MB", lambda one: one.resident / 1e6, ".0f"),
    ("reused %", lambda one: one.reused * 100, ".0f"),
    ("client cores", lambda one: one.load_cpu, ".2f"),
    ("others' cores", lambda one: one.others, ".2f"),
)


def table(results: Results) -> str:
    """One line for each scenario, number of streams and server; the spread of tokens/s over the rounds last."""
    head = ["scenario", "streams", "server", *(name for name, _, _ in _COLUMNS), "tokens/s, all rounds"]
    rows: list[list[str]] = []
    order = [scenario.name for scenario in SCENARIOS]
    for (scenario, streams, server), rounds in sorted(
        results.rounds.items(), key=lambda item: (order.index(item[0][0]), item[0][1], SERVERS.index(item[0][2]))
    ):
        cells = [format(statistics.median(map(value, rounds)), shape) for _, value, shape in _COLUMNS]
        spread = " ".join(f"{measured.tokens_per_s:.0f}" for measured in rounds)
        rows.append([scenario, str(streams), server, *cells, spread])
    return aligned([head, *rows], left={0, 2, len(head) - 1})


def aligned(rows: list[list[str]], left: Iterable[int] = (0,)) -> str:
    """Columns of equal width, the `left` ones flush left and the numbers flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    kept = set(left)
    return "\n".join(
        "  ".join(
            cell.ljust(width) if index in kept else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
