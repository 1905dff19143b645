"""From a JSON schema to a grammar that llama.cpp can be trusted with."""
