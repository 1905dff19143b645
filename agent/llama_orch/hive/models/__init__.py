"""The models of this machine: files, what is in them, what they need."""
