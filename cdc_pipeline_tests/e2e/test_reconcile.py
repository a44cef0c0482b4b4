"""Reconciliation against the source: samples, full differences, shadows, and a corrupted lake."""

import json
import signal
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from cdc_pipeline.aws.table import describe_table, scan_some
from cdc_pipeline.capture.catch_up import capture_to
from cdc_pipeline.cli import main
from cdc_pipeline.core.errors import ExportError, NotReadyError
from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.core.run_context import RunContext
from cdc_pipeline.lake.iceberg.files import data_files
from cdc_pipeline.lake.query.connection import connect_lake
from cdc_pipeline.lake.upkeep.maintenance import maintain_table
from cdc_pipeline.lake.upkeep.verify import verify_files
from cdc_pipeline.reconcile.reconcile import reconcile_full, reconcile_sample
from cdc_pipeline.snapshot.shadow import discard_shadow, release_shadow, staged_shadow
from cdc_pipeline.snapshot.snapshot import take_snapshot
from cdc_pipeline_tests.e2e.checkpoint import Checkpoint
from cdc_pipeline_tests.e2e.damage import Export
from cdc_pipeline_tests.e2e.deployment import Deployment, deploy, today
from cdc_pipeline_tests.e2e.described_by_aws import filter_exports
from cdc_pipeline_tests.e2e.killer import Killer
from cdc_pipeline_tests.e2e.world import World, assert_mirrors, key, make_world

pytestmark = [
    pytest.mark.slow,
    # Dagster passes this parameter itself when it copies a sensor.
    pytest.mark.filterwarnings("ignore:Parameter `owners` of initializer `SensorDefinition"),
]

NAME = "orders"


@pytest.fixture
def kind(request: pytest.FixtureRequest) -> str:
    """A local lake unless a test says otherwise: its files are easy to damage."""
    return getattr(request, "param", "local")


@pytest.fixture
def filled(world: World) -> World:
    """Ten items of a baseline, then changes: folded ones, and some that landed behind the fold."""
    world.make_table(NAME)
    world.configure(NAME)
    for number in range(10):
        world.put(NAME, f"k{number}", v={"S": f"text of {number}"}, n={"N": str(number)})
    world.bootstrap(NAME)
    world.put(NAME, "k0", v={"S": "folded"})
    world.delete(NAME, "k9")
    world.put(NAME, "new", v={"S": "folded, too"})
    world.capture(NAME)
    world.publish(NAME)
    world.put(NAME, "k1", v={"S": "landed"})
    world.delete(NAME, "k8")
    world.capture(NAME)
    world.build_cdc(NAME)
    return world


def _sample(world: World, items: int = 60) -> Any:
    return reconcile_sample(world.table_lake(NAME), items)


def _full(world: World, *, repair: bool = False) -> Any:
    return reconcile_full(world.table_lake(NAME), repair=repair)


def _kinds(report: Any) -> dict[str, str]:
    return {json.loads(d.key)["pk"]["S"]: d.kind for d in report.differences}


def test_a_sound_lake(filled: World) -> None:
    sampled = _sample(filled)
    assert sampled.is_sound, sampled
    assert sampled.compared == 11, "every key that ever was, once"
    assert sampled.export.files >= 1
    assert sampled.export.items == sampled.export.staged_rows == 10
    before = filled.items(NAME)
    full = _full(filled)
    assert full.is_sound, full
    assert full.compared == 9
    assert full.files.bytes > 0
    assert filled.items(NAME) == before
    assert staged_shadow(filled.table_lake(NAME)) is None
    assert assert_mirrors(filled, NAME) == 9


def _rewrite(path: Path, change: Callable[[dict[str, Any]], None], at: int = 0) -> None:
    """Change one row of a Parquet file; name, rows and all other values stay."""
    table = pq.read_table(path)
    rows = table.to_pylist()
    change(rows[at])
    pq.write_table(pa.Table.from_pylist(rows, table.schema), path)


def _alter_item(row: dict[str, Any]) -> None:
    name = "_item" if "_item" in row else "new_image"
    row[name] = row[name].replace("S", "B", 1) if row[name] else '{"pk":{"S":"?"}}'


def _iceberg_file(world: World, kind: str) -> Path:
    found = world.lake().iceberg.load(f"{NAME}_{kind}")
    assert found is not None
    return Path(data_files(found)[0])


def _landing_file(world: World, *, newest: bool) -> Path:
    objects = world.table_lake(NAME).log.load().objects.values()
    chosen = sorted(objects, key=lambda landed: landed.entry)[-1 if newest else 0]
    return world.folder / "lake" / chosen.key


def _base_file_removed(world: World) -> str:
    path = _iceberg_file(world, "current_state")
    path.unlink()
    return path.name


def _base_row_altered(world: World) -> str:
    path = _iceberg_file(world, "current_state")
    _rewrite(path, _alter_item, at=5)  # which nobody has changed since the baseline
    return path.name


def _landing_object_removed(world: World) -> str:
    path = _landing_file(world, newest=True)
    path.unlink()
    return path.name


def _landing_row_altered(world: World) -> str:
    path = _landing_file(world, newest=True)
    _rewrite(path, _alter_item)
    return path.name


def _folded_landing_row_altered(world: World) -> str:
    path = _landing_file(world, newest=False)
    _rewrite(path, _alter_item)
    return path.name


def _snapshot_row_group_altered(world: World) -> str:
    path = _iceberg_file(world, "snapshot")
    _rewrite(path, _alter_item)
    return path.name


def _snapshot_byte_flipped(world: World) -> str:
    """The same size and the same number of rows."""
    path = _iceberg_file(world, "snapshot")
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(bytes(data))
    return path.name


def _tombstones_removed(world: World) -> str:
    path = _iceberg_file(world, "tombstones")
    path.unlink()
    return path.name


DAMAGES = [
    _base_file_removed,
    _base_row_altered,
    _landing_object_removed,
    _landing_row_altered,
    _folded_landing_row_altered,
    _snapshot_row_group_altered,
    _snapshot_byte_flipped,
    _tombstones_removed,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__.strip("_"))
def test_damage_is_found_named_and_repaired(filled: World, damage: Any) -> None:
    landed = filled.rows("SELECT * EXCLUDE (generation) FROM orders.raw_stream ORDER BY uuid", NAME)
    name = damage(filled)
    result = CliRunner().invoke(main, ["reconcile", NAME, "--full", "--yes"])
    assert result.exit_code == 1, result.output
    assert name in result.output
    assert "Fix: cdc-pipeline reconcile orders --full --repair" in result.output
    repaired = CliRunner().invoke(main, ["reconcile", NAME, "--full", "--repair", "--yes"])
    assert repaired.exit_code == 0, repaired.output
    assert "repaired" in repaired.output
    assert "0 written off" in repaired.output
    assert assert_mirrors(filled, NAME) == 9
    after = filled.rows("SELECT * EXCLUDE (generation) FROM orders.raw_stream ORDER BY uuid", NAME)
    assert after == landed, "what landed is there again, row by row"
    again = _full(filled)
    assert again.is_sound, again


def test_an_altered_row_is_a_difference_with_key_and_order_key(filled: World) -> None:
    """Also where nobody wrote a checksum down, as versions before this one did not."""
    _base_row_altered(filled)
    report = _full(filled)
    ((difference),) = report.differences
    assert difference.kind == "different"
    assert difference.order_key is not None
    assert difference.order_key.startswith("00000")
    assert report.ranges_joined == 1
    sampled = _sample(filled)
    assert [d.key for d in sampled.differences] == [difference.key]


def test_a_dropped_day_of_cdc_is_found_and_built_again(filled: World) -> None:
    cdc = filled.lake().iceberg.load(f"{NAME}_cdc")
    assert cdc is not None
    before = filled.rows("SELECT * FROM orders.cdc ORDER BY uuid", NAME)
    (day,) = filled.days(NAME)
    cdc.delete(f"day = '{day}'")
    assert filled.rows("SELECT count(*) FROM orders.cdc", NAME) == [(0,)]
    report = _sample(filled)
    ((damage),) = report.files.damages
    assert str(damage) == (
        f"cdc {day} holds 0 rows and was built with {len(before)}. "
        f"Fix: materialise orders/cdc of {day}"
    )
    filled.build_cdc(NAME)
    assert _sample(filled).is_sound
    assert filled.rows("SELECT * FROM orders.cdc ORDER BY uuid", NAME) == before


def test_a_landing_object_that_nothing_can_restore_is_written_off(filled: World) -> None:
    filled.put(NAME, "k2", v={"S": "not in cdc"})
    filled.capture(NAME)
    lost = _landing_file(filled, newest=True)
    lost.unlink()
    report = _full(filled, repair=True)
    assert report.repaired
    assert [Path(key).name for key in report.restored.lost] == [lost.name]
    assert filled.items(NAME)["k2"]["v"] == {"S": "not in cdc"}
    state = filled.table_lake(NAME).log.load()
    assert [Path(k).name for k in state.lost] == [lost.name]
    assert _full(filled).is_sound


def _lose_in_the_lake(world: World, pk: str) -> None:
    """Take an item out of the published base, as no capture would do it."""
    keys = pq.read_table(_iceberg_file(world, "current_state"))["_key"].to_pylist()
    tables = world.lake().iceberg
    published = tables.load(f"{NAME}_current_state")
    assert published is not None
    # With its count of items, else the next publication refuses its base.
    tables.remove_rows(published, "_key", {key for key in keys if f'"{pk}"' in key})


def test_each_kind_of_difference(filled: World) -> None:
    path = _iceberg_file(filled, "current_state")
    rows = pq.read_table(path).to_pylist()
    schema = pq.read_table(path).schema
    extra = next(row for row in rows if '"k3"' in row["_key"]).copy()
    for name in ("_key", "_item"):
        extra[name] = extra[name].replace('"k3"', '"ghost"')
    changed = [row for row in rows if '"k5"' not in row["_key"]]
    for row in changed:
        if '"k4"' in row["_key"]:
            row["_item"] = row["_item"].replace("text of 4", "other")
    pq.write_table(pa.Table.from_pylist([*changed, extra], schema), path)
    expected = {"ghost": "not in the source", "k4": "different", "k5": "missing in the lake"}
    full = _full(filled)
    assert _kinds(full) == expected
    assert full.counts == dict.fromkeys(expected.values(), 1)
    assert "other" not in str(full.differences), "keys are told, contents are not"
    assert _kinds(_sample(filled)) == expected


def test_items_in_flight_are_not_differences(filled: World) -> None:
    """Writers go on all the time; whatever is read, capture is a little behind."""
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            filled.put(NAME, f"hot{number % 5}", n={"N": str(number)})
            filled.delete(NAME, f"hot{(number + 2) % 5}")
            stop.wait(0.05)

    filled.put(NAME, "late", v={"S": "not captured yet"})
    writer = threading.Thread(target=write)
    writer.start()
    try:
        sampled = _sample(filled)
        full = _full(filled)
    finally:
        stop.set()
        writer.join()
    assert sampled.is_sound, sampled
    assert full.is_sound, full
    assert sampled.compared + sampled.unsettled >= 12


def test_a_real_difference_shows_beside_items_in_flight(filled: World) -> None:
    _lose_in_the_lake(filled, "k6")
    filled.put(NAME, "k1", v={"S": "in flight"})
    filled.put(NAME, "brand new", v={"S": "in flight"})
    assert _kinds(_sample(filled)) == {"k6": "missing in the lake"}
    filled.put(NAME, "k2", v={"S": "in flight"})
    assert _kinds(_full(filled)) == {"k6": "missing in the lake"}


def test_an_open_gap_is_no_difference_but_a_reason(filled: World) -> None:
    from cdc_pipeline.core.log.entries import Gap
    from cdc_pipeline.core.log.state import Entry

    log = filled.table_lake(NAME).log
    state = log.load()
    gap = Gap("trimmed", ("shard",), state.watermark_us, state.watermark_us + 1, 7)
    assert log.append(state, Entry(0, "nonce", "test", 0, gap=gap))
    with pytest.raises(NotReadyError, match="cdc-pipeline heal orders"):
        _sample(filled)


@pytest.mark.parametrize(
    ("blind", "seen"),
    [
        (("_any_of_lake", "_changed_last"), {"k5": "missing in the lake"}),
        (("_changed_last", "scan_some"), {"ghost": "not in the source"}),
        (("_any_of_lake", "scan_some"), {"k1": "different"}),
    ],
)
def test_each_origin_of_a_sample_finds_its_kind(
    filled: World, monkeypatch: pytest.MonkeyPatch, blind: tuple[str, str], seen: dict[str, str]
) -> None:
    filled.publish(NAME)  # so that what is altered is all that readers see
    path = _iceberg_file(filled, "current_state")
    table = pq.read_table(path)
    rows = [row for row in table.to_pylist() if '"k5"' not in row["_key"]]
    ghost = {**rows[0], "_key": rows[0]["_key"].replace("k0", "ghost"), "_order_key": "000009."}
    for row in rows:
        if '"k1"' in row["_key"]:
            row.update(_item="{}")
    pq.write_table(pa.Table.from_pylist([ghost, *rows], table.schema), path)
    for name in blind:
        monkeypatch.setattr(f"cdc_pipeline.reconcile.sample.{name}", lambda *_: [])
    time.sleep(2.1)  # of what changed within the clocks' difference nothing is said
    found = _kinds(_sample(filled))
    assert seen.items() <= found.items()


def test_a_sample_of_a_large_table_reads_random_places(world: World) -> None:
    world.make_table(NAME)
    world.configure(NAME)
    for number in range(60):
        world.put(NAME, f"k{number}", n={"N": str(number)})
    world.bootstrap(NAME)
    described = describe_table(world.lake().aws, NAME)
    assert described.item_count == 60
    read = [
        frozenset(item["pk"]["S"] for item in scan_some(world.lake().aws, described, 3))
        for _ in range(4)
    ]
    assert all(len(keys) <= 3 for keys in read)
    assert len(set(read)) > 1, "not the same items each time"
    assert _sample(world, 9).compared <= 9
    assert _sample(world, 9).is_sound


# Catching up


def _beats(state: LogState) -> int:
    assert state.heartbeat is not None
    return state.heartbeat.beats


_SLOW_LISTINGS = {"poll_seconds": 0.02, "empty_polls": 2, "listing_lag_seconds": 3}


def test_catching_up_captures_when_that_can_prove_something(filled: World) -> None:
    """Listings vouch for what is three seconds old; captures before that would be for nothing."""
    filled.configure(NAME, capture=_SLOW_LISTINGS)
    lake, table = filled.lake(), filled.table(NAME)
    before = lake.table(table).log.load()
    progress: list[str] = []
    until_us = lake.table(table).log.now_us()
    state = capture_to(lake.table(table), until_us, context=RunContext(progress.append))
    assert state.watermark_us >= until_us
    assert _beats(state) == _beats(before) + 1, "one capture that found nothing"
    assert any("is needed: waiting, capturing in" in said for said in progress), progress
    assert progress[-1].endswith("is needed: capturing")


def test_catching_up_waits_for_what_another_capture_lands(
    filled: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled.configure(NAME, capture=_SLOW_LISTINGS)
    lake, table = filled.lake(), filled.table(NAME)
    monkeypatch.setattr("cdc_pipeline.capture.catch_up._POLL_SECONDS", 1.0)
    monkeypatch.setattr("cdc_pipeline.capture.catch_up._capture", _killed)
    over = threading.Event()

    def capture() -> None:
        while not over.wait(0.3):
            filled.capture(NAME)

    other = threading.Thread(target=capture)
    other.start()
    try:
        until_us = lake.table(table).log.now_us()
        assert capture_to(lake.table(table), until_us).watermark_us >= until_us
    finally:
        over.set()
        other.join()


# Shadows


def _killed(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_a_discarded_shadow_leaves_the_live_baseline_untouched(filled: World) -> None:
    lake, table = filled.lake(), filled.table(NAME)
    exported = filled.rows("SELECT * FROM orders.pitr_export ORDER BY _key", NAME)
    staged = lake.iceberg.load(f"{NAME}_snapshot")
    assert staged is not None
    live = staged.current_snapshot()
    filled.put(NAME, "behind", v={"S": "x"})
    take_snapshot(lake.table(table), shadow=True)
    shadow = staged_shadow(lake.table(table))
    assert shadow is not None
    filled.capture_past_handover(NAME)
    published = filled.publish(NAME)
    assert not published.new_baseline
    assert filled.rows("SELECT * FROM orders.pitr_export ORDER BY _key", NAME) == exported
    assert assert_mirrors(filled, NAME) == 10
    discard_shadow(lake.table(table), shadow)
    assert staged_shadow(lake.table(table)) is None
    now = lake.iceberg.load(f"{NAME}_snapshot")
    assert now is not None
    assert now.current_snapshot() == live, "engines that read the catalogue see the live one"
    filled.put(NAME, "later", v={"S": "x"})
    filled.capture(NAME)
    filled.publish(NAME)
    assert assert_mirrors(filled, NAME) == 11


def test_readers_see_whole_states_while_a_shadow_takes_over(filled: World) -> None:
    """Damage makes the two states differ; each query sees all of one, an open connection one."""
    lake, table = filled.lake(), filled.table(NAME)
    _lose_in_the_lake(filled, "k6")
    take_snapshot(lake.table(table), shadow=True)
    shadow = staged_shadow(lake.table(table))
    assert shadow is not None
    filled.capture_past_handover(NAME)
    sql = "SELECT list(_item ORDER BY _key) FROM orders.current_state"
    ((before,),) = filled.rows(sql, NAME)
    opened = connect_lake(lake, [NAME], aggregates=False)
    seen: list[list[str]] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            seen.extend(items for (items,) in filled.rows(sql, NAME))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        release_shadow(lake.table(table), shadow)
        time.sleep(0.3)
        assert filled.publish(NAME).new_baseline
        time.sleep(0.3)
    finally:
        stop.set()
        reader.join()
    ((after,),) = filled.rows(sql, NAME)
    assert len(after) == len(before) + 1
    with opened:
        assert opened.execute(sql).fetchall() == [(before,)]
    assert before in seen
    assert all(items in (before, after) for items in seen)
    assert seen == sorted(seen, key=len), "never back to the old one"
    assert assert_mirrors(filled, NAME) == 9


def test_a_baseline_that_is_asked_for_takes_over_an_unfinished_shadow(
    filled: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as context:
        context.setattr("cdc_pipeline.snapshot.snapshot._stage", _killed)
        with pytest.raises(KeyboardInterrupt):
            take_snapshot(filled.table_lake(NAME), shadow=True)
    shadow = filled.table_lake(NAME).log.load().shadow
    assert shadow is not None
    taken = filled.snapshot(NAME)
    assert (taken.generation, taken.export_arn) == (shadow.generation, shadow.export_arn)
    filled.capture_past_handover(NAME)
    assert filled.publish(NAME).new_baseline


def test_a_repair_uses_the_export_that_showed_the_difference(filled: World) -> None:
    _lose_in_the_lake(filled, "k6")
    shown = _full(filled)
    filled.put(NAME, "k1", v={"S": "after the export"})
    repaired = _full(filled, repair=True)
    assert repaired.repaired
    assert repaired.export_arn == shown.export_arn
    filled.capture(NAME)
    assert assert_mirrors(filled, NAME) == 9


def test_maintenance_removes_a_discarded_shadow_and_nothing_else(
    filled: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, table = filled.lake(), filled.table(NAME)
    live = set(filled.stored("iceberg/cdc/orders_snapshot/data/"))
    take_snapshot(lake.table(table), shadow=True)
    shadow = staged_shadow(lake.table(table))
    assert shadow is not None
    both = set(filled.stored("iceberg/cdc/orders_snapshot/data/"))
    assert live < both

    def maintain(days: int) -> set[str]:
        later = datetime.now(UTC) + timedelta(days=days)

        class Later:
            @staticmethod
            def now(_: object) -> datetime:
                return later

        with monkeypatch.context() as context:
            context.setattr("cdc_pipeline.lake.upkeep.maintenance.datetime", Later)
            maintain_table(lake.table(table))
        return set(filled.stored("iceberg/cdc/orders_snapshot/data/"))

    with monkeypatch.context() as context:
        context.setattr("cdc_pipeline.snapshot.shadow.record_baseline", _killed)
        with pytest.raises(KeyboardInterrupt):
            discard_shadow(lake.table(table), shadow)
    assert maintain(10) == both, "it is held still: somebody may publish it"
    discard_shadow(lake.table(table), shadow)
    assert maintain(6) == both
    assert maintain(10) == live
    exported = filled.rows("SELECT count(*) FROM orders.pitr_export", NAME)
    assert exported == [(10,)]
    assert _full(filled).is_sound


def test_a_filtered_export_proves_nothing(filled: World, monkeypatch: pytest.MonkeyPatch) -> None:
    before = filled.items(NAME)
    with monkeypatch.context() as patch:
        filter_exports(patch)
        with pytest.raises(ExportError, match="is filtered, so items missing in it prove nothing"):
            _full(filled, repair=True)
    assert filled.items(NAME) == before
    assert staged_shadow(filled.table_lake(NAME)) is None
    assert _full(filled).is_sound


def test_a_repair_that_is_killed_anywhere(filled: World) -> None:
    """A file of the base gone, a landing object damaged; SIGKILL before each durable operation."""
    _base_file_removed(filled)
    _folded_landing_row_altered(filled)
    start = Checkpoint.take(filled)
    killer = Killer(filled)
    try:
        whole = killer.run("repair", NAME)
        assert (whole.signal, whole.code) == (None, 0), whole.error
        # The staged export, its tag, the tombstones, the base.
        assert sum(op.startswith("Iceberg commit") for op in whole.operations) == 4
        for number in range(1, len(whole.operations) + 1):
            start.restore()
            killed = killer.run("repair", NAME, kill_at=number)
            assert killed.signal == signal.SIGKILL, killed.error
            again = killer.run("repair", NAME)
            assert again.code == 0, f"killed before {killed.operations[-1]}: {again.error}"
            filled.capture(NAME)
            assert assert_mirrors(filled, NAME) == 9
            assert not verify_files(filled.table_lake(NAME), content=True).damages
    finally:
        killer.close()


# The command line


@pytest.fixture
def cli(filled: World) -> Callable[..., Result]:
    def run(*arguments: str, stdin: str | None = None) -> Result:
        return CliRunner().invoke(main, ["reconcile", NAME, *arguments], input=stdin)

    return run


def test_cli(filled: World, cli: Any) -> None:
    sound = cli("--json", "--sample", "9")
    assert sound.exit_code == 0, sound.output
    report = json.loads(sound.stdout)
    assert report["sound"]
    assert report["compared"] >= 3
    assert "read units" in sound.stderr
    assert cli("--repair").exit_code == 2
    before = filled.dynamodb.list_exports()["ExportSummaries"]
    refused = cli("--full", stdin="n\n")
    assert refused.exit_code == 1
    assert "USD" in refused.stderr
    assert filled.dynamodb.list_exports()["ExportSummaries"] == before, "no yes, no export"
    _lose_in_the_lake(filled, "k6")
    found = cli("--json", "--full", "--yes")
    assert found.exit_code == 1
    report = json.loads(found.stdout)
    assert [d["kind"] for d in report["differences"]] == ["missing in the lake"]
    assert "text of" not in found.output


def test_cli_shows_keys_as_they_are(filled: World, cli: Any) -> None:
    """What looks like markup of the terminal library is a key like any other."""
    filled.put(NAME, "[/b]", v={"S": "x"})
    filled.capture(NAME)
    filled.publish(NAME)
    _lose_in_the_lake(filled, "[/b]")
    found = cli("--sample", "60")
    assert found.exit_code == 1
    assert '{"pk":{"S":"[/b]"}' in found.stdout
    assert "missing in the lake" in found.stdout


def test_masked_tables_are_compared_as_published(
    sandbox: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(sandbox, tmp_path / "masked", "local")
    world.activate(monkeypatch)
    monkeypatch.setenv("CDC_MASKING_KEY", "k" * 32)
    world.make_table(NAME)
    world.configure({"name": NAME, "columns": {"pk": {"hash": True}, "ssn": {"drop": True}}})
    for number in range(6):
        world.put(NAME, f"person{number}", ssn={"S": f"ssn{number}"}, v={"S": "x"})
    world.bootstrap(NAME)
    world.put(NAME, "person1", ssn={"S": "secret"}, v={"S": "y"})
    world.capture(NAME)
    assert _sample(world).is_sound
    assert _full(world).is_sound
    path = _iceberg_file(world, "current_state")
    table = pq.read_table(path)
    rows = table.to_pylist()[1:]
    pq.write_table(pa.Table.from_pylist(rows, table.schema), path)
    for report in (_sample(world), _full(world)):
        assert [d.kind for d in report.differences] == ["missing in the lake"]
        assert "person" not in str(report)
        assert "ssn" not in str(report)
    assert _full(world, repair=True).repaired
    assert assert_mirrors_masked(world) == 6


def assert_mirrors_masked(world: World) -> int:
    from cdc_pipeline.reconcile.compare import compare_with_source

    compared = compare_with_source(world.table_lake(NAME))
    assert compared.differences == 0, compared
    return compared.items


@pytest.mark.parametrize("kind", ["s3"], indirect=True)
def test_a_lake_in_s3(filled: World) -> None:
    """The same in S3: objects gone and replaced by others of the same name."""
    assert _sample(filled).is_sound
    s3, lake = filled.client("s3"), filled.lake()
    found = lake.iceberg.load(f"{NAME}_current_state")
    assert found is not None
    base = data_files(found)[0].removeprefix(f"s3://{filled.bucket}/")
    s3.delete_object(Bucket=filled.bucket, Key=base)
    newest = max(lake.table(filled.table(NAME)).log.load().objects)
    data = bytearray(lake.store.read(newest) or b"")
    data[len(data) // 2] ^= 1
    lake.store.write(newest, bytes(data))
    report = _full(filled)
    names = {damage.name.rpartition("/")[2]: damage.found for damage in report.files.damages}
    assert names == {
        base.rpartition("/")[2]: "is missing",
        newest.rpartition("/")[2]: "was altered: its checksum differs",
    }
    assert report.unreadable is not None
    assert _full(filled, repair=True).repaired
    assert assert_mirrors(filled, NAME) == 9
    filled.put(NAME, "k1", sk=1, v={"S": "goes on"})
    filled.dynamodb.delete_item(TableName=NAME, Key=key("k2"))
    filled.capture(NAME)
    assert _full(filled).is_sound


# Dagster


@pytest.fixture
def deployment(filled: World) -> Any:
    with deploy(filled) as made:
        yield made


def _checks(deployment: Deployment) -> dict[str, Any]:
    result = deployment.run_job("reconcile")
    assert result.success
    return {check.check_name: check for check in result.get_asset_check_evaluations()}


def test_checks_of_a_sound_lake(deployment: Deployment) -> None:
    checks = _checks(deployment)
    assert {name: check.passed for name, check in checks.items()} == {
        "export_verified": True,
        "sample_matches_source": True,
    }
    assert checks["sample_matches_source"].metadata["items_compared"].value == 11
    assert checks["export_verified"].metadata["staged_rows"].value == 10


def test_checks_run_apart_from_materialisations(deployment: Deployment) -> None:
    """They ask the source and may wait for capture; publications do not wait for them."""
    result = deployment.materialize(NAME, "current_state")
    assert result.success
    assert {c.check_name for c in result.get_asset_check_evaluations()} == {
        "columns_for_all_attributes",
        "fresh",
        "type_conflicts",
    }
    day = deployment.materialize(NAME, "cdc", day=today())
    assert day.success


def test_the_proof_outlives_what_is_published_later(
    filled: World, deployment: Deployment, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that materialises neither makes these checks nor plans them, and alarms go by them."""
    _lose_in_the_lake(filled, "k6")
    proofs = {name: check.passed for name, check in _checks(deployment).items()}
    assert proofs == {"export_verified": True, "sample_matches_source": False}
    for asset in ("current_state", "pitr_export"):
        assert deployment.materialize(NAME, asset).success
    source = dg.AssetKey([NAME, "dynamodb"])
    assert {name: _answer(deployment, source, name) for name in proofs} == {
        "export_verified": "SUCCEEDED",
        "sample_matches_source": "FAILED",
    }
    tick = deployment.tick("alarm_sensor")
    assert f"{NAME}/dynamodb sample_matches_source" in tick.skip_message
    assert f"ERROR: {NAME}/dynamodb sample_matches_source (" in capsys.readouterr().err


def _answer(deployment: Deployment, asset: dg.AssetKey, name: str) -> str:
    """The state of a check's latest execution, planned ones included."""
    key = dg.AssetCheckKey(asset, name)
    record = deployment.instance.get_latest_asset_check_evaluation_record(key)
    assert record is not None
    return record.status.value


def test_checks_name_what_is_wrong(filled: World, deployment: Deployment) -> None:
    _lose_in_the_lake(filled, "k6")
    s3 = filled.client("s3")
    staged = filled.table_lake(NAME).log.load().staged
    assert staged is not None
    arn = staged.export_arn or ""
    listed = s3.list_objects_v2(Bucket=filled.bucket)["Contents"]
    summary = next(
        o["Key"]
        for o in listed
        if o["Key"].endswith("manifest-summary.json") and arn.rpartition("/")[2] in o["Key"]
    )
    export = Export(filled, summary)
    export.put(export.filled, export.get(export.filled) + b"?")
    checks = _checks(deployment)
    sampled, verified = checks["sample_matches_source"], checks["export_verified"]
    assert (sampled.passed, verified.passed) == (False, False)
    assert sampled.severity == verified.severity == dg.AssetCheckSeverity.ERROR
    assert "missing in the lake" in sampled.metadata["differing_items"].value
    assert '"k6"' in sampled.metadata["differing_items"].value
    assert "text of" not in str(sampled.metadata)
    assert export.filled in verified.metadata["problems"].value
    assert "materialise orders/pitr_export" in verified.metadata["problems"].value


def test_a_full_comparison_by_schedule(filled: World) -> None:
    filled.configure(NAME, reconcile={"schedule": None, "full_schedule": "0 5 * * 0"})
    with deploy(filled) as made:
        schedules = made.defs.get_repository_def().schedule_defs
        crons = {schedule.name: schedule.cron_schedule for schedule in schedules}
        assert crons.get("reconcile_full") == "0 5 * * 0"
        assert "reconcile" not in crons
        result = made.run_job("reconcile_full")
        assert result.success
        (check,) = result.get_asset_check_evaluations()
        assert (check.check_name, check.passed) == ("all_items_match_source", True)
        assert check.metadata["items_compared"].value == 9
        assert check.metadata["export_arn"].value
