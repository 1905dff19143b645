"""Workers: admission, their lives, their processes."""
