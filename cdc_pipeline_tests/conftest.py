"""The whole suite: how hypothesis works in it, in which order the tests run, and for how long."""

import time
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

from cdc_pipeline.lake.storage.log_memory import MEMORY

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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Fail a test that outlived its timeout.

    Dagster catches the failure that pytest-timeout raises inside a run, and calls the run failed
    (`findings/dagster-swallows-pytest-timeouts.sh`).
    """
    began = time.monotonic()
    result = yield
    marker = item.get_closest_marker("timeout")
    by_command, by_file = item.config.getoption("timeout", None), item.config.getini("timeout")
    limit = float(marker.args[0] if marker else by_file if by_command is None else by_command)
    if limit and time.monotonic() - began > limit + 1:
        pytest.fail(f"took longer than its timeout of {limit:g} s, and something caught that")
    return result


@pytest.fixture(autouse=True)
def _no_log_of_another_test() -> None:
    """Lakes of different tests may have one address, and logs with equal entries."""
    MEMORY.clear()
