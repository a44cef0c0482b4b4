"""Derived tables follow what is in the lake, whoever brought it there and whatever was said of it.

No test here builds anything by hand: what the sensor `downstream` asks for is run, and then every
view must be what it is made of.
"""

import json
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import dagster as dg
import pytest

from cdc_pipeline.lake.iceberg.properties import table_property
from cdc_pipeline_tests.e2e.deployment import Deployment, deploy, today
from cdc_pipeline_tests.e2e.wire import spoil
from cdc_pipeline_tests.e2e.world import World, assert_mirrors, assert_nothing_twice

pytestmark = [
    pytest.mark.slow,
    # Dagster passes this parameter itself when it copies a sensor.
    pytest.mark.filterwarnings("ignore:Parameter `owners` of initializer `SensorDefinition"),
]
_DAILY = """-- description: Changes of a day by what they did.
-- partitioned: daily
SELECT $day AS day, op, count(*) AS changes FROM things.cdc WHERE day = $day GROUP BY op
"""
_WHOLE = "-- description: Items.\nSELECT count(*) AS items FROM things.current_state\n"
_OF_AGGREGATE = "-- description: All.\nSELECT sum(changes) AS changes FROM aggregates.daily\n"


@pytest.fixture
def kind() -> str:
    return "local"


@pytest.fixture
def table(world: World) -> str:
    folder = world.folder / "aggregates"
    folder.mkdir()
    (folder / "daily.sql").write_text(_DAILY)
    (folder / "whole.sql").write_text(_WHOLE)
    (folder / "of_aggregate.sql").write_text(_OF_AGGREGATE)
    name = world.make_table("things")
    chosen: dict[str, Any] = {"name": name, "ttl_archive": True}
    fold = {"fold_percent": 0, "publish_minutes": 0, "derive_minutes": 0}
    export = {"bucket": world.bucket, "poll_seconds": 0.05}
    world.configure(chosen, aggregates=str(folder), current_state=fold, export=export)
    for number in range(8):
        world.put(name, f"k{number}", n={"N": str(number)})
    world.snapshot(name)
    world.capture_past_handover(name)
    # The settings file that Dagster reads has the least margin there is, a second.
    time.sleep(1.2)
    world.capture(name)
    return name


@pytest.fixture
def deployment(world: World, table: str) -> Iterator[Deployment]:
    with deploy(world) as made:
        yield made


def check(deployment: Deployment, table: str) -> None:
    """Everything that is derived equals what it is derived from."""
    world = deployment.world
    assert_mirrors(world, table)
    assert_nothing_twice(world, table)
    cdc = f"SELECT day, op, count(*) FROM {table}.cdc GROUP BY ALL ORDER BY ALL"
    daily = "SELECT day, op, changes FROM aggregates.daily ORDER BY ALL"
    assert world.rows(daily, aggregates=True) == world.rows(cdc, table)
    (total,) = world.rows("SELECT changes FROM aggregates.of_aggregate", aggregates=True)
    assert total == world.rows(f"SELECT count(*) FROM {table}.cdc", table)[0]
    (items,) = world.rows("SELECT items FROM aggregates.whole", aggregates=True)
    assert items == world.rows(f"SELECT count(*) FROM {table}.current_state", table)[0]
    expired = f"SELECT count(*) FROM {table}.cdc WHERE is_ttl_delete"
    archived = f"SELECT count(*) FROM {table}.ttl_archive"
    assert world.rows(archived, table) == world.rows(expired, table)
    history = f"SELECT count(*) FROM {table}.history"
    assert world.rows(history, table) == world.rows(f"SELECT count(*) FROM {table}.cdc", table)
    published = world.lake().iceberg.load(f"{table}_current_state")
    assert published is not None
    state = world.table_lake(table).log.load()
    assert table_property(published, "watermark") == str(state.horizon(1))


def test_a_run_that_was_killed_before_it_told_of_its_work(
    deployment: Deployment, table: str
) -> None:
    """As a command's capture: entries in the log, and no event anywhere."""
    first = deployment.follow()
    assert sorted({*first}) == [
        "aggregates/daily",
        "aggregates/of_aggregate",
        "aggregates/whole",
        f"{table}/cdc",
        f"{table}/current_state",
        f"{table}/ttl_archive",
    ]
    assert len(first) == len({*first}), "each once"
    check(deployment, table)
    assert deployment.follow() == []
    deployment.world.put(table, "k1", n={"N": "100"})
    deployment.world.delete(table, "k2")
    deployment.world.capture(table)
    assert {*deployment.follow()} == {*first}
    check(deployment, table)


def test_changes_of_an_earlier_day(
    deployment: Deployment, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Late rows, of days that nobody looks at any more."""
    deployment.follow()
    days_back = {"late": 1, "later": 2, "latest": 5}

    def written(days: int) -> Any:
        def change(record: dict[str, Any]) -> None:
            record["dynamodb"]["ApproximateCreationDateTime"] -= 86_400 * days

        return change

    for name in days_back:
        deployment.world.put(table, name)
    with monkeypatch.context() as late:
        spoil(late, {name: written(days) for name, days in days_back.items()})
        deployment.world.capture(table)
    tick = deployment.tick("downstream")
    cdc = dg.AssetKey([table, "cdc"])
    asked = [request for request in tick.run_requests if cdc in request.asset_selection]
    day = [(today() - timedelta(days=days)).isoformat() for days in range(6)]
    assert [(r.partition_key or r.tags["dagster/asset_partition_range_start"]) for r in asked] == [
        day[2],
        day[5],
    ], "neighbouring days share a run"
    assert asked[0].tags["dagster/asset_partition_range_end"] == day[1]
    deployment.follow()
    found = deployment.world.rows("SELECT count(DISTINCT day) FROM things.cdc", table)
    assert found == [(4,)]
    assert_nothing_twice(deployment.world, table)
    daily = deployment.world.rows(
        "SELECT count(DISTINCT day) FROM aggregates.daily", aggregates=True
    )
    # A day of an aggregate that nobody ever built is a backfill's business.
    assert daily == [(1,)]


def test_a_lake_where_nothing_happens_costs_no_load_of_a_table(
    deployment: Deployment, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment.follow()
    cursor = None
    for _ in range(3):
        cursor = deployment.tick("downstream", cursor).cursor

    def refuse(*_: object) -> None:
        raise AssertionError("a table was loaded")

    monkeypatch.setattr("cdc_pipeline.lake.iceberg.tables.Tables.load", refuse)
    tick = deployment.tick("downstream", cursor)
    assert tick.skip_message == "everything is up to date"
    deployment.world.capture(table)  # an entry that lands nothing
    assert deployment.tick("downstream", tick.cursor).skip_message == "everything is up to date"


def test_a_quiet_table_says_up_to_when_it_is_complete(
    deployment: Deployment, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever reads it with another engine must not take it for old; no run, no file of data."""
    world = deployment.world
    deployment.follow()
    tick = deployment.tick("downstream")
    before = world.lake().iceberg.load(f"{table}_current_state")
    assert before is not None
    monkeypatch.setattr("cdc_pipeline.defs.tables.downstream._LEAST_QUIET_SECONDS", 1)
    time.sleep(1.1)
    world.capture(table)
    tick = deployment.tick("downstream", tick.cursor)
    assert not tick.run_requests
    after = world.lake().iceberg.load(f"{table}_current_state")
    assert after is not None
    state = world.table_lake(table).log.load()
    assert table_property(after, "watermark_us") == str(state.complete_to_us(1))
    assert after.current_snapshot() == before.current_snapshot()
    check(deployment, table)


def test_what_a_run_does_not_mend_is_not_asked_for_without_end(
    deployment: Deployment, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead = 0.0
    real = time.time
    monkeypatch.setattr("cdc_pipeline.core.clock.time.time", lambda: real() + ahead)
    cursor, asked = None, 0
    for _ in range(60):  # an hour of ticks; the runs it asks for do nothing
        tick = deployment.tick("downstream", cursor)
        cursor = tick.cursor
        keys = [k for r in tick.run_requests or () for k in r.asset_selection or ()]
        asked += dg.AssetKey([table, "cdc"]) in keys
        ahead += 60
    assert asked <= 7
    failures = json.loads(cursor or "{}")["asked"]
    assert failures[f"{table}/cdc"]["count"] == asked


def test_a_run_that_fails_again_and_again_backs_off(
    deployment: Deployment, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cdc_pipeline.core.errors import LakeError

    def broken(*_: object, **__: object) -> None:
        raise LakeError("the disk is full")

    with monkeypatch.context() as while_broken:
        while_broken.setattr("cdc_pipeline.lake.publish.cdc.build_cdc_days", broken)
        tick = deployment.tick("downstream")
        cdc = dg.AssetKey([table, "cdc"])
        (request,) = [r for r in tick.run_requests if cdc in r.asset_selection]
        for _ in range(3):
            assert not deployment.run_request(request).success
    tick = deployment.tick("downstream", tick.cursor)
    assert cdc not in [k for r in tick.run_requests or () for k in r.asset_selection or ()]
    history = json.loads(tick.cursor)["history"]["failures"]
    assert history[f"{table}/cdc"]["count"] == 3
    assert "the disk is full" in history[f"{table}/cdc"]["cause"]
    # A person's run that succeeds ends it.
    assert deployment.materialize(table, "cdc", day=today()).success
    assert 'failures":{}' in deployment.tick("downstream", tick.cursor).cursor
