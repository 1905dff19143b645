from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import cast

import pytest

from llama_orch.contract.common import WorkerCounts
from llama_orch.contract.devices import Condition, ConditionType, Remedy
from llama_orch.contract.queen import JobKind, JobStatus, NodeHive
from llama_orch.queen.jobs import automatic_remedies
from llama_orch.queen.jobs.automatic_remedies import (
    AutomaticRemedies,
    PersistentConditions,
    RecentRemedies,
    next_remedy,
)
from llama_orch.queen.jobs.engine import Jobs
from llama_orch.queen.records import RemedyOrder
from llama_orch.queen.store import tables
from llama_orch.queen.store.store import Store
from tests.unit.cli.services import DEVICES

RESET = frozenset({Remedy.RESET_GPU})
ECC = Condition(
    type=ConditionType.ECC_UNCORRECTED, uuid="GPU-1", index=1, message="m", what_to_do="w", cordons=True,
    remedy=Remedy.RESET_GPU,
)  # fmt: skip
XID = ECC.model_copy(update={"type": ConditionType.XID})
SILENT = Condition(
    type=ConditionType.DRIVER_SILENT, message="m", what_to_do="w", cordons=True, remedy=Remedy.RELOAD_DRIVER
)


def test_what_is_allowed_and_needed_is_due():
    assert next_remedy([ECC], RESET, ()) == RemedyOrder(Remedy.RESET_GPU, "GPU-1", ConditionType.ECC_UNCORRECTED)
    assert next_remedy([SILENT], frozenset(Remedy), ()) == RemedyOrder(
        Remedy.RELOAD_DRIVER, None, ConditionType.DRIVER_SILENT
    )


def test_only_a_reset_is_for_one_gpu():
    lost = ECC.model_copy(update={"type": ConditionType.GPU_LOST, "remedy": Remedy.REBOOT})
    assert next_remedy([lost], frozenset(Remedy), ()) == RemedyOrder(Remedy.REBOOT, None, ConditionType.GPU_LOST)
    part = ECC.model_copy(update={"uuid": "MIG-1"})
    assert next_remedy([part], RESET, ()) == RemedyOrder(Remedy.RESET_GPU, None, ConditionType.ECC_UNCORRECTED)


@pytest.mark.parametrize("uuid", ["GPU-{{ lookup('pipe', 'id') }}", "GPU-1\n", "GPU-1 --all", "GPU-", ""])
def test_what_is_no_uuid_goes_nowhere(uuid: str):
    told = ECC.model_copy(update={"uuid": uuid})
    assert next_remedy([told], RESET, ()) == RemedyOrder(Remedy.RESET_GPU, None, ConditionType.ECC_UNCORRECTED)


def test_what_was_there_at_each_look_for_that_long_stands():
    persistent = PersistentConditions(300.0)
    assert persistent.among([ECC, XID], 1000.0) == []
    assert persistent.among([ECC], 1240.0) == []
    assert persistent.among([ECC, XID], 1300.0) == [ECC], "the other one was gone in between"
    other_gpu = ECC.model_copy(update={"uuid": "GPU-2"})
    assert persistent.among([other_gpu, XID], 1600.0) == [XID]
    assert PersistentConditions(0.0).among([ECC], 1000.0) == [ECC]


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
    assert next_remedy(conditions, allowed, ()) is None


def test_once_for_each_condition_within_the_interval():
    recent = RecentRemedies(3600.0)
    recent.note(ConditionType.ECC_UNCORRECTED, 1000.0)
    recent.note(ConditionType.ECC_UNCORRECTED, 500.0)
    assert next_remedy([ECC], RESET, recent.conditions(4599.0)) is None
    assert next_remedy([ECC, XID], RESET, recent.conditions(4599.0)) == RemedyOrder(
        Remedy.RESET_GPU, "GPU-1", ConditionType.XID
    )
    assert next_remedy([ECC], RESET, recent.conditions(4600.0)) is not None


class Site:
    """Remedies with a store of its own, a clock that the test moves, and jobs that end when the test says so."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.now = 1000.0
        self.begun: list[str] = []
        self.fails = False
        self.remedies = self.again()

    def again(self) -> AutomaticRemedies:
        """As a queen that was restarted has them."""
        jobs = cast("Jobs", self)
        self.remedies = AutomaticRemedies(
            self.store, jobs, RESET, after_s=300.0, interval_s=3600.0, clock=lambda: self.now
        )
        return self.remedies

    async def submit(self, kind: JobKind, node_name: str, *, order: RemedyOrder) -> None:
        job_id = f"j{len(self.begun)}"
        await self.store.jobs.create(job_id, kind, node_name, "c", order=order)
        self.begun.append(job_id)
        if self.fails:
            raise OSError(28, "No space left on device")

    async def end(self) -> None:
        for job in await self.store.jobs.open():
            await self.store.jobs.end(job.job_id, JobStatus.FAILED, None)

    async def looks(self, *conditions: Condition, seconds: float = 0.0) -> int:
        """The hive is asked after so many seconds; answers how many remedies began until now."""
        self.now += seconds
        workers = WorkerCounts(total=0, idle=0, busy=0)
        devices = DEVICES.model_copy(update={"conditions": list(conditions)})
        await self.remedies.seen(
            "n", NodeHive(hive_id="n", version="0", url="http://n", workers=workers, devices=devices)
        )
        return len(self.begun)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    store = Store(f"sqlite:///{tmp_path / 'q.sqlite'}")
    await store.open()
    yield Site(store)
    await store.close()


@pytest.fixture(params=[-1, 1], ids=["back", "ahead"])
def set_clock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Sets the clock of the wall two hours back or ahead."""

    class Wall(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime.now(tz) + request.param * timedelta(hours=2)

    def set_it() -> None:
        for module in (automatic_remedies, tables):
            monkeypatch.setattr(module, "datetime", Wall)

    return set_it


async def test_a_clock_that_is_set_begins_no_remedy_and_holds_none_back(site: Site, set_clock: Callable[[], None]):
    assert await site.looks(ECC) == 0
    set_clock()
    assert await site.looks(ECC, seconds=299) == 0, "the condition is not there for long enough"
    assert await site.looks(ECC, seconds=1) == 1
    await site.end()
    assert await site.looks(ECC, seconds=3599) == 1
    assert await site.looks(ECC, seconds=1) == 2


async def test_a_clock_that_is_set_after_a_remedy_changes_nothing_of_its_interval(
    site: Site, set_clock: Callable[[], None]
):
    await site.looks(ECC)
    assert await site.looks(ECC, seconds=300) == 1
    await site.end()
    set_clock()
    assert await site.looks(ECC, seconds=3599) == 1
    assert await site.looks(ECC, seconds=1) == 2


async def test_a_queen_that_is_restarted_does_not_start_anew_what_she_just_tried(site: Site):
    await site.looks(ECC)
    assert await site.looks(ECC, seconds=300) == 1
    await site.end()
    site.again()
    await site.looks(ECC, XID)
    assert await site.looks(ECC, seconds=300) == 1
    assert await site.looks(ECC, XID, seconds=3600) == 2, "the interval is over"


async def test_not_while_any_job_is_open(site: Site):
    await site.store.jobs.create("p", "provision", "n", "c")
    await site.looks(ECC)
    assert await site.looks(ECC, seconds=300) == 0
    await site.end()
    await site.store.jobs.create("p2", "provision", "other", "c")
    assert await site.looks(ECC) == 1, "provisioning elsewhere is no reason to wait"
    await site.end()
    await site.store.jobs.create("r", "remedy", "other", "c", order=RemedyOrder(Remedy.RESET_GPU))
    await site.looks(XID)
    assert await site.looks(XID, seconds=300) == 1, "one remedy at a time in the whole fleet"


async def test_what_a_user_started_counts_for_nothing(site: Site):
    await site.store.jobs.create("by-hand", "remedy", "n", "c", order=RemedyOrder(Remedy.RESET_GPU, "GPU-1"))
    await site.end()
    await site.looks(ECC)
    assert await site.looks(ECC, seconds=300) == 1


async def test_a_remedy_that_could_not_be_started_but_was_recorded_counts(site: Site):
    await site.looks(ECC)
    site.fails = True
    with pytest.raises(OSError, match="No space"):
        await site.looks(ECC, seconds=300)
    await site.end()
    assert await site.looks(ECC, seconds=10) == 1


async def test_nothing_is_kept_of_a_node_that_is_gone(site: Site):
    await site.looks(ECC)
    assert await site.looks(ECC, seconds=300) == 1
    await site.end()
    site.remedies.forget("n")
    assert vars(site.remedies)["_persistent"] == vars(site.remedies)["_recent"] == {}
    assert await site.looks(ECC, seconds=3600) == 1, "its conditions begin anew"
