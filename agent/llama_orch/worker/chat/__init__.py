"""From a conversation to the model's text, by its own template, and back to calls of tools."""
