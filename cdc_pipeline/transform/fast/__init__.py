"""Typed DynamoDB JSON byte by byte, compiled by Numba: the optional extra `fast`.

Without it there is None, and callers take the exact path; so they do for whatever the compiled code
does not know. What it knows it makes exactly what `core.items.attributes`, `core.items.columns` and
`transform.shred` make. Everywhere in it -1 (or False) says "not understood, ask the exact path",
never "wrong"; positions are indices into arrays of bytes.

`batches` is what the rest sees: Arrow in and out. Lines of exports go through `canonical` (which
needs `order`); canonical items are taken apart by `scan`, and their values become arrays in
`columns` and `plain`. Below are `strings`, `numbers`, `binary`, `tokens`, `memory` and `compiler`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

    from cdc_pipeline.core.items.columns import Column
    from cdc_pipeline.transform.fast.batches import LineReader, Shredder, StatsReader


@cache
def _batches() -> Any:
    """The module with Numba behind it, None if that is not installed or of no use here."""
    if sys.byteorder != "little":
        return None
    try:
        from cdc_pipeline.transform.fast import batches
    except ImportError:
        return None
    return batches


def line_reader(key_names: Sequence[str]) -> LineReader | None:
    """What converts lines of exports, for one thread."""
    batches = _batches()
    return batches.LineReader(key_names) if batches else None


def stats_reader() -> StatsReader | None:
    """What counts the attributes of canonical items."""
    batches = _batches()
    return batches.StatsReader() if batches else None


def shredder(columns: Sequence[Column], kinds: Sequence[pa.DataType]) -> Shredder | None:
    """What types canonical items."""
    batches = _batches()
    return batches.Shredder(columns, kinds) if batches else None
