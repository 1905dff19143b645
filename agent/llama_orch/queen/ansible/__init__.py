"""Playbooks and plain ssh: what is run, what it says, and how it is ended."""
