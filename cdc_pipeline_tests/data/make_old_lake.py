"""Makes a small lake with the version of the package that is on the path, and freezes it.

    git worktree add ../old f5fdea5
    PYTHONPATH=../old python cdc_pipeline_tests/data/make_old_lake.py old_lake.tar.xz

It uses only what that version has. `old_lake.tar.xz` was made by f5fdea5 and stays as it is: what
that version wrote is what later ones must read. For another version make another archive.

The archive:
- bucket/KEY: every object of the lake's bucket, exports included
- glue.json: the tables and partitions of the lake's database
- settings.yaml, aggregates/*.sql: the user's
- views.json: the rows of every view as that version shows them
- past.json: a moment, and the items of the source then
- source.json: per table the description, the items, and the records of its stream. The last writes
  came after everything above: no capture has read them.
- about.json: the account, and when it ended by the sandbox's clock
"""

import base64
import io
import json
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from cdc_pipeline.core.errors import NotReadyError
from cdc_pipeline.erase.erase import erase_item
from cdc_pipeline.lake.engine.duckdb_session import arrow_table, identifier
from cdc_pipeline.lake.publish.ttl_archive import build_archive_day
from cdc_pipeline.lake.query.aggregates import build_aggregate
from cdc_pipeline.lake.query.connection import connect_lake
from cdc_pipeline.lake.upkeep.maintenance import maintain_table
from cdc_pipeline.repair.heal import heal_gap, open_gaps
from cdc_pipeline.sandbox.aws.control import control
from cdc_pipeline.transform.aggregates import load_aggregates
from cdc_pipeline_tests.e2e.checkpoint import Checkpoint
from cdc_pipeline_tests.e2e.world import World, assert_mirrors, quick_sandbox

ACCOUNT = "210987654321"
MASKING_KEY = "only for the lake of this test, k"
TABLES = ("orders", "people")
VICTIM = "to-be-erased-5e1f"
"""The key of an order that is in every place; for later versions to erase."""

AGGREGATES = {
    "per_status.sql": "SELECT status, count(*) AS n FROM orders.current_state GROUP BY 1",
    "per_day.sql": (
        "-- partitioned: daily\n"
        "SELECT op, count(*) AS n FROM orders.cdc WHERE day = $day GROUP BY 1"
    ),
}
EVERYTHING: dict[str, dict[str, Any]] = {
    "text": {"S": 'é 𝄞 \u2028 "quoted" \\ '},
    "digits": {"N": "12345678901234567890123456789012345678"},
    "fraction": {"N": "-0.12345678901234567890123456789012345678"},
    "large": {"N": "9.9999999999999999999999999999999999999E+125"},
    "small": {"N": "-1E-130"},
    "bytes": {"B": b"\x00\xff\xfe binary"},
    "yes": {"BOOL": True},
    "nothing": {"NULL": True},
    "texts": {"SS": ["a", "b", "ü"]},
    "numbers": {"NS": ["-1", "2.5", "12345678901234567890123456789012345678"]},
    "blobs": {"BS": [b"\x00", b"\xff\x01"]},
    "list": {"L": [{"S": "one"}, {"N": "2"}, {"NULL": True}, {"L": []}, {"M": {}}]},
    "map": {"M": {"deep": {"M": {"deeper": {"M": {"n": {"N": "0.1"}, "b": {"B": b"\x01"}}}}}}},
    "Any name. At 'all'": {"S": "a column, too"},
}
RECOVERED = {"poll_seconds": 0.05, "least_window_minutes": 1 / 60}


def make(archive: Path) -> None:
    """Write the archive; takes about half a minute."""
    with (
        tempfile.TemporaryDirectory() as folder,
        pytest.MonkeyPatch.context() as patch,
        quick_sandbox() as sandbox,
    ):
        world = World(sandbox.endpoint_url, "s3", Path(folder), ACCOUNT)
        world.client("s3").create_bucket(Bucket=world.bucket)
        world.activate(patch)
        patch.setenv("CDC_MASKING_KEY", MASKING_KEY)
        # A summary is due after 100 entries, more than there are.
        patch.setattr("cdc_pipeline.lake.storage.log._SUMMARY_EVERY", 10)
        # The log says who wrote it.
        patch.setenv("LOGNAME", "someone")
        patch.setattr("socket.gethostname", lambda: "old-host")
        patch.setattr("cdc_pipeline.repair.incremental_export.WAIT_SECONDS", 0.2)
        _configure(world)
        past = _tell(world)
        frozen = dict(_frozen(world))
        frozen["past.json"] = _json(past)
        _write_unread(world)
        frozen["source.json"] = _json({name: _source(world, name) for name in TABLES})
        # Time goes on behind the last write.
        about = {"account": ACCOUNT, "ended_us": control(world.endpoint_url)["now_micros"]}
        frozen["about.json"] = _json(about)
    with tarfile.open(archive, "w:xz") as tar:
        for name, data in sorted(frozen.items()):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    print(f"{archive}: {len(frozen)} files, {archive.stat().st_size:,} bytes")


def _configure(world: World) -> None:
    folder = world.folder / "aggregates"
    folder.mkdir()
    for name, sql in AGGREGATES.items():
        (folder / name).write_text(sql, "utf-8")
    world.configure(
        {"name": "orders", "owner": "team:sales", "ttl_archive": True},
        {"name": "people", "columns": {"email": {"hash": True}, "ssn": {"drop": True}}},
        export={"bucket": world.bucket, **RECOVERED},
        aggregates=str(folder),
        clock_margin_seconds=None,
    )
    for name in TABLES:
        world.make_table(name)
    world.dynamodb.update_time_to_live(
        TableName="orders", TimeToLiveSpecification={"Enabled": True, "AttributeName": "expires"}
    )


# What happens


def _tell(world: World) -> dict[str, Any]:
    """The lake's life; returns a moment of it with the source's items then."""
    _put(world, "everything", **EVERYTHING)
    for number in range(6):
        _put(world, f"o{number}", status={"S": "new"}, n={"N": f"{number}.50"})
    _put(world, VICTIM, status={"S": "new"})
    _put(world, "erased", status={"S": "first secret"})
    for number in range(4):
        _put_person(world, number, "free")
    for name in TABLES:
        world.bootstrap(name)
    past = _change(world)
    _break_and_heal(world)
    for name in TABLES:
        world.bootstrap(name)  # another baseline
    _change_after(world)
    return past


def _put(world: World, pk: str, **attributes: dict[str, Any]) -> None:
    world.put("orders", pk, 1, **attributes)


def _put_person(world: World, number: int, plan: str) -> None:
    world.put(
        "people",
        f"p{number}",
        email={"S": f"person{number}@example.org"},
        ssn={"S": f"000-00-000{number}"},
        plan={"S": plan},
    )


def _change(world: World) -> dict[str, Any]:
    """Inserts, updates, deletes, one by TTL, a type that changes; all of it folded and built."""
    _put(world, VICTIM, status={"S": "paid"}, n={"N": "1.50"}, friend={"S": "o2"})
    _put(world, "o2", status={"S": "paid"}, n={"S": "a text where a number was"})
    world.delete("orders", "o3")
    _put(world, "expiring", status={"S": "new"}, expires={"N": str(int(time.time()) - 60)})
    _put_person(world, 1, "pro")
    world.delete("people", "p2")
    _wait_for(lambda: "expiring" not in {i["pk"]["S"] for i in _items(world, "orders")})
    _pass_second()
    past = {
        "moment": int(time.time()) - 1,
        "items": {name: _items(world, name) for name in TABLES},
    }
    _pass_second()
    _put(world, "erased", status={"S": "second secret"})
    _process(world)
    return past


def _break_and_heal(world: World) -> None:
    """The stream is off for a while; what was written then comes from an incremental export."""
    table = "orders"
    world.dynamodb.update_table(TableName=table, StreamSpecification={"StreamEnabled": False})
    _put(world, "o4", status={"S": "while away"})
    _put(world, VICTIM, status={"S": "while away"})
    _put(world, "away", status={"S": "while away"})
    world.delete(table, "o5")
    time.sleep(1.1)
    on = {"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"}
    world.dynamodb.update_table(TableName=table, StreamSpecification=on)
    _put(world, VICTIM, status={"S": "back"}, n={"N": "1.75"})
    world.capture(table)
    (gap,) = open_gaps(world.table_lake(table))

    def is_healed() -> bool:
        world.capture(table)
        with suppress(NotReadyError):
            heal_gap(world.table_lake(table), gap)
        return not open_gaps(world.table_lake(table))

    _wait_for(is_healed)
    _process(world)


def _change_after(world: World) -> None:
    """Some is folded; an item is erased; some lands behind the fold and is in no day of cdc."""
    _put(world, "later", **{**EVERYTHING, "digits": {"N": "1"}})
    _put(world, VICTIM, status={"S": "sent"})
    _put_person(world, 4, "free")
    _process(world)
    for name in TABLES:
        maintain_table(world.table_lake(name))
    world.delete("orders", "erased")
    world.capture("orders")
    erase_item(world.table_lake("orders"), json.dumps({"pk": "erased", "sk": 1}))
    assert_mirrors(world, "orders")
    _put(world, "behind", status={"S": "behind the fold"}, bytes={"B": b"\x02"})
    _put(world, "o2", status={"S": "behind the fold"})
    _put(world, VICTIM, status={"S": "behind the fold"})
    world.delete("orders", "o0")
    _put_person(world, 1, "behind the fold")
    world.delete("people", "p0")
    for name in TABLES:
        world.capture(name)


def _write_unread(world: World) -> None:
    """What no capture of this version reads."""
    _put(world, "unread", **EVERYTHING)
    _put(world, VICTIM, status={"S": "unread"})
    world.delete("orders", "away")
    _put_person(world, 5, "unread")


def _process(world: World) -> None:
    """Everything that the pipeline derives."""
    lake = world.lake()
    for name in TABLES:
        world.capture(name)
        world.publish(name)
        world.build_cdc(name)
    for day in world.days("orders"):
        build_archive_day(lake.table(world.table("orders")), day)
    for aggregate in load_aggregates(lake.settings.aggregates_folder):
        for day in world.days("orders") if aggregate.daily else [None]:
            build_aggregate(lake, aggregate, day)


def _pass_second() -> None:
    time.sleep(1.05 - time.time() % 1)


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


# What is kept


def _frozen(world: World) -> Iterator[tuple[str, bytes]]:
    s3 = world.client("s3")
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=world.bucket):
        for entry in page.get("Contents", ()):
            body = s3.get_object(Bucket=world.bucket, Key=entry["Key"])["Body"].read()
            yield f"bucket/{entry['Key']}", body
    checkpoint = Checkpoint.take(world)
    glue = {"tables": checkpoint.tables, "partitions": checkpoint.partitions}
    yield "glue.json", _json(glue)
    settings = world.settings_path.read_text("utf-8")
    yield "settings.yaml", settings.replace(f"{world.folder}/", "").encode()
    for name, sql in AGGREGATES.items():
        yield f"aggregates/{name}", sql.encode()
    yield "views.json", _json(_views(world))


def _views(world: World) -> dict[str, dict[str, Any]]:
    """By view: its columns, and its rows (`rows_of`)."""
    found = {}
    with connect_lake(world.lake()) as connection:
        views = connection.execute(
            "SELECT table_schema, table_name FROM information_schema.tables "
            f"WHERE table_schema IN {(*TABLES, 'aggregates')} ORDER BY ALL"
        ).fetchall()
        for schema, name in views:
            view = f"{identifier(schema)}.{identifier(name)}"
            columns = arrow_table(connection, f"SELECT * FROM {view} LIMIT 0").column_names
            rows = rows_of(connection, view, columns)
            found[f"{schema}.{name}"] = {"columns": columns, "rows": rows}
    return found


def rows_of(connection: Any, view: str, columns: list[str]) -> list[str]:
    """The rows of a view as JSON, sorted: every value exact, of these columns in this order."""
    listed = ", ".join(map(identifier, columns))
    rows = arrow_table(connection, f"SELECT {listed} FROM {view}").to_pylist()
    return sorted(json.dumps(row, default=str) for row in rows)


def _items(world: World, name: str) -> list[dict[str, Any]]:
    pages = world.dynamodb.get_paginator("scan").paginate(TableName=name, ConsistentRead=True)
    return [item for page in pages for item in page["Items"]]


def _source(world: World, name: str) -> dict[str, Any]:
    described = world.dynamodb.describe_table(TableName=name)["Table"]
    streams = world.client("dynamodbstreams")
    arn = described["LatestStreamArn"]
    (shard,) = streams.describe_stream(StreamArn=arn)["StreamDescription"]["Shards"]
    iterator = streams.get_shard_iterator(
        StreamArn=arn, ShardId=shard["ShardId"], ShardIteratorType="TRIM_HORIZON"
    )["ShardIterator"]
    records: list[dict[str, Any]] = []
    while page := streams.get_records(ShardIterator=iterator, Limit=1000):
        records += page["Records"]
        iterator = page["NextShardIterator"]
        if not page["Records"]:
            break
    return {"table": described, "items": _items(world, name), "records": records}


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, default=_plain, ensure_ascii=False) + "\n").encode()


def _plain(value: Any) -> Any:
    """Bytes and times as DynamoDB's own JSON has them."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, datetime):
        return int(value.timestamp())
    raise TypeError(type(value))


if __name__ == "__main__":
    make(Path(sys.argv[1]))
