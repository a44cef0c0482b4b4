"""Which files of a folder any process opens for a while, by Linux's inotify."""

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_OPEN = 0x20
_EVENT = struct.Struct("iIII")
_READ_BYTES = 1 << 20


@contextmanager
def opened_files(folder: Path) -> Iterator[set[str]]:
    """The names of files directly in the folder that are opened in the block; filled at its end."""
    libc, names = ctypes.CDLL(None, use_errno=True), set[str]()
    watcher = libc.inotify_init1(os.O_NONBLOCK)
    if watcher < 0 or libc.inotify_add_watch(watcher, bytes(folder), _OPEN) < 0:
        raise OSError(ctypes.get_errno(), f"inotify cannot watch {folder}")
    try:
        yield names
        names.update(_names(watcher))
    finally:
        os.close(watcher)


def _names(watcher: int) -> Iterator[str]:
    while True:
        try:
            events = os.read(watcher, _READ_BYTES)
        except BlockingIOError:
            return
        while events:
            _, mask, _, length = _EVENT.unpack_from(events)
            name = events[_EVENT.size : _EVENT.size + length].rstrip(b"\0").decode()
            events = events[_EVENT.size + length :]
            if mask & _OPEN and name:
                yield name
