"""Faults at random, each followed by the question whether everything is again as it was promised (docs/faults.md)."""
