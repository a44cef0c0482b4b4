"""Erase on request: no file of the lake holds anything of the item, and it does not come back."""

import base64
import gzip
import io
import json
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner

from cdc_pipeline.aws.export import describe_export, read_data_file, read_manifest
from cdc_pipeline.capture.landing import lander
from cdc_pipeline.cli import main
from cdc_pipeline.core.errors import (
    EraseRefusedError,
    LakeError,
    NotReadyError,
)
from cdc_pipeline.core.log.entries import Baseline, Erasure
from cdc_pipeline.core.log.state import Entry, LogState
from cdc_pipeline.erase.erase import erase_item, erase_target, find_traces
from cdc_pipeline.erase.files import _avro_text
from cdc_pipeline.lake.engine.duckdb_session import arrow_table
from cdc_pipeline.lake.engine.masking import masking_of
from cdc_pipeline.lake.iceberg.tables import CommitConflictError, Tables
from cdc_pipeline.lake.query.aggregates import build_aggregate
from cdc_pipeline.lake.query.connection import connect_lake
from cdc_pipeline.lake.state import fold
from cdc_pipeline.lake.storage.landing import write_quarantine
from cdc_pipeline.lake.storage.log import CaptureLog, new_nonce
from cdc_pipeline.lake.upkeep.maintenance import maintain_table
from cdc_pipeline.repair.heal import heal_gap, open_gaps
from cdc_pipeline.sandbox.process import SandboxProcess
from cdc_pipeline.transform.aggregates import load_aggregates
from cdc_pipeline_tests.e2e.world import (
    World,
    assert_mirrors,
    assert_nothing_twice,
    key,
    make_world,
    quick_sandbox,
)

pytestmark = pytest.mark.slow
VICTIM = "victim-5e1f"
SECRETS = (VICTIM, "first secret", "second secret", "snapshot secret")
KEY = json.dumps({"pk": VICTIM, "sk": 1})


@pytest.fixture(scope="module")
def sandbox() -> Iterator[SandboxProcess]:
    """Windows of any length, for the heal."""
    with quick_sandbox() as process:
        yield process


@pytest.fixture(params=["s3", "local"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def world(
    sandbox: SandboxProcess, tmp_path: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> World:
    made = make_world(sandbox, tmp_path, kind)
    made.activate(monkeypatch)
    made.client("s3").put_bucket_versioning(
        Bucket=made.bucket, VersioningConfiguration={"Status": "Enabled"}
    )
    monkeypatch.setattr("cdc_pipeline.repair.incremental_export.WAIT_SECONDS", 0.2)
    folder = tmp_path / "aggregates"
    folder.mkdir()
    (folder / "per_note.sql").write_text(
        "SELECT note, count(*) AS n FROM orders.current_state GROUP BY 1"
    )
    (folder / "per_day.sql").write_text(
        "-- partitioned: daily\nSELECT note, count(*) AS n FROM "
        "(SELECT data ->> '$.note' AS note, day FROM orders.cdc) WHERE day = $day GROUP BY 1"
    )
    made.make_table("orders")
    export = {"bucket": made.bucket, "poll_seconds": 0.05, "least_window_minutes": 1 / 60}
    made.configure("orders", export=export, aggregates=str(folder))
    return made


def _note(text: str) -> dict[str, Any]:
    return {"S": text}


def _fill(world: World) -> None:
    """Two baselines, changes before, between and behind them, and everything made from that."""
    for number in range(10):
        world.put("orders", f"k{number}", note=_note(f"plain {number}"))
    world.put("orders", VICTIM, note=_note("snapshot secret"))
    world.bootstrap("orders")
    world.put("orders", VICTIM, note=_note("first secret"))
    world.put("orders", "k1", note=_note("changed"), friend=_note("k2"))
    world.capture("orders")
    world.publish("orders")
    _build(world)
    world.bootstrap("orders")
    world.put("orders", VICTIM, note=_note("second secret"))
    world.capture("orders")
    _build(world)
    maintain_table(world.table_lake("orders"))
    world.delete("orders", VICTIM)
    world.delete("orders", "k9")


def _build(world: World) -> None:
    world.build_cdc("orders")
    lake = world.lake()
    for aggregate in load_aggregates(lake.settings.aggregates_folder):
        for day in world.days("orders") if aggregate.daily else [None]:
            build_aggregate(lake, aggregate, day)


def _leave_copies(world: World) -> None:
    """Quarantined records and backups, of the item and of others."""
    lake, table = world.lake(), world.table("orders")
    paths, log = lake.table(table).paths, lake.table(table).log
    ours = {"dynamodb": {"Keys": key(VICTIM), "NewImage": {"note": {"BAD": "first secret"}}}}
    other = {"dynamodb": {"Keys": key("k1"), "NewImage": {"friend": {"S": VICTIM[:5]}}}}
    broken = f'{{"dynamodb": {{"Keys": {{"pk": {{"S": "{VICTIM}"}}, "sk": {{"N": "1"}}'
    records = [("bad", json.dumps(part).encode()) for part in (ours, other)]
    state = log.load()
    nonce = new_nonce()
    quarantined = write_quarantine(
        lake.store,
        paths,
        [*records, ("cut", broken.encode())],
        n=state.n + 1,
        nonce=nonce,
        landed_us=log.now_us(),
    )
    assert log.append(state, Entry(0, nonce, "test", 0, quarantined=tuple(quarantined)))
    # Firehose's backups: records without anything between them, here compressed.
    text = json.dumps(other) + json.dumps(ours) + json.dumps(other)
    lake.store.write(f"{paths.backups}year=2026/one", gzip.compress(text.encode()))
    lake.store.write(f"{paths.backups}year=2026/two", json.dumps(ours).encode())
    # What a killed writer left.
    some = next(iter(state.objects))
    data = lake.store.read(some)
    assert data is not None
    orphan = f"{some.rpartition('/')[0]}/{1:012d}-{'f' * 16}.parquet"
    lake.store.write(orphan, data)
    lake.store.write(
        f"{some.rpartition('/')[0]}/compacted-{1:012d}-{2:012d}-{'e' * 16}.parquet", data
    )
    lake.store.write(f"{paths.staging}left.parquet", data)


def _everything(world: World) -> dict[str, bytes]:
    """Every file of the world by name, all versions of it, seen by something that is not ours."""
    s3, found = world.client("s3"), {}
    pages = s3.get_paginator("list_object_versions")
    for page in pages.paginate(Bucket=world.bucket):
        for version in page.get("Versions", ()):
            where = {"Key": version["Key"], "VersionId": version["VersionId"]}
            body = s3.get_object(Bucket=world.bucket, **where)["Body"].read()
            found[f"{version['Key']}#{version['VersionId']}"] = body
    if world.kind == "local":
        for path in (world.folder / "lake").rglob("*"):
            if path.is_file():
                found[str(path)] = path.read_bytes()
    return found


def _telling(data: bytes) -> bytes:
    """The bytes of a file as people would find them in it: raw, inflated, and all its values."""
    if data.startswith(b"PAR1"):
        file = pq.ParquetFile(io.BytesIO(data))
        said = [json.dumps(file.read().to_pylist(), default=str, ensure_ascii=False)]
        for group in range(file.metadata.num_row_groups):
            for column in range(file.metadata.num_columns):
                said.append(str(file.metadata.row_group(group).column(column).statistics))
        return data + "".join(said).replace("\\", "").encode()
    if data.startswith(b"Obj\x01"):
        return data + _avro_text(data)
    if data.startswith(b"\x1f\x8b"):
        return data + gzip.decompress(data)
    if b"record_base64" in data:
        lines = [json.loads(line)["record_base64"] for line in data.splitlines()]
        return data + b"".join(map(base64.b64decode, lines))
    return data


def _where(world: World, *texts: str) -> set[str]:
    """Files in which any of the texts is."""
    return {
        name
        for name, data in _everything(world).items()
        if any(text.encode() in _telling(data) for text in texts)
    }


def _state(world: World) -> LogState:
    return world.table_lake("orders").log.load()


def _views(world: World) -> dict[str, list[str]]:
    """All that readers see of every other item, whatever the order of columns."""
    keys = {"current_state": "_key", "pitr_export": "_key", "raw_stream": "keys", "cdc": "keys"}
    seen = {}
    with connect_lake(world.lake(), ["orders"], aggregates=False) as connection:
        for view, column in keys.items():
            sql = f"SELECT * FROM orders.{view} WHERE {column} NOT LIKE '%{VICTIM}%'"
            rows = arrow_table(connection, sql).to_pylist()
            seen[view] = sorted(json.dumps(row, sort_keys=True, default=str) for row in rows)
    return seen


def test_nothing_of_the_item_is_left(world: World) -> None:
    _fill(world)
    _leave_copies(world)
    lake, table = world.lake(), world.table("orders")
    before, views = _where(world, *SECRETS), _views(world)
    assert len(before) > 20
    held, _ = find_traces(erase_target(lake.table(table), KEY))
    assert {h.place for h in held} >= {
        *("landing", "quarantine", "backups", "state", "current_state", "cdc", "snapshot"),
        "exports",
    }
    assert _where(world, *SECRETS) == before  # looking changes nothing

    done = erase_item(lake.table(table), KEY)

    assert _where(world, *SECRETS) == set()
    state = _state(world)
    (erasure,) = state.erasures.values()
    assert erasure == done.erasure
    assert erasure.done_us
    assert {part.place for part in erasure.removed} >= {"landing", "cdc", "snapshot", "exports"}
    # Everything else is as it was, and the delete that was on its way does not land.
    assert _views(world) == views
    world.capture("orders")
    world.publish("orders")
    _build(world)
    assert assert_mirrors(world, "orders") == 9
    assert_nothing_twice(world, "orders")
    assert _where(world, *SECRETS) == set()
    assert sum(q.rows for q in state.quarantined.values()) == 1
    # What was rewritten is verified by its checksum again, as all else.
    for landed in state.objects.values():
        assert landed.crc32 == zlib.crc32(lake.store.read(landed.key) or b""), landed.key
    assert [b.items for b in state.baselines.values()] == [10, 10]
    rows = world.rows("SELECT note, n FROM aggregates.per_note", "orders", aggregates=True)
    assert sorted(rows) == sorted([("changed", 1), *((f"plain {n}", 1) for n in (0, *range(2, 9)))])
    backup = lake.store.read(f"{lake.table(table).paths.backups}year=2026/one")
    assert gzip.decompress(backup or b"").count(b'"k1"') == 2
    for baseline in state.baselines.values():
        assert baseline.export_arn
        status = describe_export(lake.aws, baseline.export_arn)
        manifest = read_manifest(lake.aws, status)
        assert manifest.items == 10
        for file in manifest.files:  # raises if its checksum is another
            lines = b"".join(read_data_file(lake.aws, status, file)).splitlines()
            assert len(lines) == file.items

    # Once more: no row to remove, nothing to break.
    views = _views(world)
    again = erase_item(lake.table(table), KEY).erasure
    assert _rows(again) == _rows(erasure)
    assert _views(world) == views


def _rows(erasure: Erasure) -> dict[str, int]:
    return {part.place: part.rows for part in erasure.removed if part.rows}


def test_the_source_still_has_it(world: World) -> None:
    world.put("orders", VICTIM)
    world.bootstrap("orders")
    n = _state(world).n
    with pytest.raises(EraseRefusedError, match=r"still has the item(.|\n)*delete it there first"):
        erase_item(world.table_lake("orders"), KEY)
    assert _state(world).n == n
    assert VICTIM in world.items("orders")


def test_an_export_is_under_way(world: World) -> None:
    world.bootstrap("orders")
    lake, table = world.lake(), world.table("orders")
    log = lake.table(table).log
    state = log.load()
    begun = Baseline(2, log.now_us(), log.now_us())
    assert log.append(state, Entry(0, new_nonce(), "test", 0, baseline=begun))
    with pytest.raises(EraseRefusedError, match=r"export is in progress(.|\n)*orders/pitr_export"):
        erase_item(lake.table(table), KEY)


def test_a_new_item_under_the_old_key(world: World) -> None:
    world.put("orders", VICTIM, note=_note("first secret"))
    world.bootstrap("orders")
    world.delete("orders", VICTIM)
    erase_item(world.table_lake("orders"), KEY)
    world.put("orders", VICTIM, note=_note("a new life"))
    world.capture("orders")
    world.publish("orders")
    assert world.items("orders")[VICTIM]["note"] == _note("a new life")
    world.bootstrap("orders")  # a new export has it, too
    _build(world)
    assert assert_mirrors(world, "orders") == 1
    assert [op for (op,) in world.rows("SELECT op FROM orders.cdc", "orders")] == ["I"]
    assert _where(world, "first secret") == set()


def test_nothing_brings_it_back(world: World) -> None:
    """A replay of the stream, a heal over the time of its life, and an export of the past."""
    world.put("orders", "k1")
    world.put("orders", VICTIM, note=_note("first secret"))
    world.bootstrap("orders")
    _turn_stream(world, on=False)
    world.put("orders", VICTIM, note=_note("second secret"))
    world.put("orders", "k2")
    time.sleep(1.1)
    world.delete("orders", VICTIM)
    _turn_stream(world, on=True)
    world.capture("orders")
    lake, table = world.lake(), world.table("orders")
    (gap,) = open_gaps(lake.table(table))
    erase_item(lake.table(table), KEY)
    lines = 0
    while not _state(world).is_healed(gap.entry):
        world.capture("orders")
        with suppress(NotReadyError):
            lines += heal_gap(lake.table(table), gap).lines
    world.publish("orders")
    world.build_cdc("orders")
    assert assert_mirrors(world, "orders") == 2
    # Only what AWS has just written itself speaks of it; that goes, too, when it is asked for.
    written = _where(world, *SECRETS)
    assert written
    assert all("/AWSDynamoDB/data/" in name for name in written)
    erase_item(lake.table(table), KEY)
    assert _where(world, *SECRETS) == set()


def test_an_export_of_a_time_when_it_was_there(world: World) -> None:
    world.put("orders", VICTIM, note=_note("first secret"))
    world.put("orders", "k1")
    world.capture("orders")  # positions are recorded here, and the export will be of that time
    time.sleep(1.1)
    world.delete("orders", VICTIM)
    erase_item(world.table_lake("orders"), KEY)
    taken = world.snapshot("orders")
    assert taken.items == 1
    world.capture_past_handover("orders")
    world.publish("orders")
    assert set(world.items("orders")) == {"k1"}
    assert all("/AWSDynamoDB/" in name for name in _where(world, *SECRETS))


def _turn_stream(world: World, on: bool) -> None:
    specification: dict[str, Any] = {"StreamEnabled": on}
    if on:
        specification["StreamViewType"] = "NEW_AND_OLD_IMAGES"
    world.dynamodb.update_table(TableName="orders", StreamSpecification=specification)


def test_an_aggregate_that_cannot_be_built(world: World) -> None:
    """It still shows the item, so the erasure is not done; without it, it is."""
    world.put("orders", VICTIM, note=_note("first secret"))
    world.bootstrap("orders")
    _build(world)
    world.delete("orders", VICTIM)
    lake, table = world.lake(), world.table("orders")
    sql = lake.settings.aggregates_folder / "per_note.sql"
    sql.write_text("SELECT nowhere FROM orders.current_state")
    with pytest.raises(LakeError, match=r"cannot be built again: per_note(.|\n)*erase again"):
        erase_item(lake.table(table), KEY)
    assert not any(erasure.done_us for erasure in _state(world).erasures.values())
    sql.write_text("SELECT pk AS note, count(*) AS n FROM orders.current_state GROUP BY 1")
    erase_item(lake.table(table), KEY)
    assert _where(world, *SECRETS) == set()


def test_captures_at_the_same_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have read its changes and written their objects when the suppression is logged."""
    world.put("orders", "k1")
    world.bootstrap("orders")
    world.put("orders", VICTIM, note=_note("first secret"))
    world.put("orders", "k2")
    world.delete("orders", VICTIM)
    real, both, erased = lander.write_landing, threading.Barrier(3), threading.Event()

    def write_landing(*args: Any, **kwargs: Any) -> Any:
        objects = real(*args, **kwargs)
        if objects and not erased.is_set():
            both.wait(20)  # their objects are there, and hold it
            erased.wait(60)
        return objects

    monkeypatch.setattr(lander, "write_landing", write_landing)
    with ThreadPoolExecutor(2) as pool:
        captures = [pool.submit(world.capture, "orders") for _ in range(2)]
        both.wait(20)
        assert any("dynamo-cdc/" in name for name in _where(world, "first secret"))
        erase_item(world.table_lake("orders"), KEY)
        erased.set()
        failed = [type(c.exception()) for c in captures if c.exception()]
    assert failed == [], "who lost the race goes on"
    monkeypatch.undo()
    world.activate(monkeypatch)
    assert _where(world, *SECRETS) == set()
    world.capture("orders")
    world.publish("orders")
    assert set(world.items("orders")) == {"k1", "k2"}
    assert _where(world, *SECRETS) == set()


def test_a_publication_at_the_same_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has read the item's changes, and may not commit what it made of them."""
    world.put("orders", "k1")
    world.bootstrap("orders")
    world.put("orders", VICTIM, note=_note("first secret"))
    world.capture("orders")
    world.delete("orders", VICTIM)
    lake, table = world.lake(), world.table("orders")
    real = fold.replace_tombstones

    def erase_first(*args: Any) -> None:
        monkeypatch.setattr(fold, "replace_tombstones", real)
        erase_item(lake.table(table), KEY)
        real(*args)

    monkeypatch.setattr(fold, "replace_tombstones", erase_first)
    with pytest.raises(CommitConflictError):
        world.publish("orders")
    world.publish("orders")
    assert set(world.items("orders")) == {"k1"}


def test_killed_between_any_two_steps(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every write and every delete in turn is the last thing that a run did."""

    class Killed(BaseException):
        pass

    _fill(world)
    _leave_copies(world)
    lake, table = world.lake(), world.table("orders")
    left = 0

    def dying(real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return real(*args, **kwargs)

        return call

    steps = [(CaptureLog, "append"), (Tables, "_commit"), (Tables, "expire"), (Tables, "branch")]
    steps += [(type(lake.store), "write"), (type(lake.store), "delete")]
    for owner, name in steps:
        monkeypatch.setattr(owner, name, dying(getattr(owner, name)))
    kills = 0
    apart = 3 if world.kind == "local" else 6  # in S3 each run takes seconds
    for survived in (*range(0, 60, apart), 10_000):
        left = survived
        try:
            erase_item(lake.table(table), KEY)
            break
        except Killed:
            kills += 1
    assert kills >= 5
    left = 10_000
    assert all(erasure.done_us for erasure in _state(world).erasures.values())
    assert _where(world, *SECRETS) == set()
    world.capture("orders")
    world.publish("orders")
    _build(world)
    assert assert_mirrors(world, "orders") == 9
    assert_nothing_twice(world, "orders")
    assert sum(q.rows for q in _state(world).quarantined.values()) == 1


def test_a_masked_key(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CDC_MASKING_KEY", "k" * 32)
    settings = yaml.safe_load(world.settings_path.read_text())
    settings["tables"] = [{"name": "orders", "columns": {"pk": {"hash": True}}}]
    settings["aggregates"] = str(world.folder / "none")
    world.settings_path.write_text(yaml.safe_dump(settings))
    world._lake = None
    world.put("orders", "k1")
    world.put("orders", VICTIM, note=_note("first secret"))
    world.bootstrap("orders")
    world.delete("orders", VICTIM)
    world.capture("orders")
    world.publish("orders")
    world.build_cdc("orders")
    masked = masking_of(world.lake().settings, world.table("orders"), writing=True)
    hashed = json.loads(masked.item(json.dumps(key(VICTIM))))["pk"]["S"]
    assert _where(world, hashed)
    erase_item(world.table_lake("orders"), KEY)
    assert _where(world, hashed, *SECRETS) == set()
    assert world.rows("SELECT count(*) FROM orders.current_state", "orders") == [(1,)]


def test_the_command(world: World) -> None:
    world.put("orders", VICTIM, note=_note("first secret"))
    world.bootstrap("orders")
    world.delete("orders", VICTIM)
    run = CliRunner().invoke
    shown = run(main, ["erase", "orders", KEY, "--dry-run"])
    assert shown.exit_code == 0, shown.output
    assert "landing: " in shown.output
    assert "files hold the item" in shown.output
    refused = run(main, ["erase", "orders", KEY], input="n\n")
    assert refused.exit_code == 1
    assert not _state(world).erasures
    wrong = run(main, ["erase", "orders", '{"pk": 7}', "--yes"])
    assert "Fix: give exactly pk (S), sk (N)" in wrong.output
    done = run(main, ["erase", "orders", json.dumps(key(VICTIM)), "--yes"])
    assert done.exit_code == 0, done.output
    assert "none holds the item" in done.output
    assert VICTIM not in done.output
    assert _where(world, *SECRETS) == set()
