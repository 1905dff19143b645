"""Ranges of integers as GBNF."""

from __future__ import annotations

# More digits are beyond what most readers of JSON keep exactly.
DIGITS = 16
LARGEST = 10**DIGITS - 1


def rule(low: int, high: int) -> str:
    """The integers from `low` to `high`."""
    choices: list[str] = []
    if low < 0:
        choices.append(f'"-" ({" | ".join(_naturals(max(1, -high), -low))})')
    if high >= 0:
        choices.extend(_naturals(max(0, low), high))
    return " | ".join(choices)


def _naturals(low: int, high: int) -> list[str]:
    """The numbers from `low` to `high`, those of each length apart."""
    lengths = range(len(str(low)), len(str(high)) + 1)
    return [
        _digits(str(max(low, 10 ** (length - 1) if length > 1 else 0)), str(min(high, 10**length - 1)))
        for length in lengths
    ]


def _digits(low: str, high: str) -> str:
    """The numbers between two of the same length."""
    if low == high:
        return f'"{low}"'
    behind = len(low) - 1
    if not behind:
        return f"[{low}-{high}]"
    if low[0] == high[0]:
        return f'"{low[0]}" {_digits(low[1:], high[1:])}'
    first, last, choices = int(low[0]), int(high[0]), []
    if low[1:] != "0" * behind:
        choices.append(f'"{first}" {_digits(low[1:], "9" * behind)}')
        first += 1
    if high[1:] != "9" * behind:
        choices.append(f'"{last}" {_digits("0" * behind, high[1:])}')
        last -= 1
    if first <= last:
        choices.append(f"[{first}-{last}] [0-9]{{{behind}}}")
    return f"({' | '.join(choices)})"
