"""What a newcomer does in Dagster's web interface, by clicking, and whether it came true."""

from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from cdc_pipeline import lake as lake_package
from cdc_pipeline.capture.compare import compare_with_source
from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.sandbox.run import local_client
from cdc_pipeline.settings import load_settings
from cdc_pipeline_tests.ui.browser import Browser
from cdc_pipeline_tests.ui.stack import DAYS, ORDERS, Stack, running_stack, wait_for

pytestmark = [pytest.mark.ui, pytest.mark.timeout(240)]

_GROUPS = ("orders", "customers", "aggregates")
_RUN_SECONDS = 45
_DIALOG = "//*[@role='dialog']"
_STATUS = "//*[not(*) and normalize-space()='Latest materialization']/.."
_SUCCESS = "//*[@aria-label='run_success']"
_ROW_COUNT = "//*[not(*) and normalize-space()='Row count']/..//*[number(.) = number(.)]"


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    with running_stack(tmp_path, monkeypatch) as stack:
        yield stack


def test_a_first_session_in_the_browser(stack: Stack, tmp_path: Path) -> None:
    with Browser(stack.address, tmp_path) as browser:
        _see_every_group(browser)
        _see_that_nothing_runs_by_itself(browser)
        exported = _materialize(browser, "pitr_export")
        assert exported >= ORDERS / 2
        _let_traffic_end(stack)
        _capture(browser)
        items = _materialize(browser, "current_state")
        browser.picture("current-state")
        _backfill(browser, stack)
        browser.picture("cdc-backfill")
        _see_every_asset(browser)
        browser.picture("asset-graph")
    _check_dagster(stack, items)
    _check_lake(stack, items)


def _see_every_group(browser: Browser) -> None:
    browser.open("/asset-groups")
    for group in _GROUPS:
        browser.see(f"//*[contains(@class, 'raph')]//*[not(*) and normalize-space()='{group}']")


def _see_every_asset(browser: Browser) -> None:
    pass


def _see_that_nothing_runs_by_itself(browser: Browser) -> None:
    browser.open("/automation")
    for name in ("shard_sensor", "glue_partition_sensor", "downstream", "yesterday"):
        browser.see_text(name)
    browser.picture("sensors")


def _materialize(browser: Browser, asset: str) -> int:
    """Click Materialize on the asset's page; its row count, as shown when the run is done."""
    browser.open(f"/assets/orders/{asset}")
    browser.see_text("Never materialized")
    browser.click_button("Materialize")
    browser.see(_STATUS + _SUCCESS, seconds=_RUN_SECONDS)
    browser.open(f"/assets/orders/{asset}")  # the page shows the new numbers when loaded anew
    return int(browser.text_of(_ROW_COUNT).replace(",", ""))


def _let_traffic_end(stack: Stack) -> None:
    """Traffic ran under the export; the rest is easier to compare with a source at rest."""
    stack.traffic.stop()
    dynamodb: Any = local_client("dynamodb")

    def expired() -> bool:
        pages = dynamodb.get_paginator("scan").paginate(TableName="orders")
        return not any("expires_at" in item for page in pages for item in page["Items"])

    wait_for(expired, "TTL deletes the expiring orders", 30)


def _capture(browser: Browser) -> None:
    """Through the jobs page and its launchpad."""
    browser.open("/jobs")
    browser.click("//a[normalize-space()='capture']")
    browser.click("//*[normalize-space()='Launchpad']")
    browser.click_button("Launch Run")
    browser.see_text("Success", seconds=_RUN_SECONDS)


def _backfill(browser: Browser, stack: Stack) -> None:
    """All days of orders/cdc, through the dialog, until the page of the backfill says it is done."""
    browser.open("/assets/orders/cdc")
    browser.click_button("Materialize…")
    browser.click_button("All", within=_DIALOG)
    browser.click_button("Launch backfill", within=_DIALOG)
