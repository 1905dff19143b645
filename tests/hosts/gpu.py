"""An NVIDIA GPU for a test host: on its PCI bus at once, behind its driver once one is installed and booted.

There is no such hardware here, so the host is shown what a kernel would show: folders in /sys, and, from the first boot
with a driver's packages on, the version of a loaded module and an NVML that answers. The packages, their files and
the boot are real.
"""

from __future__ import annotations

import base64
import io
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.support import nvml

from .host import Host

TOP = "usr/local/lib/gpu-for-tests"
UNIT = """[Unit]
DefaultDependencies=no
After=local-fs.target
Before=sysinit.target

[Service]
Type=oneshot
ExecStart=/{top}/appear

[Install]
WantedBy=sysinit.target
"""
# A module counts as loaded where its package is there at boot: that is when a kernel would load it.
APPEAR = """#!/bin/sh -e
mount --bind /{top}/pci /sys/bus/pci/devices
library=$(readlink -e /usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1) || exit 0
version=${{library##*.so.}}
ls -d /usr/src/nvidia*-"$version" > /dev/null
mount -o remount,rw /sys
mkdir -p /sys/module/nvidia
echo "$version" > /sys/module/nvidia/version
mount -o remount,ro /sys
sed -i '/^driver /d' /{top}/gpus
echo "driver $version" >> /{top}/gpus
mount --bind /{top}/libnvidia-ml.so.1 "$library"
"""


def give(host: Host, devices: Sequence[str]) -> None:
    """Put GPUs of these PCI device ids ("2204") into a running host. Raises HostsError where it does not take them."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, content, mode in _files(devices):
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), mode
            archive.addfile(info, io.BytesIO(content))
    host.run(
        f"base64 --decode | tar --extract --directory=/ && systemctl enable --now {Path(TOP).name}.service",
        stdin=base64.b64encode(packed.getvalue()).decode(),
        check=True,
    )


def take(host: Host) -> None:
    """Take a host's GPUs out again, and all that made it believe in them."""
    name = Path(TOP).name
    library = "/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1"
    host.run(
        # The agent still has the library open.
        f"systemctl disable {name}.service && umount --lazy $(readlink -e {library}) /sys/bus/pci/devices && "
        f"rm -r /{TOP} /etc/systemd/system/{name}.service && systemctl daemon-reload && "
        "mount -o remount,rw /sys && rm -rf /sys/module && mount -o remount,ro /sys",
        check=True,
    )


def _files(devices: Sequence[str]) -> list[tuple[str, bytes, int]]:
    with tempfile.TemporaryDirectory() as folder:
        fake = nvml.FakeNvml(Path(folder), f"/{TOP}/gpus")
        fake.set(*(nvml.gpu(index) for index in range(len(devices))))
        files = [
            (f"{TOP}/libnvidia-ml.so.1", fake.library.read_bytes(), 0o755),
            (f"{TOP}/gpus", fake.state.read_bytes(), 0o644),
        ]
    for index, device in enumerate(devices):
        slot = f"{TOP}/pci/0000:0{index + 1}:00.0"
        for name, value in {"vendor": "0x10de", "device": f"0x{device}", "class": "0x030200"}.items():
            files.append((f"{slot}/{name}", f"{value}\n".encode(), 0o644))
    files.append((f"{TOP}/appear", APPEAR.format(top=TOP).encode(), 0o755))
    files.append((f"etc/systemd/system/{Path(TOP).name}.service", UNIT.format(top=TOP).encode(), 0o644))
    return files
