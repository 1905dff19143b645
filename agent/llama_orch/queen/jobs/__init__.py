"""Durable jobs: the engine, their steps and their events."""
