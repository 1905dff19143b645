"""Finds which C library versions the native code in a wheel asks for."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable
from pathlib import Path

_ELF = b"\x7fELF"
_GLIBC = re.compile(rb"GLIBC_(\d+)\.(\d+)(?:\.\d+)?\x00")
_GLIBCXX = re.compile(rb"GLIBCXX_(\d+)\.(\d+)(?:\.(\d+))?\x00")


def needed_versions(wheels: Iterable[Path]) -> tuple[str, str]:
    """The highest glibc ("2.34") and libstdc++ symbol version ("3.4.30") that any library in the wheels needs.

    The names stand NUL-terminated in each library's string table, so that they can be read without an ELF
    parser; a name that only a comment mentioned could raise the answer, never lower it.
    """
    glibc: tuple[int, ...] = (0, 0)
    glibcxx: tuple[int, ...] = (0, 0, 0)
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            for info in archive.infolist():
                if ".so" not in info.filename and "/bin/" not in info.filename:
                    continue
                content = archive.read(info)
                if not content.startswith(_ELF):
                    continue
                for major, minor in _GLIBC.findall(content):
                    glibc = max(glibc, (int(major), int(minor)))
                for major, minor, patch in _GLIBCXX.findall(content):
                    glibcxx = max(glibcxx, (int(major), int(minor), int(patch or 0)))
    return ".".join(map(str, glibc)), ".".join(map(str, glibcxx))
