"""Take the right to write outside of some folders from this thread and all that it starts.

By Landlock, a part of Linux that needs no privileges: what is taken cannot be had again. Reading
and the network stay as they are. Where the kernel does not offer it, nothing changes.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

Returned = TypeVar("Returned")

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on x86-64 and arm64
_VERSION_FLAG = 1
_RULE_PATH_BENEATH = 1
_PR_SET_NO_NEW_PRIVS = 38

_WRITE_FILE, _REFER, _TRUNCATE = 1 << 1, 1 << 13, 1 << 14
#: Removing and making files and folders of every sort.
_CHANGE_FOLDER = sum(1 << bit for bit in range(4, 13))
#: What a kernel must know to be of use: before its version 3, truncating was always allowed.
_VERSION_NEEDED = 3


def can_confine() -> bool:
    """Whether the kernel can: Linux 6.2 or newer that was built, and started, with Landlock."""
    version: int = ctypes.CDLL(None).syscall(_CREATE_RULESET, None, 0, _VERSION_FLAG)
    return version >= _VERSION_NEEDED


def confine_writes(folders: Iterable[Path]) -> bool:
    """Let this thread, and what it starts from now on, write below `folders` only.

    A folder that is not there is passed over. Returns whether the kernel could do it.
    Raises OSError when it can, and refuses.
    """
    if not can_confine():
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    handled = struct.pack("=Q", _WRITE_FILE | _TRUNCATE | _REFER | _CHANGE_FOLDER)
    ruleset = _called(libc, _CREATE_RULESET, handled, len(handled), 0)
    try:
        for folder in folders:
            _allow(libc, ruleset, folder)
        if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "no_new_privs was refused")
        _called(libc, _RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)
    return True


def confined(folders: Iterable[Path], do: Callable[[], Returned]) -> Returned:
    """What `do` returns or raises, on a thread of its own that may write below `folders` only.

    Also whoever is interrupted while waiting goes on only when `do` has ended.
    """

    def within() -> Returned:
        confine_writes(folders)
        return do()

    with ThreadPoolExecutor(1) as thread:  # one that nobody needs after it was confined
        return thread.submit(within).result()


def _allow(libc: ctypes.CDLL, ruleset: int, path: Path) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        rights = _WRITE_FILE | _TRUNCATE
        if stat.S_ISDIR(os.fstat(place).st_mode):
            rights |= _REFER | _CHANGE_FOLDER
        _called(libc, _ADD_RULE, ruleset, _RULE_PATH_BENEATH, struct.pack("=Qi", rights, place), 0)
    finally:
        os.close(place)


def _called(libc: ctypes.CDLL, number: int, *arguments: object) -> int:
    answer: int = libc.syscall(number, *arguments)
    if answer < 0:
        raise OSError(ctypes.get_errno(), "Landlock refused")
    return answer
