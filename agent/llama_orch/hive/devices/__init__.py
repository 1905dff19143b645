"""What this machine computes with, and what is wrong with it."""
