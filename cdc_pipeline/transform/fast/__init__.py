"""Typed DynamoDB JSON byte by byte, compiled by Numba: the optional extra `fast`.

Without the extra, functions here return None, and callers take the exact path; so they do for input
that the compiled code does not support. Its results equal those of `core.items.attributes`,
`core.items.columns` and `transform.shred`. The first call of a function of `batches` compiles it
unless it is in Numba's cache; `transform.compilation` decides whether that pays. In all its
functions -1 (or False) means "unsupported, take the exact path", never "wrong"; positions are
indexes into arrays of bytes.

`batches` is the interface: Arrow in and out. `canonical` (with `order`) converts lines of exports;
`scan` splits canonical items, and `columns` and `plain` convert their values to arrays. Below are
`strings`, `numbers`, `binary`, `tokens`, `memory` and `compiler`. The room `stream` is for records
of streams.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

    from cdc_pipeline.core.items.columns import Column
    from cdc_pipeline.transform.fast.batches import LineReader, Shredder, StatsReader


@cache
def _batches() -> Any:
    """Return the module that needs Numba; None: Numba is missing or unusable here."""
    if sys.byteorder != "little":
        return None
    try:
        from cdc_pipeline.transform.fast import batches
    except ImportError:
        return None
    return batches


def is_usable() -> bool:
    """Whether the extra `fast` is installed and works on this machine."""
    return _batches() is not None


def line_reader(key_names: Sequence[str]) -> LineReader | None:
    """Create a converter of exports' lines, for one thread."""
    batches = _batches()
    return batches.LineReader(key_names) if batches else None


def stats_reader() -> StatsReader | None:
    """Create a counter of the attributes of canonical items."""
    batches = _batches()
    return batches.StatsReader() if batches else None


def shredder(columns: Sequence[Column], kinds: Sequence[pa.DataType]) -> Shredder | None:
    """Create a converter of canonical items to typed columns."""
    batches = _batches()
    return batches.Shredder(columns, kinds) if batches else None


@cache
def sources_digest() -> str:
    """Return a digest of all files of this package and below, the stamp of its compiled code."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
