"""Whether compiled code (`transform.fast`) pays, by the size of a job and by Numba's cache.

The exact path starts at once; compiled code has to be loaded, or compiled where Numba's cache on
disk is empty, as in a new container. Functions of `transform.fast` are named here as Numba names
their cached code: folder below that package, module, name. Each is compiled at its first call.
"""

import hashlib
import os
import sys
import threading
from collections import Counter
from functools import cache
from pathlib import Path

from cdc_pipeline.transform import fast

LINES = "canonical.canonical_lines"
STATS = "scan.measure"
CELLS = "scan.find_cells"
RECORDS = "stream/envelopes.read_records"

# Measured, CPU seconds: compiling takes 19 (lines), 4 (statistics), 7 (cells), loading from the
# cache 0.4; for each MB the exact path takes 0.1, 0.02, 0.04, compiled code a tenth or less.
CACHED_BYTES = 8 << 20
"""Typed JSON for which the exact path takes about as long as loading code from the cache."""
COLD_BYTES = 192 << 20
"""Typed JSON for which the exact path takes about as long as compiling: each function's is near."""

_lock = threading.Lock()
_loaded: set[str] = set()
_exact: Counter[str] = Counter()


def pays(function: str, job: int) -> bool:
    """Whether to take the compiled path, which loads or compiles `function` if need be.

    `job`: bytes of typed JSON of the whole job, as far as known. What this process converted on the
    exact path (`note_exact`) counts like one job: many small jobs, or one of unknown size, cost at
    most twice as much as with the best choice. Code that is loaded already always pays.
    """
    with _lock:
        if function not in _loaded:
            size = max(job, _exact[function])
            if size < CACHED_BYTES or (size < COLD_BYTES and not is_cached(function)):
                return False
            _loaded.add(function)
        return True


def note_exact(function: str, size: int) -> None:
    """Count bytes that took the exact path because compiled code did not pay."""
    with _lock:
        _exact[function] += size


@cache
def is_cached(function: str) -> bool:
    """Whether Numba's cache on disk has this function of these sources for this processor.

    Searches the bytes of the cache's index: Numba alone can parse it, and takes half a second to
    import.
    """
    try:
        from llvmlite.binding import get_host_cpu_name
    except ImportError:  # without Numba either
        return False
    processor = os.environ.get("NUMBA_CPU_NAME") or get_host_cpu_name()
    wanted = (fast.sources_digest().encode(), processor.encode())
    version = "".join(map(str, sys.version_info[:2]))
    below, _, name = function.rpartition("/")
    indexes = _cache_folder(below).glob(f"{name}-*.py{version}*.nbi")
    return any(all(part in index for part in wanted) for index in map(Path.read_bytes, indexes))


def _cache_folder(below: str = "") -> Path:
    """Return the folder that Numba will choose (`numba.core.caching`) for sources in a folder.

    If it chooses another one, such as outside of Linux, code that is cached counts as not cached.
    """
    package = Path(fast.__file__).parent / below
    beside = package / "__pycache__"
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    if not chosen and os.access(beside if beside.exists() else package, os.W_OK):
        return beside
    user_wide = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    parent = Path(chosen) if chosen else Path(user_wide) / "numba"
    digest = hashlib.sha1(str(package).encode(), usedforsecurity=False).hexdigest()
    return parent / f"{package.name}_{digest}"
