"""Records of changes scanned by compiled code, where that pays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cdc_pipeline.transform import compilation, fast

if TYPE_CHECKING:
    from cdc_pipeline.transform.fast.stream.records import Envelopes

LEAST_RECORDS = 32
"""Fewer records in one call cost less on the exact path."""

_SHARE = 5
"""For a MB of records the exact path takes 0.02 CPU seconds, a fifth of what it takes for lines."""


def scan_records(records: Sequence[Any]) -> Envelopes | None:
    """Scan records, buffers of bytes; None: take the exact path for all of them."""
    size = sum(memoryview(record).nbytes for record in records) // _SHARE
    if len(records) < LEAST_RECORDS or not compilation.pays(compilation.RECORDS, size):
        compilation.note_exact(compilation.RECORDS, size)
        return None
    if not fast.is_usable():
        return None
    from cdc_pipeline.transform.fast.stream.records import read

    return read(records)
