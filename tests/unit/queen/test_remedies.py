from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from llama_orch.contract.devices import Condition, ConditionType, Remedy
from llama_orch.contract.queen import Job, JobStatus
from llama_orch.queen.remedies import Standing, due
from llama_orch.queen.store import Cure

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
HOUR = timedelta(hours=1)
RESET = frozenset({Remedy.RESET_GPU})
ECC = Condition(
    type=ConditionType.ECC_UNCORRECTED, uuid="GPU-1", index=1, message="m", what_to_do="w", cordons=True,
    remedy=Remedy.RESET_GPU,
)  # fmt: skip
XID = ECC.model_copy(update={"type": ConditionType.XID})
SILENT = Condition(
    type=ConditionType.DRIVER_SILENT, message="m", what_to_do="w", cordons=True, remedy=Remedy.RELOAD_DRIVER
)


def a_job(minutes_ago: float, **fields: Any) -> Job:
    made = NOW - timedelta(minutes=minutes_ago)
    values: dict[str, Any] = {
        "job_id": "j", "kind": "remedy", "node_name": "n", "status": JobStatus.SUCCEEDED, "percentage": 100,
        "created_at": made, "started_at": made, "ended_at": made, "error": None, "correlation_id": "c",
    }  # fmt: skip
    return Job(**(values | fields))


def test_what_is_allowed_and_needed_is_due():
    assert due([ECC], RESET, [], NOW, HOUR) == Cure(Remedy.RESET_GPU, "GPU-1", ConditionType.ECC_UNCORRECTED)
    assert due([SILENT], frozenset(Remedy), [], NOW, HOUR) == Cure(
        Remedy.RELOAD_DRIVER, None, ConditionType.DRIVER_SILENT
    )


def test_only_a_reset_is_for_one_gpu():
    lost = ECC.model_copy(update={"type": ConditionType.GPU_LOST, "remedy": Remedy.REBOOT})
    assert due([lost], frozenset(Remedy), [], NOW, HOUR) == Cure(Remedy.REBOOT, None, ConditionType.GPU_LOST)
    part = ECC.model_copy(update={"uuid": "MIG-1"})
    assert due([part], RESET, [], NOW, HOUR) == Cure(Remedy.RESET_GPU, None, ConditionType.ECC_UNCORRECTED)


@pytest.mark.parametrize("uuid", ["GPU-{{ lookup('pipe', 'id') }}", "GPU-1\n", "GPU-1 --all", "GPU-", ""])
def test_what_is_no_uuid_goes_nowhere(uuid: str):
    told = ECC.model_copy(update={"uuid": uuid})
    assert due([told], RESET, [], NOW, HOUR) == Cure(Remedy.RESET_GPU, None, ConditionType.ECC_UNCORRECTED)


def test_what_was_there_at_each_look_for_that_long_stands():
    standing = Standing(timedelta(minutes=5))
    assert standing.of([ECC, XID], NOW) == []
    assert standing.of([ECC], NOW + timedelta(minutes=4)) == []
    assert standing.of([ECC, XID], NOW + timedelta(minutes=5)) == [ECC], "the other one was gone in between"
    other_gpu = ECC.model_copy(update={"uuid": "GPU-2"})
    assert standing.of([other_gpu, XID], NOW + timedelta(minutes=10)) == [XID]
    assert Standing(timedelta()).of([ECC], NOW) == [ECC]


@pytest.mark.parametrize(
    ("conditions", "allowed"),
    [
        ([], RESET),
        ([ECC], frozenset()),
        ([ECC], frozenset({Remedy.REBOOT})),
        ([ECC.model_copy(update={"cordons": False})], RESET),
        ([ECC.model_copy(update={"remedy": None})], RESET),
    ],
)
def test_nothing_is_due(conditions: list[Condition], allowed: frozenset[Remedy]):
    assert due(conditions, allowed, [], NOW, HOUR) is None


def test_not_while_any_job_is_open():
    provisioning = a_job(1, kind="provision", ended_at=None, status=JobStatus.RUNNING)
    assert due([ECC], RESET, [provisioning], NOW, HOUR) is None


def test_once_for_each_condition_within_the_interval():
    tried = a_job(59, condition=ConditionType.ECC_UNCORRECTED)
    assert due([ECC], RESET, [tried], NOW, HOUR) is None
    assert due([ECC, XID], RESET, [tried], NOW, HOUR) == Cure(Remedy.RESET_GPU, "GPU-1", ConditionType.XID)
    failed = a_job(59, condition=ConditionType.ECC_UNCORRECTED, status=JobStatus.FAILED)
    assert due([ECC], RESET, [failed], NOW, HOUR) is None
    long_ago = a_job(61, condition=ConditionType.ECC_UNCORRECTED)
    assert due([ECC], RESET, [long_ago], NOW, HOUR) is not None


def test_what_a_user_started_counts_for_nothing():
    by_hand = a_job(5, remedy=Remedy.RESET_GPU, gpu="GPU-1")
    assert due([ECC], RESET, [by_hand], NOW, HOUR) is not None
