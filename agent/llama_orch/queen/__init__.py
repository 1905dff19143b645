"""The control plane: nodes, jobs and their runs, the inventory, the store. Speaks to hives in contract types only."""
