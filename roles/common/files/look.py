"""Print as JSON what stands at each path that is given: one question instead of one module run for each file.

"directory MODE OWNER GROUP", "file MODE OWNER GROUP SHA256", "link TARGET", or "" where there is none of these.
Runs on the host, with its own Python (3.9 and newer). Arguments: the paths.
"""

import grp
import hashlib
import json
import os
import pwd
import stat
import sys


def name_of(look_up, number):
    """An account's or group's name, its number where it has none any more."""
    try:
        return look_up(number)[0]
    except KeyError:
        return str(number)


def what_is(path):
    """The one line about a path; links are not followed."""
    try:
        found = os.lstat(path)
        if stat.S_ISLNK(found.st_mode):
            return "link %s" % os.readlink(path)
        rights = "%04o %s %s" % (
            stat.S_IMODE(found.st_mode),
            name_of(pwd.getpwuid, found.st_uid),
            name_of(grp.getgrgid, found.st_gid),
        )
        if stat.S_ISDIR(found.st_mode):
            return "directory " + rights
        if stat.S_ISREG(found.st_mode):
            with open(path, "rb") as file:
                return "file %s %s" % (rights, hashlib.sha256(file.read()).hexdigest())
    except OSError:
        pass
    return ""


if __name__ == "__main__":
    print(json.dumps({path: what_is(path) for path in sys.argv[1:]}))
