"""The hives as they answer, and the states of nodes that follow."""
