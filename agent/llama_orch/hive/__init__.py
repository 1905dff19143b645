"""The hive agent: models, workers and devices of one machine."""

import os

# huggingface_hub reads these when it is imported, so they stand before everything else of this package.
# Without xet: its client neither resumes nor keeps the cache's plain layout.
for _name in ("XET", "TELEMETRY", "UPDATE_CHECK", "IMPLICIT_TOKEN", "PROGRESS_BARS"):
    os.environ[f"HF_HUB_DISABLE_{_name}"] = "1"
