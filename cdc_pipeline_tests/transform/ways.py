"""The two ways of converting items and records, for tests that must hold for both."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import pytest

from cdc_pipeline.transform import compilation, record_scan

_HAS_NUMBA = find_spec("numba") is not None
_NO_NUMBA = pytest.mark.skipif(not _HAS_NUMBA, reason="the extra `fast` is missing")
WAYS = ("exact", "compiled") if _HAS_NUMBA else ("exact",)
both_ways = pytest.mark.parametrize("way", [pytest.param("compiled", marks=_NO_NUMBA), "exact"])


@contextmanager
def converted_by(way: str) -> Iterator[None]:
    """Convert that way, whatever the size of the data."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compilation, "pays", lambda *_: way == "compiled")
        patch.setattr(record_scan, "LEAST_RECORDS", 1)
        yield
