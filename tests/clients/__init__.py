"""OpenAI's clients and what is built on them, each in its newest release, against a real worker."""
