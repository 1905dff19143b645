"""Bring the installed NVIDIA driver up without a reboot, or say why one is needed. Runs on the host, as root.

Arguments: the version that should run ("" takes any), the file that keeps nouveau away, `--check` to change nothing.
Prints {"did": [...], "loaded": "535.261.03", "reboot": "why, or empty"}.
"""

import glob
import json
import os
import shutil
import subprocess
import sys

MODULES = ("nvidia_uvm", "nvidia_peermem", "nvidia_drm", "nvidia_modeset", "nvidia")


def loaded():
    """Version of the kernel modules that run now, "" where none does."""
    try:
        with open("/sys/module/nvidia/version") as file:
            return file.read().strip()
    except OSError:
        return ""


def initramfs_is_old(conf):
    """Whether some initramfs was made before the file that keeps nouveau out of it."""
    images = glob.glob("/boot/initrd.img-*") + glob.glob("/boot/initramfs-*.img")
    return any(os.path.getmtime(image) < os.path.getmtime(conf) for image in images)


class Steps:
    """Runs commands and remembers which; in check mode only remembers."""

    def __init__(self, check):
        self.check = check
        self.did = []

    def run(self, *command):
        """Whether the command succeeded; in check mode it always does."""
        self.did.append(" ".join(command))
        if self.check:
            return True
        if shutil.which(command[0]) is None:
            return False
        return subprocess.run(command, capture_output=True, timeout=600).returncode == 0


def rebuild_initramfs(steps):
    """Make each initramfs anew, by the tool that this distribution has."""
    if shutil.which("update-initramfs"):
        return steps.run("update-initramfs", "-u", "-k", "all")
    if shutil.which("dracut"):
        return steps.run("dracut", "--force", "--regenerate-all")
    return True


def unload(steps, names):
    """Unload those of the modules that are loaded. Whether all went."""
    return all(steps.run("modprobe", "-r", name) for name in names if os.path.isdir("/sys/module/" + name))


def bring_up(steps, wanted):
    """Load the driver. Why a reboot is needed, or ""."""
    running = loaded()
    if running and wanted in ("", running):
        return ""
    if running:
        steps.run("systemctl", "stop", "nvidia-persistenced.service")
        if not unload(steps, MODULES):
            return "driver %s runs and is in use, %s is installed" % (running, wanted)
    if not unload(steps, ["nouveau"]):
        return "the driver nouveau holds the GPU"
    if not steps.run("modprobe", "nvidia"):
        return "the kernel module nvidia cannot be loaded yet"
    if not steps.check and loaded() == "":
        return "the kernel module nvidia was loaded and drives nothing"
    # It could not start when it was installed, before there was anything to drive.
    steps.run("systemctl", "restart", "nvidia-persistenced.service")
    return ""


def main():
    """Do it and print what was done."""
    wanted, conf = sys.argv[1], sys.argv[2]
    steps = Steps("--check" in sys.argv[3:])
    if os.path.exists(conf) and initramfs_is_old(conf):
        rebuild_initramfs(steps)
    reboot = bring_up(steps, wanted)
    print(json.dumps({"did": steps.did, "loaded": loaded(), "reboot": reboot}))


main()
