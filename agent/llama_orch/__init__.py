"""llama-orch: one private llama.cpp inference fleet out of machines that you can reach by ssh."""

__version__ = "0.1.0"
