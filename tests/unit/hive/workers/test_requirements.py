from __future__ import annotations

import socket

import pytest

from llama_orch.contract.devices import Condition, ConditionType, Gpu, GpuStatus
from llama_orch.contract.errors import BadRequest, Conflict, DoesNotFit, NotReady
from llama_orch.contract.hive import SpawnRequest
from llama_orch.hive.models.facts import ModelFacts
from llama_orch.hive.settings import HiveSettings
from llama_orch.hive.workers import requirements
from tests.support.ports import free_port

HERE, GONE = GpuStatus(available=True), GpuStatus(available=False, reason="no library")
GPUS = [
    Gpu(
        index=index,
        uuid=f"GPU-{index}",
        name="GPU",
        memory_total_bytes=24 * 2**30,
        memory_used_bytes=0,
        memory_free_bytes=20 * 2**30,
        utilization_percent=0,
        temperature_celsius=30,
        power_watts=50,
    )
    for index in (0, 1)
]


def spawn(**fields: object) -> SpawnRequest:
    return SpawnRequest.model_validate({"model_ref": "hf:a/b", "backend": "cpu", **fields})


def test_devices_that_are_here_come_in_the_order_that_was_asked_for():
    assert requirements.the_gpus(spawn(), GONE, [], []) == []
    assert requirements.the_gpus(spawn(backend="cuda", gpu_layers=3), HERE, GPUS, []) == GPUS[:1]
    assert requirements.the_gpus(spawn(backend="cuda", device=1), HERE, GPUS, []) == GPUS[1:]
    assert requirements.the_gpus(spawn(backend="cuda", devices=[1, 0]), HERE, GPUS, []) == [GPUS[1], GPUS[0]]


def test_a_build_that_cannot_is_refused():
    requirements.check_build(spawn(), cuda=False, splits_rows=False)
    with pytest.raises(BadRequest, match="built without CUDA") as error:
        requirements.check_build(spawn(backend="cuda"), cuda=False, splits_rows=False)
    assert error.value.error_code == "backend_unavailable"
    by_rows = spawn(backend="cuda", devices=[0, 1], split_mode="row")
    requirements.check_build(by_rows, cuda=True, splits_rows=True)
    with pytest.raises(BadRequest, match=r"split_mode: .* use layer"):
        requirements.check_build(by_rows, cuda=True, splits_rows=False)


@pytest.mark.parametrize(
    ("fields", "status", "gpus", "said"),
    [
        ({"backend": "cuda"}, GONE, [], r"no GPU \(no library\); it has backend cpu"),
        ({"backend": "cuda", "device": 2}, HERE, GPUS, "device: there is no GPU 2 here; there are: cuda:0, cuda:1 and"),
        ({"backend": "cuda", "devices": [0, 7]}, HERE, GPUS, "devices: there is no GPU 7 here"),
        ({"device": 1}, HERE, GPUS, "the CPU is device 0"),
        ({"devices": [0, 1]}, HERE, GPUS, "devices: goes with backend cuda only"),
        ({"gpu_layers": 1}, HERE, GPUS, "gpu_layers"),
    ],
)
def test_devices_that_are_not(fields: dict[str, object], status: GpuStatus, gpus: list[Gpu], said: str):
    with pytest.raises(BadRequest, match=said):
        requirements.the_gpus(spawn(**fields), status, gpus, [])


def test_a_model_is_split_as_asked_or_as_there_is_memory():
    assert requirements.tensor_split(spawn(backend="cuda"), [5]) is None
    asked = spawn(backend="cuda", devices=[0, 1], tensor_split=[3, 1])
    assert requirements.tensor_split(asked, [1, 1]) == [0.75, 0.25]
    left_open = spawn(backend="cuda", devices=[0, 1, 2])
    assert requirements.tensor_split(left_open, [8, 2, 0]) == [0.8, 0.2, 0]
    assert requirements.tensor_split(left_open, [0, 0, 0]) == [1 / 3] * 3


def test_gpu_memory_leaves_the_reserve_and_what_others_were_promised():
    settings = HiveSettings(reserve_gpu_bytes=2**30)
    available, what = requirements.free_memory(settings, GPUS[1], {"GPU-1": 4 * 2**30, "GPU-0": 1})
    assert (available, what) == (15 * 2**30, "memory of GPU 1")
    with pytest.raises(DoesNotFit) as error:
        requirements.check_memory(available + 1, available, what)
    assert error.value.details == {"needed_bytes": available + 1, "available_bytes": available}
    requirements.check_memory(available, available, what)
    with pytest.raises(DoesNotFit, match="memory of GPU 1") as error:
        requirements.check_memory(3, 2, "memory of GPU 1", device=1)
    assert error.value.details == {"needed_bytes": 3, "available_bytes": 2, "device": 1}


def test_a_gpu_that_shares_memory_is_judged_by_the_machines():
    shared = GPUS[0].model_copy(update={"memory_free_bytes": None, "shares_memory": True})
    available, what = requirements.free_memory(HiveSettings(reserve_ram_bytes=0), shared, {})
    assert available > 0
    assert what == "memory"


def test_a_gpu_with_something_wrong_takes_no_new_worker():
    hot = Condition(
        type=ConditionType.OVER_TEMPERATURE, uuid="GPU-1", index=1, message="99 °C", what_to_do="cool it", cordons=True
    )
    requirements.the_gpus(spawn(backend="cuda"), HERE, GPUS, [hot])
    requirements.the_gpus(spawn(backend="cuda", device=1), HERE, GPUS, [hot.model_copy(update={"cordons": False})])
    for fields in ({"device": 1}, {"devices": [0, 1]}):
        with pytest.raises(Conflict, match="GPU 1 takes no new workers: 99 °C; cool it") as error:
            requirements.the_gpus(spawn(backend="cuda", **fields), HERE, GPUS, [hot])
        assert (error.value.error_code, error.value.details) == (
            "device_cordoned", {"conditions": ["over_temperature"]}
        )  # fmt: skip


def test_a_gpu_that_is_divided_up_is_refused():
    divided = [GPUS[0], GPUS[1].model_copy(update={"mig_enabled": True})]
    for refused in (
        lambda: requirements.the_gpus(spawn(backend="cuda", devices=[0, 1]), HERE, divided, []),
        lambda: requirements.bound_gpus(["GPU-1"], divided, []),
    ):
        with pytest.raises(BadRequest, match=r"GPU 1 is divided up \(MIG\).*nvidia-smi -i 1 -mig 0") as error:
            refused()
        assert error.value.error_code == "gpu_divided"
    assert requirements.the_gpus(spawn(backend="cuda"), HERE, divided, []) == GPUS[:1]


def test_what_is_wrong_with_all_gpus_comes_before_that_none_is_seen():
    silent = Condition(type=ConditionType.DRIVER_SILENT, message="it hangs", what_to_do="reboot", cordons=True)
    with pytest.raises(Conflict, match="this hive's GPUs take no new workers: it hangs; reboot"):
        requirements.the_gpus(spawn(backend="cuda"), GONE, [], [silent])
    assert requirements.the_gpus(spawn(), GONE, [], [silent]) == []


def test_context_is_bounded_by_the_model():
    facts = ModelFacts("llama", 1, 1, 8192, 1, 1, 1)
    assert requirements.context(None, facts) == 4096
    assert requirements.context(8192, facts) == 8192
    with pytest.raises(BadRequest, match="8192"):
        requirements.context(8193, facts)
    assert requirements.context(None, ModelFacts("llama", 1, 1, 2048, 1, 1, 1)) == 2048


def test_ports_skip_the_agent_the_taken_and_those_in_use():
    with socket.socket() as used:
        first = free_port(span=4)
        used.bind(("127.0.0.1", first))
        used.listen()
        settings = HiveSettings(host="127.0.0.1", port=first + 1, worker_port_min=first, worker_port_max=first + 3)
        assert requirements.free_port(settings, {first + 2}) == first + 3
        assert requirements.free_port(settings, set(), prefer=first + 3) == first + 3
        with pytest.raises(NotReady, match="worker_port_max"):
            requirements.free_port(settings, {first + 2, first + 3})


def test_8081_is_never_given():
    settings = HiveSettings(host="127.0.0.1", port=9, worker_port_min=8081, worker_port_max=8081)
    with pytest.raises(NotReady):
        requirements.free_port(settings, set())


def test_threads_leave_a_core_and_share_the_rest(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(requirements.machine, "cores", lambda: 8)
    assert requirements.threads(None, 0) == 7
    assert requirements.threads(None, 4) == 3
    assert requirements.threads(None, 7) == 1
    assert requirements.threads(5, 7) == 5
