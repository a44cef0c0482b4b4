"""How the loops of this package are compiled, and kept compiled."""

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba


def compiled(function: Callable[..., Any]) -> Any:
    """Compile on first use, with a cache on disk where there is a place for one."""
    try:
        dispatcher: Any = numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # a read-only installation, and no folder of the user's own
        return numba.njit(nogil=True)(function)
    # Numba's cache looks at the function's own file, but compiles into it what it calls elsewhere.
    dispatcher._cache._cache_file._source_stamp = _sources()
    return dispatcher


@cache
def _sources() -> str:
    """A digest of all files of this package."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
