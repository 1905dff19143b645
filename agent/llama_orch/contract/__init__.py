"""The wire: every path, request and response type, error code and the `model_ref` grammar. No I/O."""
