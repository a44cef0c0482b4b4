"""The two ways of converting items, compiled and exact, for tests that must hold for both."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import pytest

from cdc_pipeline.transform import compilation

_NO_NUMBA = pytest.mark.skipif(find_spec("numba") is None, reason="the extra `fast` is missing")
both_ways = pytest.mark.parametrize("way", [pytest.param("compiled", marks=_NO_NUMBA), "exact"])


@contextmanager
def converted_by(way: str) -> Iterator[None]:
    """Convert that way, whatever the size of the data."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compilation, "pays", lambda *_: way == "compiled")
        yield
