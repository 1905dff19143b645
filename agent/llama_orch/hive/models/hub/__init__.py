"""The model hub, asked by processes that may be ended."""
