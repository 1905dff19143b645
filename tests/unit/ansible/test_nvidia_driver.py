"""Which driver a host gets: decided over recorded GPUs, distributions, kernels and firmware settings."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROLE = Path(__file__).parents[3] / "roles" / "nvidia_driver"


def plugin(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"{name}_filter", ROLE / "filter_plugins" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


nvidia_driver, nvidia_driver_apt = plugin("nvidia_driver"), plugin("nvidia_driver_apt")

VARS = yaml.safe_load((ROLE / "vars" / "main.yml").read_text(encoding="utf-8"))
TABLES = {name: VARS[f"_nvidia_driver_{name}"] for name in ("generations", "offers", "rebuilds", "packages")}
SITE = {"install": True, "replace": False, "branch": 0, "flavour": "auto", "source": "auto"}
# What the CUDA wheels may have been built for.
CUDA_13 = {
    "runtime": "13.0",
    "least_driver": "580.65.06",
    "architectures": ["75", "80", "86", "89", "90", "100", "120a"],
}
CUDA_12 = {
    "runtime": "12.9",
    "least_driver": "525.60.13",
    "architectures": ["50", "61", "70", "75", "80", "86", "89", "90", "120a"],
}
BARE = {
    "kernel": "6.1.0-40-amd64",
    "loaded": "",
    "loaded_flavour": "",
    "library": "",
    "nouveau": False,
    "secure_boot": False,
    "signing_key_enrolled": False,
    "installer": False,
    "module_packages": [],
    "images": [],
    "ours": False,
    "brought": [],
}
# Recorded PCI device ids, from the PCI ID Repository.
RECORDED = {
    "0f02": ("Fermi", "2.0"),  # GeForce GT 730
    "06d1": ("Fermi", "2.0"),  # Tesla C2050
    "1022": ("Kepler", "3.0"),  # Tesla K20c
    "102d": ("Kepler", "3.0"),  # Tesla K80
    "1180": ("Kepler", "3.0"),  # GeForce GTX 680
    "1380": ("Maxwell", "5.0"),  # GeForce GTX 750 Ti
    "174d": ("Maxwell", "5.0"),  # GeForce MX130
    "13c2": ("Maxwell", "5.2"),  # GeForce GTX 970
    "1617": ("Maxwell", "5.2"),  # GeForce GTX 980M
    "17fd": ("Maxwell", "5.2"),  # Tesla M40
    "15f8": ("Pascal", "6.0"),  # Tesla P100 PCIe
    "1b06": ("Pascal", "6.1"),  # GeForce GTX 1080 Ti
    "1b38": ("Pascal", "6.1"),  # Tesla P40
    "1d01": ("Pascal", "6.1"),  # GeForce GT 1030
    "1db4": ("Volta", "7.0"),  # Tesla V100 PCIe
    "1df6": ("Volta", "7.0"),  # Tesla V100S
    "1e07": ("Turing", "7.5"),  # GeForce RTX 2080 Ti
    "1eb8": ("Turing", "7.5"),  # Tesla T4
    "2184": ("Turing", "7.5"),  # GeForce GTX 1660
    "20b5": ("Ampere", "8.0"),  # A100 PCIe 80GB
    "20b7": ("Ampere", "8.0"),  # A30
    "2204": ("Ampere", "8.6"),  # GeForce RTX 3090
    "2236": ("Ampere", "8.6"),  # A10
    "2503": ("Ampere", "8.6"),  # GeForce RTX 3060
    "25b6": ("Ampere", "8.6"),  # A2
    "2684": ("Ada", "8.9"),  # GeForce RTX 4090
    "26b9": ("Ada", "8.9"),  # L40S
    "27b8": ("Ada", "8.9"),  # L4
    "2803": ("Ada", "8.9"),  # GeForce RTX 4060 Ti
    "2331": ("Hopper", "9.0"),  # H100 PCIe
    "2335": ("Hopper", "9.0"),  # H200
    "2901": ("Blackwell", "10.0"),  # B200
    "3182": ("Blackwell", "10.3"),  # B300
    "2b85": ("Blackwell", "12.0"),  # GeForce RTX 5090
    "2bb1": ("Blackwell", "12.0"),  # RTX PRO 6000
    "2d04": ("Blackwell", "12.0"),  # GeForce RTX 5060 Ti
    "2f04": ("Blackwell", "12.0"),  # GeForce RTX 5070
    "2e12": ("Blackwell", "12.1"),  # GB10
}


def host(*devices: str, os: str = "debian-12", **more: Any) -> dict[str, Any]:
    name, _, version = os.partition("-")
    gpus = [{"address": f"0000:0{index + 1}:00.0", "device": device} for index, device in enumerate(devices)]
    return {**BARE, "os_id": name, "os_version": version, "nvidia_gpus": gpus, **more}


def decide(
    *devices: str, cuda: dict[str, Any] | None = None, site: dict[str, Any] | None = None, **more: Any
) -> dict[str, Any]:
    return nvidia_driver.decide(
        host(*devices, **more), {**SITE, **(site or {})}, CUDA_13 if cuda is None else cuda, TABLES
    )


def short(plan: dict[str, Any]) -> tuple[int, str, str] | str:
    return plan["code"] if plan["action"] == "refuse" else (plan["branch"], plan["flavour"], plan["source"])


def choose(built: list[dict[str, Any]], *devices: str, site: dict[str, Any] | None = None, **more: Any) -> Any:
    """The ``cuda`` of the wheels that are chosen, or the code of the refusal."""
    manifests = [{"release": str(index), "cuda": cuda} for index, cuda in enumerate(built)]
    chosen = nvidia_driver.choose(manifests, host(*devices, **more), {**SITE, **(site or {})}, TABLES)
    return chosen["wheels"]["cuda"] if chosen["wheels"] else chosen["code"]


@pytest.mark.parametrize("device", RECORDED)
def test_a_pci_id_tells_the_generation(device: str) -> None:
    (gpu,) = decide(device)["gpus"]

    assert (gpu["name"], gpu["compute"]) == RECORDED[device]


def test_id_ranges_do_not_overlap() -> None:
    ranges = sorted(
        tuple(int(part, 16) for part in ids.split("-")) for row in TABLES["generations"] for ids in row["ids"]
    )

    assert all(first[1] < second[0] for first, second in itertools.pairwise(ranges))
    assert all(first <= last for first, last in ranges)


def test_a_host_without_gpu_is_left_alone() -> None:
    assert decide()["action"] == "none"


@pytest.mark.parametrize(
    ("os", "device", "cuda", "expected"),
    [
        ("debian-12", "2204", CUDA_13, (580, "open", "nvidia")),
        ("debian-12", "2204", CUDA_12, (535, "proprietary", "distribution")),
        ("debian-12", "1b06", CUDA_12, (535, "proprietary", "distribution")),
        ("debian-12", "2331", CUDA_12, (535, "proprietary", "distribution")),
        ("debian-12", "2b85", CUDA_12, (580, "open", "nvidia")),
        ("debian-12", "1b06", {}, (535, "proprietary", "distribution")),
        ("debian-13", "2204", CUDA_13, (620, "open", "nvidia")),
        ("debian-13", "2204", CUDA_12, (550, "proprietary", "distribution")),
        ("debian-13", "2b85", CUDA_12, (620, "open", "nvidia")),
        ("debian-13", "1db4", CUDA_12, (550, "proprietary", "distribution")),
        ("ubuntu-24.04", "2b85", CUDA_13, (580, "open", "distribution")),
        ("ubuntu-24.04", "1b38", CUDA_12, (580, "proprietary", "distribution")),
        ("rhel-9.7", "2331", CUDA_13, (580, "open", "nvidia")),
        ("rocky-10.1", "26b9", CUDA_13, (580, "open", "nvidia")),
        ("almalinux-9.6", "1db4", CUDA_12, (580, "proprietary", "nvidia")),
        ("debian-12", "1b06", CUDA_13, "gpu_not_in_wheels"),
        ("debian-12", "2e12", CUDA_13, "gpu_not_in_wheels"),
        ("debian-12", "2e12", {**CUDA_13, "architectures": ["121a"]}, (580, "open", "nvidia")),
        ("debian-12", "3182", CUDA_13, (580, "open", "nvidia")),
        ("debian-12", "3182", {**CUDA_13, "architectures": ["90"]}, "gpu_not_in_wheels"),
        ("debian-12", "3182", {**CUDA_13, "architectures": ["90"], "ptx": ["90"]}, (580, "open", "nvidia")),
        ("debian-12", "102d", {}, "no_driver_for_gpu"),
        ("debian-13", "2331", {**CUDA_13, "least_driver": "999.1"}, "no_driver_for_gpu"),
        ("debian-12", "3000", CUDA_13, "gpu_unknown"),
    ],
)
def test_the_driver_follows_from_gpu_distribution_and_cuda(
    os: str, device: str, cuda: dict[str, Any], expected: Any
) -> None:
    assert short(decide(device, os=os, cuda=cuda)) == expected


def test_one_kind_of_modules_drives_gpus_of_several_generations() -> None:
    assert short(decide("1b06", "2204", cuda=CUDA_12, site={"source": "nvidia"})) == (580, "proprietary", "nvidia")
    assert short(decide("2204", "2684", "2331")) == (580, "open", "nvidia")


def test_a_mix_that_no_driver_drives_is_refused_with_each_reason() -> None:
    plan = decide("1b06", "2b85", cuda=CUDA_12)

    assert plan["code"] == "gpu_mix"
    assert "535 (its own) does not drive 0000:02:00.0 (10de:2b85, Blackwell)" in plan["message"]
    assert (
        "0000:01:00.0 (10de:1b06, Pascal) needs proprietary; 0000:02:00.0 (10de:2b85, Blackwell) needs open"
        in plan["message"]
    )


@pytest.mark.parametrize(
    ("site", "expected"),
    [
        ({"branch": 595}, (595, "open", "nvidia")),
        ({"branch": 580, "flavour": "proprietary"}, (580, "proprietary", "nvidia")),
        ({"branch": 620, "flavour": "proprietary"}, "no_driver_for_gpu"),
        ({"branch": 550}, "no_such_driver"),
        ({"source": "distribution"}, "no_driver_for_gpu"),
        ({"source": "nvidia"}, (580, "open", "nvidia")),
    ],
)
def test_the_site_may_choose_otherwise(site: dict[str, Any], expected: Any) -> None:
    assert short(decide("2204", site=site)) == expected


def test_debian_13_has_nothing_of_nvidias_before_590() -> None:
    assert short(decide("2204", os="debian-13", site={"branch": 580})) == "no_such_driver"
    assert short(decide("2204", os="debian-13", site={"branch": 595})) == (595, "open", "nvidia")


def test_a_gpu_newer_than_the_table_needs_a_decision_of_the_site() -> None:
    plan = decide("3000", site={"branch": 620, "flavour": "open"})

    assert short(plan) == (620, "open", "nvidia")


@pytest.mark.parametrize("flavour", ["open", "proprietary"])
def test_a_gpu_newer_than_the_table_keeps_the_driver_that_it_has(flavour: str) -> None:
    there: dict[str, Any] = {"loaded": "640.10.01", "loaded_flavour": flavour}

    assert decide("3000", **there)["action"] == "keep"
    assert decide("3000", site={"install": False}, **there)["action"] == "keep"
    assert short(decide("3000", site={"install": False})) == "no_driver"
    assert short(decide("3000", loaded="535.54.03", loaded_flavour=flavour)) == "driver_of_others"


@pytest.mark.parametrize(
    ("loaded", "flavour", "expected"),
    [
        ("580.126.09", "open", "keep"),
        ("595.58.03", "proprietary", "keep"),
        ("580.65.05", "open", "refuse"),
        ("535.261.03", "proprietary", "refuse"),
    ],
)
def test_a_driver_of_others_is_left_where_it_does(loaded: str, flavour: str, expected: str) -> None:
    assert decide("2204", loaded=loaded, loaded_flavour=flavour, library=loaded)["action"] == expected


@pytest.mark.parametrize(
    ("there", "site", "why"),
    [
        ({"loaded": "535.261.03", "loaded_flavour": "open"}, {}, "needs driver 580.65.06, this is 535.261.03"),
        ({"loaded": "595.58.03", "loaded_flavour": "open"}, {"branch": 580}, "nvidia_driver_branch or"),
        ({"loaded": "595.58.03", "loaded_flavour": "open"}, {"flavour": "proprietary"}, "asks for another"),
        ({"module_packages": ["nvidia-kernel-dkms"]}, {}, "(nvidia-kernel-dkms): No NVIDIA driver is loaded"),
    ],
)
def test_a_driver_of_others_is_replaced_only_where_the_site_says_so(
    there: dict[str, Any], site: dict[str, Any], why: str
) -> None:
    plan = decide("2204", site=site, **there)

    assert plan["code"] == "driver_of_others"
    assert why in plan["message"]
    assert "nvidia_driver_replace: true" in plan["what_to_do"]
    assert decide("2204", site={**site, "replace": True}, **there)["action"] == "install"
    assert decide("2204", site=site, ours=True, **there)["action"] == "install"


def test_our_own_driver_stays_ours() -> None:
    there: dict[str, Any] = {"loaded": "580.126.09", "loaded_flavour": "open", "library": "580.126.09", "ours": True}

    assert decide("2204", **there)["action"] == "install"
    assert decide("2204", site={"install": False}, **there)["action"] == "keep"
    assert short(decide("2204", site={"install": False, "branch": 595}, **there)) == "driver_does_not_fit"


@pytest.mark.parametrize(
    ("there", "code"),
    [
        ({}, "no_driver"),
        ({"loaded": "535.261.03", "loaded_flavour": "proprietary"}, "driver_too_old"),
        ({"loaded": "590.48.01", "loaded_flavour": "open"}, None),
    ],
)
def test_a_site_that_installs_drivers_itself_is_told_what_is_missing(there: dict[str, Any], code: str | None) -> None:
    plan = decide("2204", site={"install": False}, **there)

    assert plan.get("code") == code
    assert (plan["action"] == "keep") == (code is None)


def test_open_modules_of_others_do_not_drive_what_is_older_than_turing() -> None:
    there: dict[str, Any] = {"loaded": "580.126.09", "loaded_flavour": "open"}
    plan = decide("1b06", cuda=CUDA_12, site={"install": False}, **there)

    assert plan["code"] == "driver_does_not_fit"
    assert "10de:1b06, Pascal" in plan["message"]


def test_what_the_run_installer_left_cannot_be_replaced_by_packages() -> None:
    plan = decide("2204", installer=True, loaded="535.54.03", loaded_flavour="proprietary")

    assert plan["code"] == "driver_of_installer"
    assert "nvidia-uninstall" in plan["what_to_do"]


@pytest.mark.parametrize(
    ("os", "enrolled", "expected"),
    [
        ("debian-12", False, "secure_boot"),
        ("debian-12", True, (580, "open", "nvidia")),
        ("ubuntu-24.04", False, (580, "open", "distribution")),
    ],
)
def test_secure_boot_wants_signed_modules(os: str, enrolled: bool, expected: Any) -> None:
    plan = decide("2204", os=os, secure_boot=True, signing_key_enrolled=enrolled)

    assert short(plan) == expected
    if expected == "secure_boot":
        assert "mokutil --import /var/lib/dkms/mok.pub" in plan["what_to_do"]


def wheels(runtime: str, *architectures: str, ptx: str = "") -> dict[str, Any]:
    least = {"12": "525.60.13", "13": "580.65.06"}[runtime[:2]]
    return {"runtime": runtime, "least_driver": least, "architectures": [*architectures], "ptx": ptx.split()}


AMPERE, ADA, BOTH = wheels("13.0", "86"), wheels("13.0", "89"), wheels("13.0", "86", "89")
EVERY = wheels("13.0", "75", "80", "86", "89", "90", "120a", ptx="90")
PASCAL, OLDER_AMPERE, OLDER_BOTH = wheels("12.9", "61"), wheels("12.9", "86"), wheels("12.9", "61", "86")


@pytest.mark.parametrize(
    ("devices", "built", "chosen"),
    [
        (["2204"], [EVERY, ADA, AMPERE, BOTH], AMPERE),
        (["2684"], [AMPERE, EVERY, BOTH, ADA], ADA),
        (["2204", "2684"], [EVERY, AMPERE, ADA, BOTH], BOTH),
        # Code for 8.6 runs on 8.9, and its own is better.
        (["2684"], [AMPERE, EVERY], EVERY),
        (["2684"], [AMPERE], AMPERE),
        # B300: PTX is compiled at the first start, code for 10.0 runs at once.
        (["3182"], [EVERY, wheels("13.0", "100")], wheels("13.0", "100")),
        (["3182"], [wheels("13.0", "120a"), EVERY], EVERY),
        # CUDA 12 for what needs it.
        (["1b06"], [EVERY, PASCAL, OLDER_BOTH], PASCAL),
        (["1b06", "2204"], [EVERY, PASCAL, AMPERE, OLDER_BOTH], OLDER_BOTH),
        (["2204"], [OLDER_AMPERE, AMPERE], AMPERE),
        (["2204"], [OLDER_AMPERE, wheels("13.1", "86"), AMPERE], wheels("13.1", "86")),
        # A host that gets its GPU later.
        ([], [AMPERE, PASCAL, EVERY], EVERY),
        # A GPU that is newer than the table can only compile PTX.
        (["3000"], [AMPERE, EVERY, BOTH], EVERY),
    ],
)
def test_a_host_gets_the_wheels_that_fit_its_gpus(devices: list[str], built: list[dict[str, Any]], chosen: Any) -> None:
    assert choose(built, *devices) == chosen
    assert choose(built[::-1], *devices) == chosen


@pytest.mark.parametrize(
    ("more", "chosen"),
    [
        ({}, AMPERE),
        ({"site": {"branch": 535}}, OLDER_AMPERE),
        ({"site": {"install": False}, "loaded": "550.163.01", "loaded_flavour": "open"}, OLDER_AMPERE),
        ({"loaded": "550.163.01", "loaded_flavour": "open"}, OLDER_AMPERE),
        ({"loaded": "595.58.03", "loaded_flavour": "open"}, AMPERE),
        # What this version installed for other wheels stays, and so does a newer one that Debian does not have.
        ({"loaded": "535.261.03", "loaded_flavour": "proprietary", "ours": True}, OLDER_AMPERE),
        ({"loaded": "580.126.09", "loaded_flavour": "open", "ours": True}, AMPERE),
        ({"loaded": "535.261.03", "loaded_flavour": "proprietary", "ours": True, "site": {"branch": 580}}, AMPERE),
    ],
)
def test_of_two_cudas_a_host_gets_the_newer_that_its_driver_is_good_for(more: dict[str, Any], chosen: Any) -> None:
    assert choose([AMPERE, OLDER_AMPERE], "2204", **more) == chosen
    assert choose([OLDER_AMPERE, AMPERE], "2204", **more) == chosen


def test_where_no_driver_can_be_had_the_decision_on_it_says_why() -> None:
    assert choose([OLDER_AMPERE, AMPERE], "2204", secure_boot=True) == AMPERE
    assert short(decide("2204", cuda=AMPERE, secure_boot=True)) == "secure_boot"


@pytest.mark.parametrize(
    ("devices", "built", "code"),
    [
        (["1b06"], [EVERY], "gpu_not_in_wheels"),
        (["1b06", "2204"], [PASCAL, AMPERE], "gpu_not_in_wheels"),
        (["2204", "2684"], [wheels("13.0", "120a")], "gpu_not_in_wheels"),
        # No wheels would help.
        (["1b06", "2b85"], [PASCAL, EVERY], "gpu_mix"),
        (["102d"], [PASCAL, EVERY], "no_driver_for_gpu"),
    ],
)
def test_gpus_without_code_are_refused(devices: list[str], built: list[dict[str, Any]], code: str) -> None:
    assert choose(built, *devices) == code


def test_the_refusal_names_the_gpus_what_there_is_and_the_command() -> None:
    manifests = [{"cuda": ADA}, {"cuda": PASCAL}]
    chosen = nvidia_driver.choose(manifests, host("2204", "1eb8", "2684"), SITE, TABLES)
    message, advice = chosen["message"], chosen["what_to_do"]

    assert message.startswith(
        "GPU 0000:01:00.0 (10de:2204, Ampere) has compute capability 8.6 and 0000:02:00.0 (10de:1eb8, Turing) has "
    )
    assert "89 with CUDA 13.0; 61 with CUDA 12.9" in message
    assert "Run `make wheelhouse-cuda` in the checkout there (for such a host alone: `make wheelhouse-cuda " in advice
    assert 'CUDA_FLAGS="--architectures 75-real;86-real;89-real"`), or set hive_cuda: false.' in advice


@pytest.mark.parametrize(
    ("devices", "together"),
    [
        (["2204"], True),
        (["1b06", "2204", "1eb8"], True),
        (["2204", "2331", "2b85", "3182"], True),
        (["1b06", "2b85"], False),
        (["102d", "2204"], True),
        (["102d", "2331"], False),
    ],
)
def test_gpus_that_no_one_driver_drives_are_known_without_a_host(devices: list[str], together: bool) -> None:
    gpus = nvidia_driver.identify(host(*devices)["nvidia_gpus"], TABLES["generations"])

    assert nvidia_driver.driven_together(gpus) == together


# One GPU of each line of the table in docs/gpu.md.
LINES = {
    "Kepler": "102d",
    "Maxwell, Pascal, Volta": "1b06",
    "Turing, Ampere, Ada, Hopper": "2204",
    "Blackwell": "2b85",
}
COLUMNS = {
    "Debian 12": "debian-12",
    "Debian 13": "debian-13",
    "Ubuntu 24.04": "ubuntu-24.04",
    "RHEL 9": "rhel-9",
    "RHEL 10": "rhel-10",
}
# What test hosts did: P with Debian's real packages, R with a repository made like NVIDIA's.
RUN = {
    ("12.9", "Turing, Ampere, Ada, Hopper", "Debian 12"): "P",
    ("12.9", "Maxwell, Pascal, Volta", "Debian 13"): "P",
    ("13.0", "Blackwell", "Debian 12"): "R",
    ("13.0", "Blackwell", "Debian 13"): "R",
}


def cell(line: str, column: str, cuda: dict[str, Any]) -> str:
    chosen = choose([cuda], LINES[line], os=COLUMNS[column])
    plan = chosen if isinstance(chosen, str) else short(decide(LINES[line], os=COLUMNS[column], cuda=cuda))
    told = f"`{plan}`" if isinstance(plan, str) else f"{plan[0]} {plan[1]}, {plan[2]}"
    mark = RUN.get((cuda["runtime"], line, column))
    return f"{told} ({mark})" if mark else told


@pytest.mark.parametrize("cuda", [CUDA_13, CUDA_12], ids=["CUDA 13", "CUDA 12"])
def test_the_documentation_has_the_table_of_decisions(cuda: dict[str, Any]) -> None:
    rows = [["GPU", *COLUMNS], ["---"] * (len(COLUMNS) + 1)]
    rows += [[line, *(cell(line, column, cuda) for column in COLUMNS)] for line in LINES]
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)

    assert table in (ROLE.parents[1] / "docs" / "gpu.md").read_text(encoding="utf-8"), f"docs/gpu.md lacks:\n{table}"


@pytest.mark.parametrize("devices", [["1380", "1b06", "1db4"], ["1e07", "20b5", "2204", "2684", "2331"]])
def test_generations_in_one_line_of_the_table_are_decided_alike(devices: list[str]) -> None:
    for release, cuda in itertools.product(
        COLUMNS.values(), (CUDA_12, {**CUDA_13, "architectures": CUDA_12["architectures"]})
    ):
        assert len({short(decide(device, os=release, cuda=cuda)) for device in devices}) == 1


@pytest.mark.parametrize(
    ("kernel", "images", "modules"),
    [
        ("6.8.0-85-generic", ["generic"], ["generic"]),
        ("6.8.0-85-generic", ["virtual"], ["generic"]),
        ("6.14.0-33-generic", ["generic-hwe-24.04"], ["generic-hwe-24.04"]),
        ("6.14.0-33-generic", ["virtual-hwe-24.04"], ["generic-hwe-24.04"]),
        ("6.14.0-33-generic", ["generic", "generic-hwe-24.04"], ["generic", "generic-hwe-24.04"]),
        ("6.8.0-1041-aws", ["aws-lts-24.04"], ["aws-lts-24.04"]),
        ("6.8.0-85-generic", [], []),
    ],
)
def test_modules_of_ubuntu_come_for_the_running_kernel_and_those_to_come(
    kernel: str, images: list[str], modules: list[str]
) -> None:
    plan = decide("2204", os="ubuntu-24.04", kernel=kernel, images=images)

    assert plan["packages"][:-3] == [
        "nvidia-headless-no-dkms-580-server-open",
        f"linux-modules-nvidia-580-server-open-{kernel}",
        *(f"linux-modules-nvidia-580-server-open-{name}" for name in modules),
    ]
    assert plan["automatic"] == ([f"linux-modules-nvidia-580-server-open-{kernel}"] if images else [])


def test_packages_are_kept_at_their_version_but_where_they_follow_the_kernel() -> None:
    assert decide("2204")["pinned"]
    assert not decide("2204", os="ubuntu-24.04")["pinned"]
    assert decide("2204", os="ubuntu-24.04", site={"source": "nvidia"})["pinned"]


def test_ubuntu_is_offered_no_branch_whose_packages_have_other_names() -> None:
    assert short(decide("2204", os="ubuntu-24.04", site={"branch": 595})) == "no_such_driver"


@pytest.mark.parametrize(
    ("kernel", "images", "headers"),
    [
        ("6.1.0-40-amd64", ["amd64"], "amd64"),
        ("6.1.0-40-amd64", [], "amd64"),
        ("6.12.48+deb13-amd64", [], "amd64"),
        ("6.12.48+deb13-cloud-amd64", [], "cloud-amd64"),
        ("6.1.0-40-rt-amd64", ["rt-amd64"], "rt-amd64"),
    ],
)
def test_headers_come_for_the_running_kernel_and_those_to_come(kernel: str, images: list[str], headers: str) -> None:
    plan = decide("2204", kernel=kernel, images=images)

    assert plan["headers"] == [f"linux-headers-{kernel}", f"linux-headers-{headers}"]


def test_headers_of_ubuntus_newer_kernels_have_a_name_of_their_own() -> None:
    plan = decide(
        "2204", os="ubuntu-24.04", site={"source": "nvidia"}, kernel="6.14.0-33-generic", images=["virtual-hwe-24.04"]
    )

    assert plan["headers"] == ["linux-headers-6.14.0-33-generic", "linux-headers-generic-hwe-24.04"]


@pytest.mark.parametrize(
    ("kernel", "headers"),
    [
        ("5.14.0-570.12.1.el9_6.x86_64", "kernel-devel-5.14.0-570.12.1.el9_6.x86_64"),
        ("5.14.0-570.12.1.el9_6.x86_64+rt", "kernel-rt-devel-5.14.0-570.12.1.el9_6.x86_64"),
        ("5.15.0-306.177.4.el9uek.x86_64", "kernel-uek-devel-5.15.0-306.177.4.el9uek.x86_64"),
    ],
)
def test_headers_of_red_hats_kernels(kernel: str, headers: str) -> None:
    assert decide("2204", os="ol-9.6", kernel=kernel)["headers"] == [headers]


# As `apt-cache policy` says it: one installed and of another branch, one that is there in two, one without a branch in
# its version, one whose archive is gone, and headers; what apt does not know it says nothing of.
POLICY = """nvidia-kernel-open-dkms:
  Installed: 595.58.03-1
  Candidate: 595.58.03-1
  Version table:
     620.10.01-1 500
        500 http://mirror.example.com/debian12/x86_64  Packages
 *** 595.58.03-1 1001
        500 http://mirror.example.com/debian12/x86_64  Packages
        100 /var/lib/dpkg/status
     580.126.09-1 500
        500 http://mirror.example.com/debian12/x86_64  Packages
nvidia-driver-cuda:
  Installed: (none)
  Candidate: 620.10.01-1
  Version table:
     620.10.01-1 500
        500 http://mirror.example.com/debian12/x86_64  Packages
     580.126.09-1 500
        500 http://mirror.example.com/debian12/x86_64  Packages
nvidia-persistenced:
  Installed: 580.82.07-1
  Candidate: 580.126.09-1
  Version table:
     580.126.09-1 500
        500 http://mirror.example.com/debian12/x86_64  Packages
 *** 580.82.07-1 100
        100 /var/lib/dpkg/status
nvidia-modprobe:
  Installed: (none)
  Candidate: 1.0-1
  Version table:
     1.0-1 500 (phased 20%)
        500 http://mirror.example.com/debian12/x86_64  Packages
linux-headers-amd64:
  Installed: (none)
  Candidate: 6.1.153-1
  Version table:
     6.1.153-1 500
        500 http://mirror.example.com/debian12 bookworm/main amd64 Packages
"""


def test_apt_is_asked_for_the_branch_where_another_is_there_or_none() -> None:
    offered = nvidia_driver_apt.offered_by_apt(POLICY, decide("2204", site={"branch": 580}))

    assert offered == {
        "offered": True,
        "missing": [],
        "wanted": [
            "nvidia-kernel-open-dkms=580.*", "nvidia-driver-cuda=580.*", "nvidia-persistenced", "nvidia-modprobe",
            "linux-headers-amd64",
        ],
        "headers": ["linux-headers-amd64"],
    }  # fmt: skip


def test_what_apt_lacks_is_named() -> None:
    assert not nvidia_driver_apt.offered_by_apt(POLICY, decide("2204", site={"branch": 590}))["offered"]

    plan = decide("2204", os="ubuntu-24.04", kernel="6.8.0-85-generic", images=["generic"])
    modules = "linux-modules-nvidia-580-server-open"
    known = [name for name in plan["packages"] if name != f"{modules}-6.8.0-85-generic"]
    policy = "".join(
        f"{name}:\n  Installed: (none)\n  Candidate: 580.1-0\n  Version table:\n     580.1-0 500\n" for name in known
    )
    assert nvidia_driver_apt.offered_by_apt(policy, plan) == {
        "offered": True, "missing": [f"{modules}-6.8.0-85-generic"], "wanted": plan["packages"], "headers": [],
    }  # fmt: skip


def test_every_repository_of_nvidias_is_known_by_the_fingerprint_of_its_key() -> None:
    for offers in TABLES["offers"].values():
        for offer in offers:
            assert offer["source"] == "distribution" or re.fullmatch("[0-9A-F]{40}", offer["fingerprint"])
            key = offer.get("key", "").removesuffix(".pub").upper()
            assert offer.get("fingerprint", "").endswith(key)


def test_signed_modules_need_no_headers() -> None:
    assert decide("2204", os="ubuntu-24.04", kernel="6.8.0-85-generic")["headers"] == []


def test_every_offer_has_packages_of_both_kinds() -> None:
    for release, offers in TABLES["offers"].items():
        for offer in offers:
            packages = TABLES["packages"][f"{release.partition('-')[0]}-{offer['source']}"]
            assert set(packages) == {"open", "proprietary"}


def test_the_role_supports_what_preflight_supports() -> None:
    supported = yaml.safe_load((ROLE.parent / "preflight" / "vars" / "main.yml").read_text())["_preflight_supported"]

    for name, versions in supported.items():
        for version in versions:
            assert decide("2204", os=f"{name}-{version}")["action"] == "install", f"{name} {version}"


def probe(record: Path, **environment: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(ROLE / "files" / "probe.py"), str(record)],
        capture_output=True, text=True, check=True, timeout=60, env={**os.environ, **environment},
    )  # fmt: skip
    return json.loads(done.stdout)


def test_the_probe_answers_all_that_the_decision_asks(tmp_path: Path) -> None:
    found = probe(tmp_path / "record")

    assert set(found) >= set(BARE)
    assert (found["ours"], found["brought"]) == (False, [])


def test_the_probe_reads_what_came_with_the_driver(tmp_path: Path) -> None:
    (tmp_path / "record").write_text("# Written by a test\ndkms\nnvidia-smi\n")

    found = probe(tmp_path / "record")

    assert (found["ours"], found["brought"]) == (True, ["dkms", "nvidia-smi"])


# Status, name and what it depends on; dpkg's own command is given other names to choose from than in its database.
INSTALLED = """ii |nvidia-kernel-dkms|dkms
hi |nvidia-dkms-580-server-open|dkms
rc |nvidia-open-kernel-dkms|dkms
un |nvidia-kernel-open-dkms|
ii |nvidia-fs-dkms|dkms
ii |nvidia-headless-no-dkms-580-server|
ii |firmware-nvidia-graphics|
ii |libnvidia-container1|libc6
ii |linux-image-generic-hwe-24.04|linux-image-6.14.0-33-generic, linux-firmware
ii |linux-image-6.14.0-33-generic|kmod, linux-base, linux-modules-6.14.0-33-generic
ii |linux-image-amd64|linux-image-6.1.0-40-amd64 (= 6.1.153-1)
"""


def test_the_probe_finds_packages_with_modules_and_those_that_bring_kernels(tmp_path: Path) -> None:
    query = tmp_path / "dpkg-query"
    query.write_text(
        f"#!{sys.executable}\nimport fnmatch, sys\nassert sys.argv[1] == '--show'\n"
        f"for line in {INSTALLED!r}.splitlines():\n"
        "    if any(fnmatch.fnmatch(line.split('|')[1], word) for word in sys.argv[3:]): print(line)\n"
    )
    query.chmod(0o755)

    found = probe(tmp_path / "record", PATH=f"{tmp_path}:{os.environ['PATH']}")

    assert found["module_packages"] == ["nvidia-dkms-580-server-open", "nvidia-kernel-dkms"]
    assert found["images"] == ["generic-hwe-24.04", "amd64"]
