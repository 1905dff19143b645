"""The one error that building wheels ends in."""

from __future__ import annotations


class WheelhouseError(Exception):
    """What went wrong and what to do about it, in words for the person who ran the command."""
