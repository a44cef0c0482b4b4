"""What a newcomer does in Dagster's web interface, by clicking, and whether it came true."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cdc_pipeline import lake
from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.reconcile.compare import compare_with_source
from cdc_pipeline.sandbox.process import local_client
from cdc_pipeline.settings.load import load_settings
from cdc_pipeline_tests.ui.browser import Browser
from cdc_pipeline_tests.ui.stack import DAYS, ORDERS, Stack, running_stack, wait_for

pytestmark = [pytest.mark.ui, pytest.mark.timeout(280)]

_GROUPS = ("orders", "customers", "aggregates")
_ASSETS = (
    *("dynamodb", "pitr_export", "raw_stream", "cdc", "current_state"),
    "order_revenue_by_country",
)
_AUTOMATION = (
    "shard_sensor",
    "gap_sensor",
    "alarm_sensor",
    "run_failure_alarm",
    "glue_partition_sensor",
    "downstream",
    "yesterday",
    "maintain",
)
_RUN_SECONDS = 60
# Dagster looks for new backfills, and for finished ones, each 30 s.
_BACKFILL_SECONDS = 100
_DIALOG = "//*[@role='dialog']"
_GRAPH = "//*[name()='foreignObject']"
_SUCCESS = "//*[@aria-label='run_success']"


def _exactly(text: str) -> str:
    """An element that shows just this, in one text node or in several."""
    return f"//*[not(*) and normalize-space()='{text}']"


def _named(asset: str) -> str:
    """The name of an asset in the graph, where Dagster may leave out the middle of a long one."""
    text = "normalize-space()"
    ends = f"substring({text}, string-length({text}) - 4) = '{asset[-5:]}'"
    short = f"contains(., '…') and starts-with({text}, '{asset[:5]}') and {ends}"
    return f"//*[not(*) and ({text}='{asset}' or ({short}))]"


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    with running_stack(tmp_path, monkeypatch) as stack:
        yield stack


def test_a_first_session_in_the_browser(stack: Stack, tmp_path: Path) -> None:
    with Browser(stack.address, tmp_path) as browser:
        _see_every_group(browser)
        _see_the_automation(browser)
        exported = _materialize(browser, "pitr_export")
        assert exported >= ORDERS
        _let_traffic_end(stack)
        _capture(browser)
        backfill = _launch_backfill(browser, "cdc")
        items = _materialize(browser, "current_state")
        browser.picture("current-state")
        _see_completion(browser, backfill)
        browser.picture("cdc-backfill")
        _see_every_asset(browser)
        browser.picture("asset-graph")
        _check_dagster(stack, exported, items)
        _check_lake(items)
        _lose_a_change()
        _capture(browser)
        _see_the_hole(browser)


def _see_every_group(browser: Browser) -> None:
    browser.open("/asset-groups")
    for group in _GROUPS:
        browser.see(_GRAPH + _exactly(group))


def _see_every_asset(browser: Browser) -> None:
    """The graph with every group expanded (Alt+E), as large as it is shown then."""
    _see_every_group(browser)
    browser.press_alt("e")
    for asset in _ASSETS:
        browser.see(_GRAPH + _named(asset))


def _see_the_automation(browser: Browser) -> None:
    browser.open("/automation")
    for name in _AUTOMATION:
        browser.see(_exactly(name))
    browser.picture("sensors")


def _materialize(browser: Browser, asset: str) -> int:
    """Click Materialize on the asset's page; its row count, as shown when the run is done."""
    browser.open(f"/assets/orders/{asset}")
    browser.see(_exactly("Never materialized"))
    browser.click_button("Materialize")
    browser.see(_exactly("Latest materialization") + "/.." + _SUCCESS, seconds=_RUN_SECONDS)
    # An open page shows that a run has ended, but not yet its numbers.
    browser.open(f"/assets/orders/{asset}")
    # From a thousand on, the page writes 1,000.
    number = "number(translate(., ',', ''))"
    numbers = _exactly("Row count") + f"/..//*[not(*) and {number} = {number}]"
    shown = browser.see(numbers, seconds=_RUN_SECONDS)
    return int(shown.text.replace(",", ""))


def _let_traffic_end(stack: Stack) -> None:
    """It ran under the export; from here on, a source at rest is easier to compare with."""
    stack.traffic.stop()
    dynamodb: Any = local_client("dynamodb")

    def expired() -> bool:
        pages = dynamodb.get_paginator("scan").paginate(
            TableName="orders", FilterExpression="attribute_exists(expires_at)", Select="COUNT"
        )
        return not any(page["Count"] for page in pages)

    wait_for(expired, "TTL deletes the expiring orders", 30)


def _capture(browser: Browser) -> None:
    """The job, from the jobs page through its launchpad to the page of its run."""
    browser.open("/jobs")
    browser.click("//a[normalize-space()='capture']")
    browser.click("//a[normalize-space()='Launchpad']")
    browser.click_button("Launch Run")
    browser.see(_exactly("Success"), seconds=_RUN_SECONDS)


def _launch_backfill(browser: Browser, asset: str) -> str:
    """All days, through the dialog; where the page of the backfill is."""
    browser.open(f"/assets/orders/{asset}")
    browser.click_button("Materialize\N{HORIZONTAL ELLIPSIS}")
    browser.click_button("All", within=_DIALOG)
    browser.see(_DIALOG + _exactly(f"{DAYS} partitions"))
    browser.click_button("Launch backfill", within=_DIALOG)
    browser.click("//*[self::a or self::button][normalize-space()='View']")
    browser.see(_exactly("Partitions targeted"))
    return browser.path


def _see_completion(browser: Browser, backfill: str) -> None:
    browser.open(backfill)
    browser.see(_exactly("100% completed"), seconds=_BACKFILL_SECONDS)


def _lose_a_change() -> None:
    """The stream is off for a moment; what is written then is in no stream."""
    dynamodb: Any = local_client("dynamodb")
    for specification in (
        {"StreamEnabled": False},
        {"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"},
    ):
        dynamodb.update_table(TableName="orders", StreamSpecification=specification)


def _see_the_hole(browser: Browser) -> None:
    """The check of gaps has failed, and its timeline shows where."""
    browser.open("/assets/orders/raw_stream?view=checks&checkDetail=no_open_gaps")
    browser.see(_exactly("Failed"))
    browser.click("//td[normalize-space()='timeline']/..//a")
    browser.see(_DIALOG + "//td[normalize-space()='lost']")
    browser.picture("coverage")


def _check_dagster(stack: Stack, exported: int, items: int) -> None:
    runs = stack.ask("{ runsOrError { ... on Runs { results { status jobName } } } }")
    assert {run["status"] for run in runs["runsOrError"]["results"]} == {"SUCCESS"}
    assert _row_count(stack, "pitr_export") == exported
    assert _row_count(stack, "current_state") == items
    statuses = stack.ask(
        """query ($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) { ... on AssetNode {
        partitionStats { numMaterialized numFailed numPartitions } } } }""",
        key={"path": ["orders", "cdc"]},
    )["assetNodeOrError"]["partitionStats"]
    assert statuses == {"numMaterialized": DAYS, "numFailed": 0, "numPartitions": DAYS}


def _row_count(stack: Stack, asset: str) -> int:
    found = stack.ask(
        """query ($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) { ... on AssetNode {
        assetMaterializations(limit: 1) { metadataEntries { label
        ... on IntMetadataEntry { intValue } } } } } }""",
        key={"path": ["orders", asset]},
    )["assetNodeOrError"]["assetMaterializations"]
    (materialization,) = found
    entries = materialization["metadataEntries"]
    return next(e["intValue"] for e in entries if e["label"] == "dagster/row_count")


def _check_lake(items: int) -> None:
    settings = load_settings()
    compared = compare_with_source(Lake.open(settings).table(settings.table("orders")))
    assert compared.differences == 0, compared
    assert compared.items == items
    with lake.connect(["orders"]) as connection:
        counts = connection.execute(
            """SELECT (SELECT count(*) FROM orders.current_state),
                      (SELECT count(*) FROM orders.cdc),
                      (SELECT count(DISTINCT uuid) FROM orders.cdc),
                      (SELECT count(DISTINCT uuid) FROM orders.raw_stream)"""
        ).fetchone()
    assert counts is not None
    assert counts[0] == items
    assert counts[1] == counts[2] == counts[3] > ORDERS
