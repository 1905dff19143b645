"""`python -m llama_orch.cli` is the `llama-orch` command."""

from .main import main

main()
