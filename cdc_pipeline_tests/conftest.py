"""The whole suite: how hypothesis works in it, and in which order the tests run."""

import pytest
from hypothesis import HealthCheck, settings

# No deadline on a busy machine, the same examples on every run.
settings.register_profile(
    "suite",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("suite")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file begins first, so that workers that share the suite end together."""
    items.sort(key=lambda item: "test_backfill_days" not in item.nodeid)
