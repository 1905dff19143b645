"""Bring the installed NVIDIA driver up without a reboot, or say why one is needed. Runs on the host, as root.

Arguments: the version that should run ("" takes any), the file that keeps nouveau away, `--check` to change nothing,
`--reload` to load the installed driver anew whichever runs.
Prints {"did": [...], "loaded": "535.261.03", "reboot": "why, or empty", "problem": "what failed, or empty"}.
"""

import json
import os
import re
import shutil
import subprocess
import sys

MODULES = ("nvidia_uvm", "nvidia_peermem", "nvidia_drm", "nvidia_modeset", "nvidia")
PERSISTENCED = "nvidia-persistenced.service"
LOADED = "/sys/module"
KERNELS = "/lib/modules"
BOOT = "/boot"
COMMAND_TIMEOUT_S = 600
# All kernels of a host, on a slow disk.
INITRAMFS_TIMEOUT_S = 1800


def read(path):
    """The file's text, "" where it is not there."""
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return ""


def loaded():
    """Version of the kernel modules that run now, "" where none does."""
    return read(os.path.join(LOADED, "nvidia", "version"))


def is_loaded(name):
    """Whether the kernel has this module."""
    return os.path.isdir(os.path.join(LOADED, name))


def by_number(kernel):
    """A key that sorts 6.1.0-9 before 6.1.0-40."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.findall(r"\d+|\D+", kernel)]


def initramfs_of(kernel):
    """The kernel's initramfs by the name that its distribution gives it, None where it has none."""
    for name in ("initrd.img-" + kernel, "initramfs-%s.img" % kernel):
        if os.path.exists(os.path.join(BOOT, name)):
            return os.path.join(BOOT, name)
    return None


def initramfs_is_old(conf, running):
    """Whether one that may boot next was made before the file that keeps nouveau out of it.

    Those are the running kernel's and the newest's. Images for rescue and for dumps are never made anew.
    """
    kernels = [kernel for kernel in os.listdir(KERNELS) if initramfs_of(kernel)] if os.path.isdir(KERNELS) else []
    chosen = {running, max(kernels, key=by_number)} if kernels else {running}
    images = [image for image in map(initramfs_of, chosen) if image]
    return any(os.path.getmtime(image) < os.path.getmtime(conf) for image in images)


class Steps:
    """Runs commands and remembers which; in check mode only remembers."""

    def __init__(self, check):
        self.check = check
        self.did = []
        self.said = ""

    def run(self, *command, timeout=COMMAND_TIMEOUT_S):
        """Whether the command succeeded within so many seconds; in check mode it always does."""
        self.did.append(" ".join(command))
        return self.check or self.ask(*command, timeout=timeout)

    def ask(self, *command, timeout=COMMAND_TIMEOUT_S):
        """Whether a command succeeds that changes nothing."""
        if shutil.which(command[0]) is None:
            return False
        try:
            done = subprocess.run(command, capture_output=True, timeout=timeout)
        except subprocess.TimeoutExpired:
            return False
        self.said = done.stderr.decode(errors="replace").strip()[-300:]
        return done.returncode == 0


def rebuild_initramfs(steps):
    """Make each initramfs anew, by the tool that this distribution has. Whether it did, or there is nothing to do."""
    if shutil.which("update-initramfs"):
        return steps.run("update-initramfs", "-u", "-k", "all", timeout=INITRAMFS_TIMEOUT_S)
    if shutil.which("dracut"):
        return steps.run("dracut", "--force", "--regenerate-all", timeout=INITRAMFS_TIMEOUT_S)
    return True


def in_use(name):
    """Whether anything but the driver's other modules uses this one."""
    holders = os.path.join(LOADED, name, "holders")
    others = [holder for holder in (os.listdir(holders) if os.path.isdir(holders) else []) if holder in MODULES]
    return int(read(os.path.join(LOADED, name, "refcnt")) or 0) > len(others)


def unload(steps, names):
    """Unload those of the modules that are loaded. Whether all went."""
    return all(steps.run("modprobe", "-r", name) for name in names if is_loaded(name))


def make_way(steps):
    """Unload the driver that runs. Whether it went; where it did not, what served GPUs before serves on."""
    served = steps.ask("systemctl", "is-active", "--quiet", PERSISTENCED)
    there = [name for name in MODULES if is_loaded(name)]
    if served:
        steps.run("systemctl", "stop", PERSISTENCED)
    # Asked first: a module of the old driver that went cannot come back beside the others.
    if not any(in_use(name) for name in there) and unload(steps, there):
        return True
    for name in reversed(there):
        if not is_loaded(name):
            steps.run("modprobe", name)
    if served:
        steps.run("systemctl", "start", PERSISTENCED)
    return False


def bring_up(steps, wanted):
    """Load the driver. Why a reboot is needed, or ""."""
    running = loaded()
    if running and wanted in ("", running):
        return ""
    if running and not make_way(steps):
        return "driver %s runs and is in use, %s is installed" % (running, wanted)
    if not unload(steps, ["nouveau"]):
        return "the driver nouveau holds the GPU"
    if not steps.run("modprobe", "nvidia"):
        return "the kernel module nvidia cannot be loaded yet"
    if not steps.check and loaded() == "":
        return "the kernel module nvidia was loaded and drives nothing"
    # It could not start when it was installed, before there was anything to drive.
    steps.run("systemctl", "restart", PERSISTENCED)
    return ""


def reload(steps):
    """Load the installed driver anew, with the modules that ran. Why a reboot is needed, and what failed, or ""."""
    there = [name for name in MODULES if is_loaded(name)]
    if there and not make_way(steps):
        return {"reboot": "it is in use", "problem": ""}
    for name in dict.fromkeys(["nvidia", "nvidia_uvm", *reversed(there)]):
        if not steps.run("modprobe", name):
            return {"reboot": "", "problem": "the kernel module %s cannot be loaded: %s" % (name, steps.said)}
    steps.run("nvidia-modprobe", "-u", "-c0")
    return {"reboot": "", "problem": ""}


def main():
    """Do it and print what was done."""
    wanted, conf = sys.argv[1], sys.argv[2]
    steps = Steps("--check" in sys.argv[3:])
    found = {"reboot": "", "problem": ""}
    if "--reload" in sys.argv[3:]:
        found = reload(steps)
    elif os.path.exists(conf) and initramfs_is_old(conf, os.uname().release) and not rebuild_initramfs(steps):
        found["problem"] = "`%s` failed or took longer than %d s" % (steps.did[-1], INITRAMFS_TIMEOUT_S)
    else:
        found["reboot"] = bring_up(steps, wanted)
    print(json.dumps({"did": steps.did, "loaded": loaded(), **found}))


if __name__ == "__main__":
    main()
