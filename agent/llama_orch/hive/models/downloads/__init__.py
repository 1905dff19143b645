"""Downloads, each by a process of its own."""
