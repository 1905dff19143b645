"""What hostile clients, models and neighbours can do, against live processes."""
