from __future__ import annotations

import pytest

from llama_orch.contract.devices import ConditionType, Gpu, GpuStatus, Remedy
from llama_orch.hive.devices import gpu_conditions


@pytest.mark.parametrize(
    ("problem", "kind", "remedy", "said"),
    [
        ("gpu_lost", ConditionType.GPU_LOST, Remedy.REBOOT, "cannot reach it"),
        ("reset_required", ConditionType.RESET_NEEDED, Remedy.RESET_GPU, "must be reset"),
        ("Insufficient External Power", ConditionType.GPU_UNREADABLE, Remedy.COLLECT_GPU_REPORT, "External Power"),
    ],
)
def test_only_a_gpu_that_is_lost_asks_for_a_reboot(problem: str, kind: ConditionType, remedy: Remedy, said: str):
    gpu = Gpu(index=3, uuid="GPU-3", name="GPU", problem=problem)
    (condition,) = gpu_conditions.find(GpuStatus(available=True), [gpu], [], [])
    assert (condition.type, condition.remedy, condition.cordons) == (kind, remedy, True)
    assert condition.message.startswith("GPU 3 (GPU): ") and said in condition.message
