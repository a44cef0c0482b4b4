"""Compilation of this package's loops, with a cache on disk."""

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba


def compiled(function: Callable[..., Any]) -> Any:
    """Compile on first use, with a cache on disk if there is a writable folder."""
    try:
        dispatcher: Any = numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # a read-only installation, without a folder of the user
        return numba.njit(nogil=True)(function)
    # Numba's cache checks the function's own file only, but includes code called from other files.
    dispatcher._cache._cache_file._source_stamp = _sources()
    return dispatcher


@cache
def _sources() -> str:
    """Return a digest of all files of this package."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
