"""The `llama-orch` command: one file for each noun, and what they share."""
