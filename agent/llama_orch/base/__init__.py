"""The ground under everything: files that are there whole or not at all, and which process is which."""
