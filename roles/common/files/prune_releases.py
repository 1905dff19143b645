"""Remove the releases that no link shows and no process runs from; print one line for each.

Runs on the host, with its own Python (3.9 and newer). Argument: the folder with the links and `releases/`.
"""

import os
import shutil
import sys


def in_use(releases):
    """Names of the releases that a living process was started from or has loaded code of."""
    names = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        for source in ("cmdline", "maps", "environ"):
            try:
                with open("/proc/%s/%s" % (pid, source), "rb") as file:
                    text = file.read().decode("utf-8", "replace")
            except OSError:
                continue
            for part in text.split(releases + "/")[1:]:
                names.add(part.split("/")[0].split("\0")[0].split()[0] if part.strip() else "")
    return names


def main():
    """Compare what is there with what is used."""
    root = sys.argv[1]
    releases = os.path.join(root, "releases")
    if not os.path.isdir(releases):
        return
    links = (os.path.join(root, name) for name in os.listdir(root))
    linked = {os.path.basename(os.readlink(link)) for link in links if os.path.islink(link)}
    keep = linked | in_use(releases)
    for name in sorted(os.listdir(releases)):
        if name not in keep:
            shutil.rmtree(os.path.join(releases, name))
            print("removed %s" % name)


main()
