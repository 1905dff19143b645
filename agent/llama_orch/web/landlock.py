"""Landlock: a process gives up, for itself and for all that it starts, what it will not need. By ctypes; libc has no
functions for it.

Sources: Linux' Documentation/userspace-api/landlock.rst and include/uapi/linux/landlock.h. Each version of the ABI adds
rights that can be taken away; what the running kernel does not know of stays as it is.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from enum import IntFlag
from pathlib import Path

# The same on every architecture.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_CREATE_RULESET_VERSION = 1
_RULE_PATH_BENEATH = 1
_PR_SET_NO_NEW_PRIVS = 38
# Versions of the ABI that brought: cutting files, TCP, ioctl of devices, scopes of signals and abstract sockets.
_TRUNCATE_SINCE, _TCP_SINCE, _IOCTL_SINCE, _SCOPES_SINCE = 3, 4, 5, 6
_BIND_AND_CONNECT_TCP = 0b11
_ABSTRACT_SOCKETS_AND_SIGNALS = 0b11


class Access(IntFlag):
    """What can be done with files and in folders."""

    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13
    TRUNCATE = 1 << 14
    IOCTL_DEV = 1 << 15


_OF_FILES = Access.EXECUTE | Access.WRITE_FILE | Access.READ_FILE | Access.TRUNCATE | Access.IOCTL_DEV


class _Ruleset(ctypes.Structure):
    _fields_ = [("access_fs", ctypes.c_uint64), ("access_net", ctypes.c_uint64), ("scoped", ctypes.c_uint64)]


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = [("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32)]


def abi() -> int:
    """The version of the running kernel's Landlock; 0 where it has none, or may not be used here."""
    found = _syscall()(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_CREATE_RULESET_VERSION))
    return max(0, found)


def handled(version: int) -> Access:
    """The rights on files that a kernel of this version can take away."""
    known = Access(Access.MAKE_SYM * 2 - 1)
    if version >= 2:
        known |= Access.REFER
    if version >= _TRUNCATE_SINCE:
        known |= Access.TRUNCATE
    if version >= _IOCTL_SINCE:
        known |= Access.IOCTL_DEV
    return known


def restrict(allowed: Iterable[tuple[Path, Access]], version: int) -> None:
    """Leave this thread, and what it starts from now on, no more than `allowed`; it cannot be undone.

    With paths goes all below them; those that are not there are passed over. New TCP connections and listeners are
    refused, signals and abstract sockets reach only what is restricted with this thread: as far as `version` of the ABI
    knows of them. A socket that listens already goes on. Raises OSError.
    """
    syscall, access = _syscall(), handled(version)
    attributes = _Ruleset(
        access,
        _BIND_AND_CONNECT_TCP if version >= _TCP_SINCE else 0,
        _ABSTRACT_SOCKETS_AND_SIGNALS if version >= _SCOPES_SINCE else 0,
    )
    ruleset = _checked(
        syscall(
            _CREATE_RULESET, ctypes.byref(attributes), ctypes.c_size_t(ctypes.sizeof(attributes)), ctypes.c_uint32(0)
        )
    )
    try:
        for path, wanted in allowed:
            _allow(syscall, ruleset, path, wanted & access)
        # Without it only root may restrict itself; and what this process starts shall not gain by a set-uid program.
        _checked(_libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        _checked(syscall(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0)))
    finally:
        os.close(ruleset)


def _allow(syscall: ctypes._NamedFuncPointer, ruleset: int, path: Path, access: Access) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    kept = False
    try:
        if not path.is_dir():
            access &= _OF_FILES
        if not access:
            return
        rule = _PathBeneath(access, descriptor)
        _checked(
            syscall(
                _ADD_RULE,
                ctypes.c_int(ruleset),
                ctypes.c_int(_RULE_PATH_BENEATH),
                ctypes.byref(rule),
                ctypes.c_uint32(0),
            )
        )
        kept = _is_forgetful(path)
    finally:
        if not kept:
            os.close(descriptor)


def _is_forgetful(path: Path) -> bool:
    """Whether the path is in /proc: the kernel may forget what it knows of it, rules too, unless it is held open."""
    return Path("/proc") in path.parents


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _syscall() -> ctypes._NamedFuncPointer:
    function = _libc().syscall
    function.restype = ctypes.c_long
    return function


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
