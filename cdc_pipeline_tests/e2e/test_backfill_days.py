"""Many days backfilled through the UI's own API, and again, which changes nothing.

`CDC_PIPELINE_DAYS=365` takes a year; the time is Dagster's, which looks for work each 30 s.
"""

import math
import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cdc_pipeline.capture.sources.source_choice import open_source
from cdc_pipeline.core.changes.change import Change, stream_identity
from cdc_pipeline.core.changes.order import position
from cdc_pipeline.core.items.attributes import plain_json, to_json
from cdc_pipeline.core.log.entries import FIRST_GENERATION, ShardState, StreamRef
from cdc_pipeline.core.log.state import Entry, LogState
from cdc_pipeline.core.plans.backfill import span_of
from cdc_pipeline.core.transports import DYNAMODB_STREAMS
from cdc_pipeline.lake.storage.landing import write_landing
from cdc_pipeline.lake.storage.log import CaptureLog
from cdc_pipeline.sandbox.process import SandboxProcess
from cdc_pipeline_tests.e2e.world import World, key, make_world
from cdc_pipeline_tests.ui.stack import ask, dagster_dev, is_loaded, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

DAYS, ROWS = int(os.environ.get("CDC_PIPELINE_DAYS", "4")), 1_000
AssetPath = tuple[str, ...]
_RUN_DAYS = 168
"""As docs/backfill.md has it."""
_AGGREGATE = """-- description: Changes of a day by what they did.
-- partitioned: daily
SELECT $day AS day, op, count(*) AS changes FROM orders.cdc WHERE day = $day GROUP BY op
"""
_LAUNCH = """mutation ($key: AssetKeyInput!, $days: [String!]!) {
launchPartitionBackfill(backfillParams: {assetSelection: [$key], partitionNames: $days}) {
__typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }"""
_STATUS = """query ($id: String!) { partitionBackfillOrError(backfillId: $id) {
... on PartitionBackfill { status } } }"""
_STATS = """query ($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) { ... on AssetNode {
partitionStats { numMaterialized numFailed numPartitions } } } }"""
_RUNS = "{ runsOrError { ... on Runs { results { status } } } }"


@pytest.fixture
def world(sandbox: SandboxProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = make_world(sandbox, tmp_path, "local")
    made.activate(monkeypatch)
    made.make_table("orders")
    (tmp_path / "aggregates").mkdir()
    (tmp_path / "aggregates" / "changes.sql").write_text(_AGGREGATE)
    first = datetime.now(UTC).date() - timedelta(days=DAYS - 1)
    aggregates = str(tmp_path / "aggregates")
    made.configure("orders", aggregates=aggregates, start_date=first.isoformat())
    return made


def _land_days(world: World, days: list[date]) -> None:
    """A log as capture would have left it: it began that long ago and is at the stream's tip."""
    lake, table = world.lake(), world.table("orders")
    source, log, state = open_source(lake.table(table)), lake.table(table).log, LogState()
    shards = source.shards.describe(source.arn).shards
    now_us = log.now_us()
    stream = StreamRef(
        source.table_id, source.arn, source.view_type, FIRST_GENERATION, span_of(days[0])[0]
    )
    at_tip = tuple(ShardState(s.shard_id, s.parent_id, 0, read_to_us=now_us) for s in shards)
    _append(log, state, stream=stream, shards=at_tip, discovered_us=now_us)
    for day in days[:-1]:
        changes = list(_changes(day, at_tip[0].shard_id))
        nonce = f"{day.toordinal():016x}"
        objects = write_landing(
            log.store,
            log.paths,
            changes,
            n=state.n + 1,
            nonce=nonce,
            generation=FIRST_GENERATION,
            landed_us=now_us,
        )
        _append(log, state, nonce=nonce, objects=tuple(objects))


def _append(log: CaptureLog, state: LogState, nonce: str = "0" * 16, **parts: Any) -> None:
    assert log.append(state, Entry(n=0, nonce=nonce, owner="test", at_us=0, **parts))


def _changes(day: date, shard_id: str) -> Iterator[Change]:
    start = span_of(day)[0]
    for number in range(ROWS):
        sequence = f"{day.toordinal():013d}{number:08d}"
        keys = key(f"k{number % 97}", number % 7)
        item = {**keys, "total": {"N": f"{number}.25"}, "note": {"S": "an order of some length"}}
        yield Change(
            uuid=stream_identity("a-table", sequence),
            op="U",
            write_time_us=start + number * 80_000_000,
            data=plain_json(item),
            keys=to_json(keys),
            new_image=to_json(item),
            old_image=None,
            position=position(0, sequence),
            sequence_number=sequence,
            shard_id=shard_id,
            event_id=sequence,
            is_ttl_delete=False,
            transport=DYNAMODB_STREAMS,
        )


def _backfill(address: str, days: list[str], *paths: AssetPath) -> dict[AssetPath, float]:
    """Launch as the UI's dialog does, side by side; seconds until Dagster calls each completed."""
    started = time.monotonic()
    took: dict[AssetPath, float] = {}
    launched: dict[AssetPath, str] = {}
    for path in paths:
        asked = ask(address, _LAUNCH, key={"path": list(path)}, days=days)
        outcome = asked["launchPartitionBackfill"]
        assert outcome["__typename"] == "LaunchBackfillSuccess", outcome
        launched[path] = outcome["backfillId"]

    def ended() -> bool:
        for path in launched.keys() - took.keys():
            found = ask(address, _STATUS, id=launched[path])["partitionBackfillOrError"]
            if found["status"] not in ("REQUESTED", "CANCELING"):
                assert found["status"] == "COMPLETED_SUCCESS"
                took[path] = time.monotonic() - started
        return took.keys() == launched.keys()

    wait_for(ended, f"backfills of {len(paths)} assets", 400)
    for path in paths:
        stats = ask(address, _STATS, key={"path": list(path)})["assetNodeOrError"]["partitionStats"]
        assert stats == {"numMaterialized": DAYS, "numFailed": 0, "numPartitions": DAYS}
    return took


def test_many_days_through_the_api_and_again(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    days = [datetime.now(UTC).date() - timedelta(days=back) for back in range(DAYS - 1, -1, -1)]
    _land_days(world, days)
    keys = [day.isoformat() for day in days]
    assets = (("orders", "raw_stream"), ("orders", "cdc"), ("aggregates", "changes"))
    with dagster_dev(tmp_path) as address:
        wait_for(lambda: is_loaded(address), "Dagster loads the assets", 60)
        first = _backfill(address, keys, *assets[:2])
        first |= _backfill(address, keys, assets[2])
        content = _content(world)
        again = _backfill(address, keys, *assets)
        runs = ask(address, _RUNS)["runsOrError"]["results"]
    assert _content(world) == content
    assert {run["status"] for run in runs} == {"SUCCESS"}
    assert len(runs) == 6 * math.ceil(DAYS / _RUN_DAYS)
    rows = world.rows("SELECT count(*), count(DISTINCT uuid) FROM orders.cdc", "orders")
    assert rows == [((DAYS - 1) * ROWS,) * 2]
    with capsys.disabled():
        for path in assets:
            durations = f"{first[path]:.0f} s, again {again[path]:.0f} s"
            print(f"\n{DAYS} days of {'/'.join(path)}, {ROWS} rows each: {durations}", end="")


def _content(world: World) -> list[list[tuple[Any, ...]]]:
    ask_for: Callable[..., list[tuple[Any, ...]]] = world.rows
    return [
        ask_for("SELECT * FROM orders.raw_stream ORDER BY uuid", "orders"),
        ask_for("SELECT * FROM orders.cdc ORDER BY uuid", "orders"),
        ask_for("SELECT * FROM aggregates.changes ORDER BY ALL", aggregates=True),
    ]
