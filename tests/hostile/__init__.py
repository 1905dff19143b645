"""What a hostile reader proved against a live queen, hive and worker; each with bounds on time and memory."""
