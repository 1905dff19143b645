"""Print as JSON what decides whether this host can be used. Runs on the host, with its own Python (3.9 and newer).

Arguments: the paths whose free disk space is asked for.
"""

import glob
import json
import os
import platform
import re
import shutil
import subprocess
import sys

INTERPRETERS = ("python3", "python3.14", "python3.13", "python3.12", "python3.11")
QUESTION = (
    "import sys; import ctypes, sqlite3, ssl, venv; "
    "print('%d.%d' % sys.version_info[:2], sys.implementation.name, hasattr(sys, 'abiflags') and 't' in sys.abiflags)"
)


def os_release():
    """The distribution's own words about itself."""
    words = {}
    with open("/etc/os-release") as file:
        for line in file:
            key, _, value = line.strip().partition("=")
            words[key] = value.strip("\"'")
    return words


def pythons():
    """Whole interpreters of 3.11 or newer, the system's own first."""
    found, asked = {}, set()
    for name in INTERPRETERS:
        path = shutil.which(name, path="/usr/bin:/usr/local/bin")
        if path is None or os.path.realpath(path) in asked:
            continue
        asked.add(os.path.realpath(path))
        done = subprocess.run([path, "-I", "-c", QUESTION], capture_output=True, text=True)
        answer = done.stdout.split()
        if done.returncode == 0 and answer[1:] == ["cpython", "False"]:
            series = tuple(int(part) for part in answer[0].split("."))
            if series >= (3, 11):
                found.setdefault(answer[0], path)
    return [{"series": series, "path": path} for series, path in found.items()]


def newest_symbol(pattern, prefix):
    """The highest version name that a library of the host offers, "0" where there is no such library."""
    newest = (0,)
    for path in glob.glob(pattern):
        with open(path, "rb") as file:
            for name in re.findall(prefix + rb"_([0-9.]+)\x00", file.read()):
                newest = max(newest, tuple(int(part) for part in name.decode().split(".")))
    return ".".join(str(part) for part in newest)


def free_bytes(path):
    """Free bytes for a file below the path, which need not be there yet."""
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return shutil.disk_usage(path).free


def firewalls():
    """Firewalls that are active and that ports have to be opened in."""
    active = []
    try:
        with open("/etc/ufw/ufw.conf") as file:
            if re.search(r"^ENABLED=yes", file.read(), re.MULTILINE) and shutil.which("ufw"):
                active.append("ufw")
    except OSError:
        pass
    state = ["firewall-cmd", "--state"]
    if shutil.which(state[0]) and subprocess.run(state, capture_output=True).returncode == 0:
        active.append("firewalld")
    return active


def nvidia_gpus():
    """NVIDIA's display controllers on the PCI bus, which need no driver to be seen; ids are hexadecimal.

    Virtual functions and what vfio-pci holds are for virtual machines: this host's driver shows none of them.
    """
    found = []
    for folder in sorted(glob.glob("/sys/bus/pci/devices/*")):
        ids = {}
        for name in ("vendor", "device", "class"):
            with open(os.path.join(folder, name)) as file:
                ids[name] = file.read().strip()[2:]
        given_away = os.path.basename(os.path.realpath(os.path.join(folder, "driver"))) == "vfio-pci"
        given_away = given_away or os.path.exists(os.path.join(folder, "physfn"))
        if ids["vendor"] == "10de" and ids["class"].startswith("03") and not given_away:
            found.append({"address": os.path.basename(folder), "device": ids["device"]})
    return found


def processor_features():
    """What the processor, or the hypervisor above it, says it has; as /proc/cpuinfo names them."""
    with open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("flags"):
                return sorted(line.partition(":")[2].split())
    return []


def main():
    """Answer all questions in one go: each task costs a round trip."""
    release = os_release()
    with open("/proc/meminfo") as file:
        memory = int(file.readline().split()[1]) * 1024
    print(
        json.dumps(
            {
                "os_id": release.get("ID", ""),
                "os_version": release.get("VERSION_ID", ""),
                "os_name": release.get("PRETTY_NAME", release.get("ID", "unknown")),
                "arch": platform.machine(),
                "processor_features": processor_features(),
                "systemd": os.path.isdir("/run/systemd/system"),
                "glibc": platform.libc_ver()[1] or "0",
                "glibcxx": newest_symbol("/usr/lib*/libstdc++.so.6", rb"GLIBCXX")
                if glob.glob("/usr/lib*/libstdc++.so.6")
                else newest_symbol("/usr/lib/*/libstdc++.so.6", rb"GLIBCXX"),
                "memory_bytes": memory,
                "free_bytes": {path: free_bytes(path) for path in sys.argv[1:]},
                "pythons": pythons(),
                "firewalls": firewalls(),
                "nvidia_gpus": nvidia_gpus(),
            }
        )
    )


main()
