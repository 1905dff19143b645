"""Print for how many seconds this host is up, counted from its first process: a container shares its kernel's clock."""

import os
import time


def main():
    """Ask the kernel."""
    with open("/proc/1/stat", "rb") as file:
        started = int(file.read().rpartition(b")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    # Not /proc/uptime, which some containers see as their own.
    print(round(time.clock_gettime(time.CLOCK_BOOTTIME) - started, 2))


main()
