"""The inference process: loads one model, answers in its slots, and ends when asked to."""
