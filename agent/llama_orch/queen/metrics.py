"""The queen's own metrics: gauges are rebuilt at each scrape, counters have one place that counts."""

from __future__ import annotations

from collections import Counter as CountOf
from collections.abc import Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge

from llama_orch.contract.common import Problem
from llama_orch.contract.devices import ConditionType, Devices, Remedy
from llama_orch.contract.queen import JobStatus, NodeStatus

PROBE_FAILURES = ("hive_unreachable", "hive_not_proven", "hive_unhealthy", "wrong_hive", "hive_token_unusable")
RUN_RESULTS = ("succeeded", "failed", "interrupted")
PLAYBOOKS = ("hive", "remove", "resume", *(remedy.value for remedy in Remedy))


class QueenMetrics:
    """Registered in a registry of their own, so that tests can make as many as they like."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._nodes = Gauge("llama_orch_queen_nodes", "Nodes by status", ["status"], registry=self.registry)
        self._jobs = Gauge("llama_orch_queen_jobs", "Jobs kept, by status", ["status"], registry=self.registry)
        self._inventory = Gauge(
            "llama_orch_queen_inventory_valid",
            "1 where the inventory could be read, 0 where the last good view is shown",
            registry=self.registry,
        )
        self._problems = Gauge(
            "llama_orch_queen_problems",
            "What is wrong with the inventory and with the queen's own files, as GET /api/v1/nodes tells it",
            registry=self.registry,
        )
        self._gpus = Gauge("llama_orch_queen_gpus", "GPUs that hives last told of", registry=self.registry)
        self._conditions = Gauge(
            "llama_orch_queen_gpu_conditions",
            "What hives last said is wrong with GPUs",
            ["type"],
            registry=self.registry,
        )
        self._runs = Counter(
            "llama_orch_queen_runs", "Ansible runs ended", ["playbook", "result"], registry=self.registry
        )
        self._probe_failures = Counter(
            "llama_orch_queen_probe_failures", "Hives that did not answer", ["reason"], registry=self.registry
        )
        for reason in PROBE_FAILURES:
            self._probe_failures.labels(reason)
        for playbook in PLAYBOOKS:
            for result in RUN_RESULTS:
                self._runs.labels(playbook, result)

    def show(self, nodes: Mapping[NodeStatus, int], jobs: Mapping[JobStatus, int], *, inventory_valid: bool) -> None:
        """Rebuild the gauges."""
        for node_status, count in nodes.items():
            self._nodes.labels(node_status.value).set(count)
        for job_status, count in jobs.items():
            self._jobs.labels(job_status.value).set(count)
        self._inventory.set(int(inventory_valid))

    def show_problems(self, problems: Sequence[Problem]) -> None:
        """Rebuild the gauge of what is wrong with files."""
        self._problems.set(len(problems))

    def show_gpus(self, told: Sequence[Devices]) -> None:
        """Rebuild the gauges of what hives tell of their GPUs."""
        found = CountOf(condition.type for devices in told for condition in devices.conditions)
        for kind in ConditionType:
            self._conditions.labels(kind.value).set(found[kind])
        self._gpus.set(sum(len(devices.gpus) for devices in told))

    def ran(self, playbook: str, result: str) -> None:
        """A run ended."""
        self._runs.labels(playbook, result).inc()

    def probe_failed(self, reason: str) -> None:
        """A hive did not answer as it should."""
        self._probe_failures.labels(reason).inc()
