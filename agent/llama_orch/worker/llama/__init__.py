"""llama.cpp: the only code that knows it."""
