"""Capture of what Firehose wrote to S3, over a local AWS: whole tables are compared."""

import gzip
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cdc_pipeline.aws.s3.objects import SourceBucket
from cdc_pipeline.capture.firehose.drain import capture_files
from cdc_pipeline.capture.landing.options import CaptureOptions
from cdc_pipeline.capture.landing.result import CaptureFailedError
from cdc_pipeline.capture.run import Captured, capture_tables
from cdc_pipeline.capture.sources.firehose_listing import has_new_objects
from cdc_pipeline.core.changes.kinesis import from_envelope
from cdc_pipeline.core.errors import SourceError
from cdc_pipeline.core.items.attributes import canonical_item, to_json
from cdc_pipeline.core.log.state import Entry, LogState
from cdc_pipeline.core.transports import FIREHOSE
from cdc_pipeline.defs.tables.checks import deletes, retention
from cdc_pipeline.defs.tables.shard_sensor import decide_files
from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.lake.storage.log import CaptureLog
from cdc_pipeline.lake.upkeep.status import table_status
from cdc_pipeline.repair.backfill import backfill_days
from cdc_pipeline.sandbox.process import SandboxProcess
from cdc_pipeline_tests.capture.firehose.delivery import (
    NAME,
    Delivery,
    make_delivery,
    measure,
    now,
    record,
    to_us,
)
from cdc_pipeline_tests.e2e.world import assert_mirrors, assert_no_orphans, key, quick_sandbox
from cdc_pipeline_tests.simulators.firehose import (
    HIVE,
    WEEK_YEAR,
    concatenated,
    envelope,
    error_record,
    forwarded,
    parquet,
    raw_snappy,
    zstd,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def sandbox() -> Iterator[SandboxProcess]:
    with quick_sandbox() as process:
        yield process


@pytest.fixture
def delivery(sandbox: SandboxProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Delivery:
    return make_delivery(sandbox, tmp_path, "s3", monkeypatch, "raw/orders/")


def _listings(lake: Lake) -> list[Any]:
    """Will hold every ListObjectsV2 request of the lake's client below Firehose's prefixes."""
    found: list[Any] = []

    def seen(params: dict[str, Any], **_: Any) -> None:
        if str(params["query_string"]["prefix"]).startswith(("raw/", "errors/")):
            found.append(params)

    lake.aws.client("s3").meta.events.register("before-call.s3.ListObjectsV2", seen)
    return found


def test_a_mirror_from_files_alone(delivery: Delivery) -> None:
    write, files, world = delivery.write, delivery.files, delivery.world
    early = [write("I", "a", n={"N": "1"}), write("I", "b", raw={"B": b"\x12\x02\x08{"})]
    files.records(*early)
    world.bootstrap(NAME)
    late = [
        write("U", "a", old={"n": {"N": "1"}}, n={"N": "2"}),
        write("D", "b", old={"raw": {"B": b"\x12\x02\x08{"}}),
        write("I", "c", text={"S": '}{ ä "{'}),
    ]
    files.records(*late[:2], members=2, extension=".json")
    files.records(late[2], folder=HIVE)
    assert world.capture(NAME).rows == 3
    world.publish(NAME)
    assert assert_mirrors(world, NAME) == 2
    assert_no_orphans(world, NAME)
    assert delivery.landed() == delivery.as_landed(*early, *late)
    assert world.capture(NAME).rows == 0
    # History begins with the oldest object; what is older than the baseline is in no state.
    assert delivery.generations() == [0, 0, 1, 1, 1]
    # No stream, no shards, and nothing that is about to be lost.
    state = delivery.state()
    assert state.stream is not None
    assert (state.stream.transport, state.shards) == (FIREHOSE, {})
    found = retention(world.table_lake(NAME), state)
    assert "hours_left" not in found.metadata
    assert not table_status(world.table_lake(NAME)).expires


def test_a_run_describes_the_table_once(delivery: Delivery) -> None:
    described: list[str] = []

    def seen(model: Any, **_: Any) -> None:
        described.append(model.name)

    client = delivery.world.table_lake(NAME).source.client("dynamodb")
    client.meta.events.register("before-call.dynamodb.DescribeTable", seen)
    delivery.files.records(record("a", to_us(now())))
    assert delivery.world.capture(NAME).rows == 1
    assert described == ["DescribeTable"]


def test_late_changes_of_before_a_baseline_do_not_beat_it(delivery: Delivery) -> None:
    write, files, world = delivery.write, delivery.files, delivery.world
    # A folder without any object never counts as complete.
    files.records(record("theirs", to_us(now()), table="customers"))
    world.capture(NAME)
    held_back = write("I", "a", n={"N": "1"})
    world.bootstrap(NAME)
    between = write("U", "b", n={"N": "1"})
    files.records(write("D", "a", old={"n": {"N": "1"}}))
    world.capture(NAME)
    world.bootstrap(NAME)
    files.records(held_back, between)
    assert world.capture(NAME).rows == 2
    world.publish(NAME)
    assert assert_mirrors(world, NAME) == 1
    world.build_cdc(NAME)
    sql = f"SELECT op, generation FROM {NAME}.cdc ORDER BY write_time_us"
    assert world.rows(sql, NAME) == [("I", 1), ("U", 1), ("D", 1)]


def test_the_first_look_takes_every_folder_since_start_date_and_later_ones_the_window(
    delivery: Delivery,
) -> None:
    files, today = delivery.files, now()
    # In 2025, 29 December is in week 1 of 2026, in the USA and by ISO.
    new_year = datetime(2025, 12, 29, 5, tzinfo=UTC)
    delivery.configure(start_date=(new_year - timedelta(3)).date().isoformat())
    days = [new_year - timedelta(9), new_year, new_year + timedelta(1), today - timedelta(9), today]
    records = [record(str(n), to_us(day)) for n, day in enumerate(days)]
    folders = [WEEK_YEAR, WEEK_YEAR, HIVE, "{0:%Y/%m/%d}/", HIVE]
    for one, day, folder in zip(records, days, folders, strict=True):
        files.records(one, at=day, folder=folder)
    delivery.capture()
    assert delivery.landed() == delivery.as_landed(*records[1:])
    names = [day.date().isoformat() for day in days[1:]]
    assert {(f.arrived, f.days) for f in delivery.logged()} == {(name, (name,)) for name in names}
    state = delivery.state()
    assert state.files_from == (today.date() - timedelta(3)).isoformat()
    assert [file.arrived for file in state.files.values()] == [today.date().isoformat()]
    requests = _listings(delivery.world.lake())
    months = {f"{today - timedelta(n):%Y-%m}" for n in range(4)}
    files.records(record("late", to_us(today)), at=today - timedelta(1))
    files.records(record("too late", to_us(today)), at=today - timedelta(5))
    assert delivery.capture().rows == 1
    # One for each prefix; of two ways to spell a day, one for each year that may hold days of the
    # window (a week's year may be another one), and two for each month that does.
    assert len(requests) <= 4 + 2 * 2 * len(months) + 2


def test_the_watermark_is_a_lag_behind_the_listing(delivery: Delivery) -> None:
    delivery.files.records(record("a", to_us(now())))
    lagging = {"prefixes": [delivery.files.uri], "lag_minutes": 20}
    delivery.world.configure({"name": NAME, "transport": "firehose", "firehose": lagging})
    before = to_us(now())
    delivery.capture()
    after = to_us(now())
    assert before <= delivery.state().watermark_us + 20 * 60_000_000 <= after


def test_the_watermark_is_what_firehoses_metrics_prove(delivery: Delivery) -> None:
    firehose = {"prefixes": [delivery.files.uri], "lag_minutes": 60, "delivery_stream": "to-s3"}
    kinesis = {"late_seconds": 7, "metric_minutes": 1}
    table = {"name": NAME, "transport": "firehose", "firehose": firehose, "kinesis": kinesis}
    delivery.world.configure(table)
    delivery.files.records(record("a", to_us(now())))
    before = to_us(now())
    delivery.capture()
    assert before <= delivery.state().watermark_us + 3600_000_000 <= to_us(now())
    minute = int(time.time()) // 60 * 60 - 240
    where = {"DeliveryStreamName": "to-s3"}
    for name, points in (
        ("DeliveryToS3.DataFreshness", {minute: 60, minute - 600: 300}),
        ("KinesisMillisBehindLatest", {minute: 1000, minute - 60: 20_000}),
    ):
        measure(delivery.world, "AWS/Firehose", name, where, points)
    delivery.capture()
    # The oldest record of the last hour, on both legs of the way, and DynamoDB's own.
    assert delivery.state().watermark_us == (minute - 300 - 20 - 7) * 1_000_000


def test_each_object_is_logged_once_whenever_it_comes(
    delivery: Delivery, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, today = delivery.files, now()
    records = [record(str(n), to_us(today)) for n in range(4)]
    uris = [files.records(one, at=today) for one in records[:2]]
    delivery.capture()
    uris.append(files.records(records[2], at=today - timedelta(2), members=1))
    delivery.capture()
    delivery.capture()
    assert sorted(file.uri for file in delivery.logged()) == sorted(uris)
    # A week on the log has forgotten them, and still nothing takes them again.
    monkeypatch.setattr(CaptureLog, "now_us", lambda _: to_us(today + timedelta(7)))
    delivery.capture()
    assert delivery.state().files == {}
    uris.append(files.records(records[3], at=today))
    assert delivery.capture().rows == 0
    lake, table = delivery.world.lake(), delivery.world.table(NAME)
    (found,) = backfill_days(lake.table(table), [today.date()])
    assert (found.added, found.sources, found.error) == (1, ["files"], None)
    (found,) = backfill_days(lake.table(table), [today.date()])
    assert (found.added, found.error) == (0, None)
    assert sorted(file.uri for file in delivery.logged()) == sorted(uris)
    assert delivery.landed() == delivery.as_landed(*records)


def test_a_past_day_from_before_capture_is_not_bought_as_an_export(delivery: Delivery) -> None:
    old = now() - timedelta(3)
    delivery.files.records(record("a", to_us(old)), at=old)
    delivery.capture()
    days = [old.date(), old.date() + timedelta(1)]
    first, second = backfill_days(delivery.world.lake().table(delivery.world.table(NAME)), days)
    assert (first.rows, first.error) == (1, None)
    assert "cannot be proven" in first.notes[0]
    assert second.error is not None, "of it nothing is known at all"
    table = delivery.world.dynamodb.describe_table(TableName=NAME)["Table"]
    exports = delivery.world.dynamodb.list_exports(TableArn=table["TableArn"])
    assert exports["ExportSummaries"] == []


def test_what_is_in_an_object_is_told_by_its_bytes(delivery: Delivery) -> None:
    files, time_us = delivery.files, to_us(now())
    records = [record(str(n), time_us + n) for n in range(9)]
    files.records(records[0], extension=".gz")
    files.records(*records[1:4], members=3, extension=".parquet")
    broken = json.dumps(record("broken", time_us))[:-40].encode()
    files.put(concatenated([records[4]]) + broken + concatenated([records[5], {"other": 1}]))
    files.put(concatenated(records[6:8], members=1) + concatenated(records[8:], members=1)[:-50])
    files.put(zstd(records[8:]), extension=".zst")
    for body in (b"PAR1 in name only", b""):
        files.put(body)
    result = delivery.capture()
    assert delivery.landed() == delivery.as_landed(*records)
    found = delivery.quarantined()
    # What is left of the cut one may be some text or none.
    assert found.pop("a stretch that is not JSON") in (1, 2)
    assert found == {
        "a record of an unknown kind": 1,
        "an object whose compressed rest cannot be read": 1,
        "a Parquet object that is damaged": 1,
    }
    assert result.quarantined == sum(delivery.quarantined().values())
    assert len(delivery.logged()) == 7


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"PK\x03\x04 zipped", "an object in ZIP,"),
        (raw_snappy(b'{"a": 1}'), "an object in Snappy"),
        (raw_snappy(b'[{"a": "' + b"x" * 5000 + b'"}]'), "an object in Snappy"),
        (b"\0\0\0\x08\0\0\0\x0a" + raw_snappy(b'{"a": 1}'), "an object in Snappy"),
        ('{"a": 1}'.encode("utf-16"), "an object in UTF-16"),
        (b"\xf3\x89\x9a\xc2 packed", "the producer library's format"),
        (b'{"Item": {"pk": {"S": "a"}}}', "begins with a line of a full export"),
        (b'[{"payload": {}, "schema": {}}]', "begins with an event of Debezium"),
        (gzip.compress(b'{"deliveryStreamArn": "x", "records": []}'), "an event of Firehose"),
        (parquet([{"a": 1}]), "neither those of this project's Lambda nor of older ones: a"),
    ],
    # A compressed body has the second of its writing in it: each worker would name it otherwise.
    ids=[
        "zip",
        "snappy",
        "snappy, long",
        "snappy in frames",
        "utf-16",
        "aggregated",
        "full export",
        "debezium",
        "event of firehose",
        "parquet of others",
    ],
)
def test_an_object_that_is_not_read_is_refused_whole_and_nothing_counts_as_complete(
    delivery: Delivery, body: bytes, kind: str
) -> None:
    ours = record("a", to_us(now()))
    delivery.files.records(ours)
    refused = delivery.files.put(body)
    for _ in range(2):
        with pytest.raises(CaptureFailedError, match=re.escape(f"{refused}: ")) as failed:
            delivery.capture()
        assert kind in str(failed.value)
        assert delivery.landed() == delivery.as_landed(ours)
        assert delivery.quarantined() == {}
        assert delivery.state().watermark_us == 0
    bucket, _, key = refused.removeprefix("s3://").partition("/")
    delivery.world.client("s3").put_object(Bucket=bucket, Key=key, Body=concatenated([ours]))
    before_us = to_us(now())
    delivery.capture()
    assert delivery.state().watermark_us >= before_us


def test_a_stream_of_several_tables_is_divided(delivery: Delivery) -> None:
    ours, theirs = record("a", to_us(now())), record("b", to_us(now()), table="customers")
    delivery.files.records(theirs, ours, theirs)
    delivery.capture()
    assert delivery.landed() == delivery.as_landed(ours)
    assert [(f.rows, f.others) for f in delivery.logged()] == [(3, 2)]
    assert delivery.quarantined() == {}


def test_a_streams_records_are_read_in_their_order_and_land_once(delivery: Delivery) -> None:
    second = int(now().timestamp())
    account = delivery.world.client("sts").get_caller_identity()["Account"]
    images = [{**key("a"), "v": {"S": "test"}}, {**key("a"), "v": {"N": "1"}}]
    steps = [("I", None, 0), ("U", 0, 1), ("U", 1, 0), ("U", 0, 1)]  # images do not tell the order
    written = [
        forwarded(
            op,
            key("a"),
            images[new],
            None if old is None else images[old],
            second,
            number,
            account=account,
        )
        for number, (op, old, new) in enumerate(steps, 7)
    ]
    flat = {**written[2]["dynamodb"], "eventName": "MODIFY"}
    theirs = forwarded("I", key("b"), key("b"), None, second, 3, table="customers")
    delivery.files.records({"Records": [written[3], theirs, written[1]]})
    delivery.files.put(json.dumps([written[0], flat], indent=1).encode())
    delivery.capture()
    delivery.files.records(*written)
    delivery.capture()
    rows = delivery.world.rows(
        f"SELECT op, write_time_us, old_image, new_image, sequence_number FROM {NAME}.raw_stream "
        "ORDER BY order_key",
        NAME,
    )
    spelled = [to_json(canonical_item(image)) for image in images]
    assert list(dict.fromkeys(rows)) == [
        (op, second * 1_000_000, None if old is None else spelled[old], spelled[new], f"{n:025d}")
        for n, (op, old, new) in enumerate(steps, 7)
    ]
    assert len({row[0] for row in delivery.landed()}) == 4, "each has one identity"
    assert [(f.rows, f.others) for f in delivery.logged()] == [(3, 1), (2, 0), (4, 0)]
    assert delivery.quarantined() == {}


def test_our_lambdas_parquet_is_what_the_raw_records_are(delivery: Delivery) -> None:
    time_us = to_us(now())
    records = [
        record("a", time_us, n={"N": "1.50"}, raw={"B": b"\x00"}),
        record("b", time_us + 1, op="D", s={"SS": ["b", "a"]}),
        envelope("D", key("c"), None, key("c"), time_us + 2, by_ttl=True),
        envelope("I", key("d"), key("d"), None, time_us // 1000 * 1000, milliseconds=True),
    ]
    rows = [
        from_envelope(one, table_id=delivery.table_id, transport=FIREHOSE)._asdict()
        | {"time_stamp": now(), "landed_at": now()}
        for one in records
    ]
    delivery.files.put(parquet(rows))
    delivery.capture()
    assert delivery.landed() == delivery.as_landed(*records)
    # Both roads at once: the changes are in cdc once.
    delivery.files.records(*records, members=1)
    delivery.capture()
    delivery.world.build_cdc(NAME)
    sql = f"SELECT uuid FROM {NAME}.cdc ORDER BY write_time_us, uuid"
    assert delivery.world.rows(sql, NAME) == [(row[0],) for row in delivery.as_landed(*records)]
    # Rows that another table's Lambda made are not ours.
    delivery.files.put(parquet([{**row, "uuid": "0" * 64} for row in rows]))
    delivery.capture()
    assert sum(delivery.quarantined().values()) == len(rows)


def test_an_older_lambdas_parquet_is_read_and_its_lack_of_deletes_is_said(
    delivery: Delivery,
) -> None:
    world, arrived = delivery.world, now().replace(microsecond=123_000)
    rows = [
        {"uuid": "u1", "op": "I", "data": '{"pk":"a","sk":1,"n":1.50}'},
        {"uuid": "u2", "op": "U", "data": '{"pk":"b","sk":2,"l":["x"]}'},
        {"uuid": "u3", "op": "D", "data": None},
    ]
    naive = arrived.replace(tzinfo=None)
    delivery.files.put(parquet([{**row, "time_stamp": naive} for row in rows]))
    delivery.capture()
    sql = (
        "SELECT op, keys, new_image, old_image, data, write_time_us, is_ttl_delete "
        f"FROM {NAME}.raw_stream ORDER BY keys"
    )
    a, b = '"pk":{"S":"a"},"sk":{"N":"1"}', '"pk":{"S":"b"},"sk":{"N":"2"}'
    images = ('{"n":{"N":"1.5"},' + a + "}", '{"l":{"L":[{"S":"x"}]},' + b + "}")
    plain = ('{"n":1.5,"pk":"a","sk":1}', '{"l":["x"],"pk":"b","sk":2}')
    assert world.rows(sql, NAME) == [
        ("I", "{" + a + "}", images[0], None, plain[0], to_us(arrived), None),
        ("U", "{" + b + "}", images[1], None, plain[1], to_us(arrived), None),
    ]
    assert delivery.quarantined() == {"a delete without its keys": 1}
    lake, table = world.lake(), world.table(NAME)
    assert table_status(lake.table(table)).legacy_us == to_us(arrived)
    assert deletes(lake.table(table), delivery.state()).passed, "they are in no state yet"
    delivery.files.put(parquet([{**rows[0], "time_stamp": now()}]))
    delivery.capture()
    assert not deletes(lake.table(table), delivery.state()).passed
    world.snapshot(NAME)
    assert not deletes(lake.table(table), delivery.state()).passed, "they came behind its positions"
    world.snapshot(NAME)
    assert deletes(lake.table(table), delivery.state()).passed, "a new baseline has no such rows"


def test_error_objects_are_replayed(delivery: Delivery) -> None:
    records = [record(str(n), to_us(now())) for n in range(3)]
    row = from_envelope(records[2], table_id=delivery.table_id, transport=FIREHOSE)._asdict()
    raw = [json.dumps(part).encode() for part in (records[0], records[1], row)]
    lines = [json.dumps(error_record(part)).encode() for part in raw[:2]]
    delivery.errors.put(b"\n".join(lines), folder="processing-failed/" + HIVE)
    kind = "format-conversion-failed"
    folder = kind + "/{0:%Y/%m/%d/%H}/"
    delivery.errors.records(
        error_record(raw[2], kind), error_record(b"not JSON", kind), folder=folder
    )
    delivery.capture()
    assert delivery.landed() == delivery.as_landed(*records)
    assert delivery.quarantined() == {"a stretch that is not JSON": 1}


def test_a_large_object_lands_in_parts_and_a_kill_between_them_costs_nothing(
    delivery: Delivery,
) -> None:
    time_us = to_us(now())
    records = [record(f"{n:03d}", time_us + n) for n in range(50)]
    uri = delivery.files.records(*records, members=4)
    options = CaptureOptions(flush_rows=8)
    left = [3]

    def kill(_: Any) -> None:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        delivery.capture(options, report=kill)
    assert [(f.rows, f.whole) for f in delivery.state().files.values()] == [(24, False)]
    assert delivery.state().watermark_us == 0
    # A run that has no time left lands a part, too, and vouches for nothing.
    delivery.capture(CaptureOptions(flush_rows=8, max_run_seconds=0))
    assert [f.rows for f in delivery.state().files.values()] == [32]
    assert delivery.state().watermark_us == 0
    delivery.capture(options)
    assert delivery.landed() == delivery.as_landed(*records)
    assert [(f.uri, f.rows) for f in delivery.logged()] == [(uri, 50)]
    assert delivery.state().watermark_us > 0


def test_a_kill_between_objects_and_their_entry(
    delivery: Delivery, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [record(str(n), to_us(now())) for n in range(3)]
    delivery.files.records(*records)
    append = CaptureLog.append

    def dies(self: CaptureLog, state: LogState, entry: Entry) -> bool:
        if entry.objects:
            raise KeyboardInterrupt
        return append(self, state, entry)

    with monkeypatch.context() as patch:
        patch.setattr(CaptureLog, "append", dies)
        with pytest.raises(KeyboardInterrupt):
            delivery.capture()
    assert delivery.landed() == []
    # This run writes the entry of that number, and knows then that it names other objects.
    assert delivery.capture().orphans_removed == 1
    assert delivery.capture().orphans_removed == 0
    assert delivery.landed() == delivery.as_landed(*records)
    assert_no_orphans(delivery.world, NAME)


def test_two_captures_at_once_lose_nothing_and_double_nothing(delivery: Delivery) -> None:
    files, world, time_us = delivery.files, delivery.world, to_us(now())
    records = [record(f"{n:03d}", time_us + n) for n in range(60)]
    over = threading.Event()
    conflicts: list[int] = []
    crashed: list[BaseException] = []

    def run(lake: Lake) -> None:
        while not over.is_set():
            try:
                options = CaptureOptions(flush_rows=3)
                conflicts.append(capture_files(lake.table(world.table(NAME)), options).conflicts)
            except BaseException as error:  # noqa: BLE001 - shown by the test
                crashed.append(error)
                return

    lakes = [Lake.open(world.lake().settings) for _ in range(2)]
    threads = [threading.Thread(target=run, args=(lake,)) for lake in lakes]
    for thread in threads:
        thread.start()
    uris = [files.records(*records[n : n + 5]) for n in range(0, 60, 5)]
    deadline = time.monotonic() + 120
    while len(delivery.logged()) < len(uris) and time.monotonic() < deadline and not crashed:
        time.sleep(0.1)
    over.set()
    for thread in threads:
        thread.join()
    assert crashed == []
    assert Counter(file.uri for file in delivery.logged()) == Counter(uris)
    assert delivery.landed() == delivery.as_landed(*records)
    assert sum(conflicts) > 0, "who lost a race went on"
    delivery.capture()
    assert_no_orphans(world, NAME)


def test_an_object_that_cannot_be_read_does_not_stop_the_others(
    delivery: Delivery, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [record(str(n), to_us(now())) for n in range(2)]
    bad, _ = (delivery.files.records(one) for one in records)
    gone = delivery.files.records(record("gone", 1))
    download = SourceBucket.download

    def failing(self: SourceBucket, found: Any, file: Any) -> bool:
        if bad.endswith(found.key):
            raise SourceError("AWS says InvalidObjectState")
        if gone.endswith(found.key):
            delivery.files.s3.delete_object(Bucket=delivery.files.bucket, Key=found.key)
        return download(self, found, file)

    with monkeypatch.context() as patch:
        patch.setattr(SourceBucket, "download", failing)
        with pytest.raises(CaptureFailedError, match=r"1 objects.*InvalidObjectState") as failed:
            delivery.capture()
    assert bad in str(failed.value)
    assert delivery.landed() == delivery.as_landed(records[1])
    assert delivery.quarantined() == {"an object that was gone before it was read": 1}
    assert delivery.state().watermark_us == 0, "what is unread is not vouched for"
    delivery.capture()
    assert delivery.landed() == delivery.as_landed(*records)
    assert delivery.state().watermark_us > 0


def test_an_object_that_stays_unreadable_is_kept_by_name_and_nothing_else_with_it(
    delivery: Delivery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the log would list every object since, for ever, and each of its readers with it."""
    old = now() - timedelta(9)
    delivery.configure(start_date=old.date().isoformat())
    bad = delivery.files.records(record("bad", to_us(old)), at=old)
    for n in range(5):
        delivery.files.records(record(str(n), to_us(old)), at=old + timedelta(1))
    download = SourceBucket.download

    def failing(self: SourceBucket, found: Any, file: Any) -> bool:
        if bad.endswith(found.key):
            raise SourceError("AWS says InvalidObjectState")
        return download(self, found, file)

    with monkeypatch.context() as patch:
        patch.setattr(SourceBucket, "download", failing)
        for _ in range(2):
            with pytest.raises(CaptureFailedError, match=r"1 objects.*InvalidObjectState"):
                delivery.capture()
            state = delivery.state()
            assert [file.uri for file in state.files.values()] == [bad]
            assert state.watermark_us == 0, "what is unread is not vouched for"
            assert len(delivery.landed()) == 5
    delivery.capture()
    assert len(delivery.landed()) == 6
    state = delivery.state()
    assert state.files == {}
    assert state.watermark_us > 0


def test_what_is_in_no_folder_of_a_day_is_told(delivery: Delivery) -> None:
    delivery.files.put(b"{}", folder="a/b/c/2026/11/21/")
    with pytest.raises(SourceError, match=r"raw/orders/a/b/c/ is under a prefix"):
        delivery.capture()


def test_folders_above_the_days_and_hidden_objects_are_fine(delivery: Delivery) -> None:
    one = record("a", to_us(now()))
    files = delivery.files
    files.s3.put_object(Bucket=files.bucket, Key=f"{files.prefix}_SUCCESS", Body=b"")
    files.records(one, folder="eu/orders/" + HIVE)
    delivery.capture()
    assert delivery.landed() == delivery.as_landed(one)


def test_an_object_that_was_replaced_is_read_again(delivery: Delivery) -> None:
    first, second = record("a", to_us(now())), record("b", to_us(now()))
    uri = delivery.files.records(first)
    delivery.capture()
    name = uri.partition(delivery.files.bucket + "/")[2]
    body = concatenated([first, second])
    delivery.files.s3.put_object(Bucket=delivery.files.bucket, Key=name, Body=body)
    delivery.capture()
    assert [file.rows for file in delivery.logged()] == [1, 2]
    assert set(delivery.landed()) == set(delivery.as_landed(first, second))


def test_only_changes_of_some_time(delivery: Delivery) -> None:
    cut = to_us(now())
    records = [record(str(n), cut + n) for n in (-1, 0, 1)]
    delivery.files.records(*records)
    delivery.capture(written=(cut, cut + 1))
    assert delivery.landed() == delivery.as_landed(records[1])
    assert [file.rows for file in delivery.logged()] == [3]


def test_the_sensors_look_sees_new_objects_and_is_cheap(delivery: Delivery) -> None:
    world, files = delivery.world, delivery.files
    lake, table = world.lake(), world.table(NAME)
    assert table.firehose is not None
    chosen = table.firehose

    def news() -> bool:
        return has_new_objects(lake.aws, chosen, delivery.state())

    assert not news()
    files.records(record("a", to_us(now())))
    assert news()
    delivery.capture()
    requests = _listings(lake)
    assert not news()
    assert len(requests) == 1
    # In a time zone ahead of UTC it is tomorrow already.
    files.records(record("b", to_us(now())), at=now() + timedelta(hours=14))
    assert news()
    delivery.capture()
    state = delivery.state()
    asked: list[float] = []

    def due(seconds: float, found: bool) -> bool:
        at_us = state.at_us + int(seconds * 1_000_000)
        return decide_files(table, state, at_us, 60, lambda: asked.append(seconds) or found).due

    assert not due(59, True)
    assert not due(61, False)
    assert due(62, True)
    assert due(301, False)
    assert asked == [61, 62]


def test_one_run_captures_tables_of_both_transports(delivery: Delivery) -> None:
    world = delivery.world
    world.make_table("streamed")
    world.put("streamed", "x")
    chosen = {"prefixes": [delivery.files.uri]}
    world.configure({"name": NAME, "transport": "firehose", "firehose": chosen}, "streamed")
    delivery.files.records(record("a", to_us(now())))
    lake = world.lake()
    done = [e for e in capture_tables(lake, lake.settings.tables) if isinstance(e, Captured)]
    assert {event.table.name: event.result.rows for event in done} == {NAME: 1, "streamed": 1}


@pytest.mark.parametrize(
    ("kind", "prefix"), [("local", "raw/orders/"), ("s3", "lake/dynamo-backup/cdc/orders/")]
)
def test_the_lake_may_be_local_or_have_the_prefix_in_it(
    sandbox: SandboxProcess,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    prefix: str,
) -> None:
    made = make_delivery(sandbox, tmp_path, kind, monkeypatch, prefix)
    one = record("a", to_us(now()))
    made.files.records(one)
    made.capture()
    assert made.landed() == made.as_landed(one)


def test_a_table_is_switched_to_files_and_back(delivery: Delivery) -> None:
    """Each transport has its side of the cut: nothing is doubled, nothing lost, and no gap."""
    world, files = delivery.world, delivery.files
    world.dynamodb.update_table(
        TableName=NAME,
        StreamSpecification={"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"},
    )
    both = {"prefixes": [files.uri], "lag_minutes": 0}
    expected: list[str] = []

    def write(pk: str) -> None:
        files.records(delivery.write("I", pk))
        expected.append(pk)

    for transport in ("dynamodb_streams", FIREHOSE, "dynamodb_streams"):
        world.configure({"name": NAME, "transport": transport, "firehose": both})
        write(f"{transport}, before its cut, {len(expected)}")
        deadline = time.monotonic() + 120
        while not _follows(delivery, transport):
            world.capture(NAME)
            assert time.monotonic() < deadline
            cut = delivery.state().cut
            if cut is not None and not expected[-1].startswith("at"):
                # Both transports have it, and it is the new one's.
                time.sleep(max(0, cut.at_us / 1_000_000 - time.time()))
                write(f"at the cut to {transport}, {len(expected)}")
        write(f"{transport}, behind its cut, {len(expected)}")
        world.capture(NAME)
    assert delivery.state().gaps == {}
    sql = f"SELECT data->>'pk' FROM {NAME}.raw_stream ORDER BY order_key"
    assert [pk for (pk,) in world.rows(sql, NAME)] == expected


def _follows(delivery: Delivery, transport: str) -> bool:
    state = delivery.state()
    return state.stream is not None and (state.stream.transport, state.cut) == (transport, None)
