"""Real Debian machines on this one machine, for tests: see ``machines.Fleet``."""
