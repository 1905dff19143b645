"""What the queen keeps, and what is done where it is damaged."""
