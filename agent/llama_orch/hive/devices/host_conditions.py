"""What is not as it should be with the machine as a whole: pure."""

from __future__ import annotations

from collections.abc import Sequence

from llama_orch.contract.devices import HostCondition, HostConditionType


def find(*, landlock: int, confine_workers: bool, unconfined: Sequence[str]) -> list[HostCondition]:
    """All that is the case now.

    `landlock` is the version of the kernel's, 0 for none; `unconfined` are the ids of workers that say of themselves
    that they are not confined.
    """
    if not confine_workers:
        return [_unconfined("the hive's confine_workers is false", "set it to true, then stop and start the workers")]
    if not landlock:
        return [
            _unconfined(
                "the kernel has no Landlock, or it is not switched on",
                "run a kernel of version 5.13 or newer with landlock among its security modules (the boot parameter "
                "lsm=); until then serve only models whose makers you trust",
            )
        ]
    if unconfined:
        some = ", ".join(unconfined[:5]) + (" and others" if len(unconfined) > 5 else "")
        return [
            _unconfined(
                f"these workers were started by an older version, or could not be confined: {some}",
                "stop and start them; where that does not help, their logs say why",
            )
        ]
    return []


def _unconfined(why: str, what_to_do: str) -> HostCondition:
    return HostCondition(
        type=HostConditionType.WORKERS_UNCONFINED,
        message=f"a fault in a worker could reach all that the hive's user can, its tokens too: {why}",
        what_to_do=what_to_do,
    )
