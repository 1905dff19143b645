"""Print for how many seconds this host is up, counted from its first process: a container shows its kernel's uptime."""

import os


def main():
    """Ask the kernel."""
    with open("/proc/uptime") as file:
        kernel = float(file.read().split()[0])
    with open("/proc/1/stat", "rb") as file:
        started = int(file.read().rpartition(b")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    print(round(kernel - started, 2))


main()
