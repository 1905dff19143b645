"""The worker's metrics. Gauges are set at each scrape, counters where the thing happens."""

from __future__ import annotations

from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from llama_orch.contract.inference import WorkerHealth

STATUSES = get_args(WorkerHealth.model_fields["status"].annotation)
OUTCOMES = ("stop", "length", "cancelled", "failed", "busy", "unavailable", "deadline", "refused")

_FIRST_TOKEN = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_PER_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class Metrics:
    """All series of the worker but those of HTTP itself, which `web` counts."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        prefix = "llama_orch_worker_"
        self._status = Gauge(
            f"{prefix}status", "1 for the worker's status, 0 for the others", ["status"], registry=registry
        )
        self._slots = Gauge(f"{prefix}slots", "Slots by state", ["state"], registry=registry)
        self._queued = Gauge(f"{prefix}queued_requests", "Requests that wait for a slot", registry=registry)
        self._loaded = Gauge(f"{prefix}model_loaded_ratio", "Part of the model that is loaded", registry=registry)
        self._context = Gauge(f"{prefix}context_tokens", "Tokens that one slot holds", registry=registry)
        self.answers = Counter(f"{prefix}answers", "Answers by how they ended", ["outcome"], registry=registry)
        for outcome in OUTCOMES:
            self.answers.labels(outcome)
        self.prompt_tokens = Counter(f"{prefix}prompt_tokens", "Tokens read from prompts", registry=registry)
        self.reused_tokens = Counter(
            f"{prefix}reused_tokens", "Tokens of prompts that a slot held already", registry=registry
        )
        self._held = Gauge(
            f"{prefix}held_tokens", "Tokens in the memory of all slots, kept ones included", registry=registry
        )
        self.generated_tokens = Counter(f"{prefix}generated_tokens", "Tokens generated", registry=registry)
        self.first_token = Histogram(
            f"{prefix}time_to_first_token_seconds",
            "From the request's acceptance, waiting included, to its first token",
            buckets=_FIRST_TOKEN,
            registry=registry,
        )
        self.per_token = Histogram(
            f"{prefix}time_per_token_seconds",
            "Mean time between two tokens of an answer",
            buckets=_PER_TOKEN,
            registry=registry,
        )

    def refresh(self, health: WorkerHealth, held_tokens: int) -> None:
        """Set the gauges to what is true now."""
        for status in STATUSES:
            self._status.labels(status).set(status == health.status)
        self._slots.labels("busy").set(health.slots_busy)
        self._slots.labels("idle").set(health.slots - health.slots_busy)
        self._queued.set(health.queued)
        self._held.set(held_tokens)
        self._loaded.set(health.percentage / 100)
        self._context.set(health.context_per_slot or 0)
