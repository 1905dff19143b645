"""Typed asynchronous client of queen, hive and worker: one method for each operation of the contract."""

from __future__ import annotations

from .hive import Hive
from .queen import Queen
from .service import NoAnswer, NotTheService, Service, why_not_connected
from .worker import Worker

__all__ = ["Hive", "NoAnswer", "NotTheService", "Queen", "Service", "Worker", "why_not_connected"]
