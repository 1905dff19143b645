from __future__ import annotations

from llama_orch.contract.devices import HostCondition, HostConditionType
from llama_orch.hive.devices import host_conditions


def found(*, landlock: int = 7, confine_workers: bool = True, unconfined: tuple[str, ...] = ()) -> list[HostCondition]:
    return host_conditions.find(landlock=landlock, confine_workers=confine_workers, unconfined=unconfined)


def test_nothing_is_wrong_where_all_workers_are_confined():
    assert found() == []


def test_a_kernel_without_landlock_is_told_of_once():
    (condition,) = found(landlock=0, unconfined=("a", "b"))
    assert condition.type is HostConditionType.WORKERS_UNCONFINED
    assert "kernel has no Landlock" in condition.message and "5.13" in condition.what_to_do


def test_the_setting_is_named():
    assert "confine_workers" in found(confine_workers=False, unconfined=("a",))[0].message


def test_workers_of_an_older_version_are_named():
    (condition,) = found(unconfined=("a", "b"))
    assert "a, b" in condition.message and "stop and start them" in condition.what_to_do
    assert "and others" in found(unconfined=tuple("abcdefg"))[0].message
