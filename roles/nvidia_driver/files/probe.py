"""Print as JSON what decides which NVIDIA driver this host gets. Runs on the host, with its own Python (3.9 and newer).

Argument: the file in which an earlier run of this role noted what it installed.
"""

import glob
import json
import os
import re
import shutil
import subprocess
import sys

SECURE_BOOT = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
LIBRARIES = ("/usr/lib/*-linux-gnu/libnvidia-ml.so.1", "/usr/lib64/libnvidia-ml.so.1", "/usr/lib/libnvidia-ml.so.1")
# DKMS signs what it builds with this key; Ubuntu's keeps its own elsewhere.
SIGNING_KEYS = ("/var/lib/dkms/mok.pub", "/var/lib/shim-signed/mok/MOK.der")

# Packages that carry a driver's kernel modules: those of distributions, of NVIDIA and of others.
MODULES = r"nvidia-dkms.*|nvidia-.*kernel.*-dkms|linux-modules-nvidia-.*|a?kmod-nvidia.*|dkms-nvidia.*"


def read(path):
    """The file's text, "" where it is not there."""
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


def loaded():
    """Version and flavour of the kernel modules that run now, empty where none does."""
    version = read("/sys/module/nvidia/version").strip()
    if not version:
        return "", ""
    return version, "open" if "Open Kernel Module" in read("/proc/driver/nvidia/version") else "proprietary"


def library():
    """Version of the NVML that programs load, "" where there is none."""
    for pattern in LIBRARIES:
        for path in glob.glob(pattern):
            name = os.path.basename(os.path.realpath(path))
            found = re.search(r"\.so\.(\d+(?:\.\d+)+)$", name)
            if found:
                return found[1]
    return ""


def secure_boot():
    """Whether the firmware lets only signed modules in."""
    try:
        with open(SECURE_BOOT, "rb") as file:
            return file.read()[-1:] == b"\x01"
    except OSError:
        return False


def signing_key_enrolled():
    """Whether the firmware trusts the key by which this host signs modules that it builds."""
    for key in SIGNING_KEYS:
        if shutil.which("mokutil") and os.path.isfile(key):
            done = subprocess.run(["mokutil", "--test-key", key], capture_output=True, text=True, timeout=30)
            if "already enrolled" in done.stdout + done.stderr:
                return True
    return False


def archives():
    """Where this host gets Debian's main part from: [{"uri", "suite", "signed_by"}], empty on other distributions."""
    if not shutil.which("apt-get"):
        return []
    fields = "$(REPO_URI)|$(CODENAME)|$(SIGNED_BY)|$(COMPONENT)|$(ORIGIN)"
    command = ["apt-get", "indextargets", "--format", fields, "Created-By: Packages"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    lines = [line.split("|") for line in done.stdout.splitlines()]
    found = sorted({tuple(line[:3]) for line in lines if line[3:] == ["main", "Debian"]})
    return [{"uri": uri, "suite": suite, "signed_by": signed_by} for uri, suite, signed_by in found]


def packages(*patterns):
    """Fields of each package that is there and whose name matches, [name, what it depends on]."""
    if shutil.which("dpkg-query"):
        command = ["dpkg-query", "--show", "--showformat=${db:Status-Abbrev}|${Package}|${Depends}\n"]
    else:
        command = ["rpm", "--query", "--all", "--queryformat=ii|%{NAME}|\n"]
    done = subprocess.run(command + list(patterns), capture_output=True, text=True, timeout=60)
    lines = [line.split("|", 2) for line in done.stdout.splitlines()]
    # The second letter: n is not installed, c is nothing but its settings.
    return [line[1:] for line in lines if line[0][1] not in "nc"]


def module_packages():
    """Names of packages with a driver's kernel modules, loaded or not."""
    names = {name for name, _ in packages("*nvidia*")}
    return sorted(name for name in names if re.fullmatch(MODULES, name))


def images():
    """How the packages go on that bring newer kernels, such as generic-hwe-24.04 of linux-image-generic-hwe-24.04."""
    return [
        name[len("linux-image-") :]
        for name, depends in packages("linux-image-*")
        if re.search(r"(^|, )linux-image-[0-9]", depends)
    ]


def brought(record):
    """Packages that came with the driver when this role installed it."""
    return [line for line in read(record).splitlines() if not line.startswith("#")]


def main():
    """Answer all questions in one go: each task costs a round trip."""
    version, flavour = loaded()
    kernel = os.uname().release
    print(
        json.dumps(
            {
                "kernel": kernel,
                "kernel_headers": os.path.isdir("/lib/modules/%s/build" % kernel),
                "loaded": version,
                "loaded_flavour": flavour,
                "library": library(),
                "nouveau": os.path.isdir("/sys/module/nouveau"),
                "secure_boot": secure_boot(),
                "signing_key_enrolled": signing_key_enrolled(),
                "installer": os.path.exists("/usr/bin/nvidia-uninstall"),
                "archives": archives(),
                "module_packages": module_packages(),
                "images": images(),
                "ours": os.path.exists(sys.argv[1]),
                "brought": brought(sys.argv[1]),
            }
        )
    )


main()
