"""Compilation of this package's loops, with a cache on disk."""

from collections.abc import Callable
from typing import Any

import numba

from cdc_pipeline.transform.fast import sources_digest


def compiled(function: Callable[..., Any]) -> Any:
    """Compile on first use, with a cache on disk if there is a writable folder."""
    try:
        dispatcher: Any = numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # a read-only installation, without a folder of the user
        return numba.njit(nogil=True)(function)
    # Numba's cache checks the function's own file only, but includes code called from other files.
    dispatcher._cache._cache_file._source_stamp = sources_digest()
    return dispatcher
