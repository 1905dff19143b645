"""How `llama-orch up` knows again what runs for its folder, whoever started it and whoever died meanwhile."""

from __future__ import annotations

# Holds the folder's path. Queen and hive hand it on to all that they start, though they hand on little else.
HOME_VARIABLE = "LLAMA_ORCH_HOME"
