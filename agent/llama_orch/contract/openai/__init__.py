"""OpenAI's requests as they come, read loosely and brought into one form that is checked."""
