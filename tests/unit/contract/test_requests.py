from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from llama_orch.contract.hive import DownloadRequest, SpawnRequest
from llama_orch.contract.queen import NodeCreate, ProvisionRequest, RemedyRequest
from llama_orch.web.errors import from_validation

GOOD_NODE = {"node_name": "hive1", "ssh_host": "hive1.example.com", "ssh_port": 22, "ssh_user": "llama-orch"}

HOSTILE = [
    "{{ lookup('pipe','id') }}",
    "{% raw %}",
    "-oProxyCommand=id",
    "a b",
    "a\nb",
    "a\n",
    "a\x00",
    "../a",
    "a/b",
    "a;b",
    "$(id)",
    "a\u202eb",
    "\u0430dmin",
    "",
    "a" * 300,
    "!vault x",
    "a:b@c",
]


def test_the_seeds_node_is_taken():
    node = NodeCreate.model_validate_json(json.dumps(GOOD_NODE))
    assert (node.ssh_host, node.ssh_port, node.ssh_user) == ("hive1.example.com", 22, "llama-orch")


@pytest.mark.parametrize("host", ["10.0.0.1", "h", "h-1.example", "fe80::1", "2001:db8::8a2e:370:7334", "::1"])
def test_hosts_are_names_or_addresses(host: str):
    assert NodeCreate(node_name="a", ssh_host=host).ssh_host == host


@pytest.mark.parametrize("field", ["node_name", "ssh_host", "ssh_user"])
@pytest.mark.parametrize("value", HOSTILE, ids=repr)
def test_hostile_strings_are_refused(field: str, value: str):
    with pytest.raises(ValidationError) as error:
        NodeCreate.model_validate_json(json.dumps(GOOD_NODE | {field: value}))
    assert {item["loc"][0] for item in error.value.errors()} == {field}


@pytest.mark.parametrize("value", HOSTILE, ids=repr)
def test_hostile_labels_are_refused(value: str):
    for labels in ({value: "x"}, {"x": value}):
        with pytest.raises(ValidationError):
            NodeCreate.model_validate_json(json.dumps(GOOD_NODE | {"labels": labels}))


@pytest.mark.parametrize("name", ["all", "hives", "queen", "localhost", "ungrouped"])
def test_ansibles_own_names_are_refused(name: str):
    with pytest.raises(ValidationError, match="Ansible keeps"):
        NodeCreate(node_name=name, ssh_host="h")


def test_a_sudo_password_never_shows_itself():
    node = NodeCreate.model_validate_json(json.dumps(GOOD_NODE | {"sudo_password": "hunter2hunter2"}))
    assert "hunter2" not in repr(node) + node.model_dump_json()


def test_the_seeds_requests_to_a_hive_are_taken():
    ref = "hf:TheBloke/TinyLlama-1.1B-Chat-v1.0-GGUF"
    assert DownloadRequest.model_validate_json(
        json.dumps({"model_ref": ref, "filename": "tinyllama.gguf"})
    ).filename == ("tinyllama.gguf")
    spawn = SpawnRequest.model_validate_json(json.dumps({"model_ref": ref, "backend": "cuda", "device": 0, "slots": 4}))
    assert (spawn.backend, spawn.all_devices, spawn.slots, spawn.origin) == ("cuda", [0], 4, "rest")


def spawn_json(**fields: object) -> str:
    return json.dumps({"model_ref": "hf:org/repo", "backend": "cuda"} | fields)


def test_several_devices_are_taken_in_their_order():
    one = SpawnRequest.model_validate_json(spawn_json())
    assert (one.all_devices, one.split) == ([0], None)
    several = SpawnRequest.model_validate_json(spawn_json(devices=[2, 0], tensor_split=[3, 0.5]))
    assert (several.all_devices, several.split, several.tensor_split) == ([2, 0], "layer", [3, 0.5])
    # As it is written down and read again.
    assert SpawnRequest.model_validate_json(several.model_dump_json()) == several


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"device": 0, "devices": [0, 1]}, "device: give it or devices, not both"),
        ({"devices": []}, "devices: "),
        ({"devices": [0, 256]}, "devices.1: "),
        ({"devices": [0, True]}, "devices.1: "),
        ({"devices": list(range(17))}, "devices: "),
        ({"devices": [1, 0, 1]}, "devices: names a GPU twice"),
        ({"devices": [0, 1], "split_mode": "none"}, "split_mode: "),
        ({"devices": [0, 1], "tensor_split": [1, 2, 3]}, "tensor_split: has 3 numbers for 2 devices"),
        ({"devices": [0, 1], "tensor_split": [1, 0]}, "tensor_split.1: "),
        ({"devices": [0, 1], "tensor_split": [1, -1]}, "tensor_split.1: "),
        ({"devices": [0, 1], "tensor_split": [1, "1"]}, "tensor_split.1: "),
        ({"devices": [0], "tensor_split": [1, 1]}, "tensor_split: there is nothing to split"),
        ({"device": 1, "split_mode": "layer"}, "split_mode: there is nothing to split"),
        ({"tensor_split": [1, 1]}, "tensor_split: there is nothing to split"),
    ],
)
def test_a_split_that_cannot_be_names_the_field(fields: dict[str, object], said: str):
    with pytest.raises(ValidationError) as error:
        SpawnRequest.model_validate_json(spawn_json(**fields))
    assert from_validation(error.value).message.startswith(said)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("backend", "vulkan"),
        ("device", -1),
        ("device", "0"),
        ("slots", 0),
        ("slots", 2.5),
        ("slots", True),
        ("name", "Upper"),
        ("name", "../x"),
        ("ctx_per_slot", 1),
        ("threads", 0),
        ("gpu_layers", -2),
        ("filename", "../a.gguf"),
        ("origin", "elsewhere"),
    ],
)
def test_a_wrong_spawn_field_is_named(field: str, value: object):
    body = {"model_ref": "hf:org/repo", "backend": "cpu", "device": 0, "slots": 1} | {field: value}
    with pytest.raises(ValidationError) as error:
        SpawnRequest.model_validate_json(json.dumps(body))
    assert {item["loc"][0] for item in error.value.errors()} == {field}


@pytest.mark.parametrize("value", [*HOSTILE, "MIG-1", "GPU-", "gpu-1", "GPU-1,GPU-2", "all"], ids=repr)
def test_a_gpu_to_reset_is_named_as_nvml_does(value: str):
    with pytest.raises(ValidationError):
        RemedyRequest.model_validate_json(json.dumps({"remedy": "reset_gpu", "gpu": value}))


def test_a_remedy_is_one_of_the_list_and_one_gpu_is_for_one_of_them():
    uuid = "GPU-4cf8db2d-06c0-7d70-1a51-e59b25b2c16c"
    assert RemedyRequest.model_validate_json(json.dumps({"remedy": "reset_gpu", "gpu": uuid})).gpu == uuid
    for body in ({"remedy": "site"}, {"remedy": "../reboot"}, {}, {"remedy": "reboot", "gpu": uuid}):
        with pytest.raises(ValidationError):
            RemedyRequest.model_validate_json(json.dumps(body))


KEY_LINE = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI" + "A" * 43


@pytest.mark.parametrize("value", ["SHA256:" + "A" * 43, KEY_LINE, KEY_LINE + " root@hive-1.example"])
def test_a_host_key_is_a_fingerprint_or_a_public_key(value: str):
    assert NodeCreate.model_validate_json(json.dumps(GOOD_NODE | {"host_key": value})).host_key == value
    assert ProvisionRequest.model_validate_json(json.dumps({"host_key": value})).host_key == value


@pytest.mark.parametrize(
    "value",
    [
        *HOSTILE,
        *(
            "SHA256:" + "A" * 42,
            "SHA256:" + "A" * 44,
            "MD5:aa:bb",
            "SHA256:" + "A" * 43 + "\n",
            f"{KEY_LINE}\n{KEY_LINE}",
        ),
        *(f'command="id" {KEY_LINE}', f"10.0.0.1 {KEY_LINE}", KEY_LINE + " {{ 1 }}"),
    ],
    ids=repr,
)
def test_hostile_host_keys_are_refused(value: str):
    for kind, good in ((NodeCreate, GOOD_NODE), (ProvisionRequest, {})):
        with pytest.raises(ValidationError) as error:
            kind.model_validate_json(json.dumps(good | {"host_key": value}))
        assert {item["loc"][0] for item in error.value.errors()} == {"host_key"}
