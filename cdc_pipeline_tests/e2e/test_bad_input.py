"""What is wrong with a source, an export, a record or a lake: said clearly, and nothing published.

Each error names the thing and what to do, is of the class that callers can tell, holds no item
contents, and leaves a lake that the next run goes on from.
"""

import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import botocore.retries.standard
import dagster as dg
import pytest

from cdc_pipeline.aws.export import ExportStatus
from cdc_pipeline.core.errors import (
    CdcPipelineError,
    ExportError,
    LakeError,
    NotReadyError,
    SourceError,
)
from cdc_pipeline.core.run_context import RunContext
from cdc_pipeline.defs.build import build_definitions
from cdc_pipeline.snapshot import export as exports
from cdc_pipeline.snapshot import snapshot
from cdc_pipeline_tests.e2e import damage
from cdc_pipeline_tests.e2e.damage import Export
from cdc_pipeline_tests.e2e.wire import spoil
from cdc_pipeline_tests.e2e.world import (
    World,
    assert_mirrors,
    assert_no_orphans,
    assert_nothing_twice,
)

pytestmark = [
    pytest.mark.slow,
    # Dagster passes this parameter itself when it copies a sensor.
    pytest.mark.filterwarnings("ignore:Parameter `owners` of initializer `SensorDefinition"),
]

SECRET = "SECRET-4111-1111"
local_only = pytest.mark.parametrize("kind", ["local"], indirect=True)
s3_only = pytest.mark.parametrize("kind", ["s3"], indirect=True)


@contextmanager
def refused(
    kind: type[CdcPipelineError] | tuple[type[CdcPipelineError], ...], *said: str
) -> Iterator[None]:
    """The block fails with `kind`, whose text holds each of `said`, a fix, and no item contents."""
    with pytest.raises(kind) as caught:
        yield
    text = str(caught.value)
    for part in said:
        assert part in text
    assert "SECRET" not in text
    assert caught.value.fix, f"no fix in: {text}"


def _assert_nothing_published(world: World, name: str) -> None:
    lake, table = world.lake(), world.table(name)
    assert lake.table(table).log.load().staged is None
    for suffix in ("snapshot", "current_state"):
        assert lake.iceberg.load(f"{table.safe_name}_{suffix}") is None
    with pytest.raises(NotReadyError, match="pitr_export"):
        world.publish(name)


@local_only
def test_table_missing(world: World) -> None:
    world.configure("absent")
    with refused(SourceError, "absent", "check the name"):
        world.capture("absent")
    with refused(SourceError, "absent", "check the name"):
        world.snapshot("absent")
    assert world.stored("_cdc/cdc/") == set()


@local_only
def test_stream_off(world: World) -> None:
    name = world.make_table("streamless", view=None)
    world.configure(name)
    for step in (world.capture, world.snapshot):
        with refused(SourceError, name, "stream is off", f"--table-name {name}"):
            step(name)
    assert world.stored("_cdc/cdc/") == set()


@local_only
@pytest.mark.parametrize("view", ["KEYS_ONLY", "OLD_IMAGE"])
def test_a_stream_without_new_images(world: World, view: str) -> None:
    name = world.make_table("blind", view=view)
    world.configure(name)
    for step in (world.capture, world.snapshot):
        with refused(SourceError, name, view, "NEW_AND_OLD_IMAGES"):
            step(name)
    assert world.stored("_cdc/cdc/") == set()


@local_only
def test_recovery_off(world: World) -> None:
    name = world.make_table("unprotected", recovery=False)
    world.configure(name)
    world.put(name, "a")
    with refused(SourceError, name, "point-in-time recovery is off", f"--table-name {name}"):
        world.snapshot(name)
    _assert_nothing_published(world, name)
    # Capture needs no recovery: the stream's 24 hours must not be lost over it.
    assert world.capture(name).rows == 1


@s3_only
def test_lake_bucket_missing(world: World) -> None:
    name = world.make_table("homeless")
    world.configure(name, lake="s3://no-such-bucket-here/lake")
    world.put(name, "a")
    with refused(LakeError, "no-such-bucket-here", "create the bucket"):
        world.capture(name)
    with refused(LakeError, "no-such-bucket-here", "create the bucket"):
        world.snapshot(name)


@local_only
def test_export_bucket_missing_then_created(world: World) -> None:
    name = world.make_table("unexportable")
    missing = f"exports-{world.account}"
    world.configure(name, export={"bucket": missing, "poll_seconds": 0.05})
    world.put(name, "a")
    with refused(ExportError, missing):
        world.snapshot(name)
    _assert_nothing_published(world, name)
    world.client("s3").create_bucket(Bucket=missing)
    assert world.snapshot(name).items == 1
    world.capture_past_handover(name)
    world.publish(name)
    assert assert_mirrors(world, name) == 1


@local_only
def test_local_lake_without_an_export_bucket(world: World) -> None:
    from cdc_pipeline.core.errors import SettingsError

    name = world.make_table("bucketless")
    world.configure(name, export=None)
    with refused(SettingsError, "export: {bucket:"):
        world.snapshot(name)


def test_endpoint_down(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    name = world.make_table("unreachable")
    world.configure(name)
    backoff = botocore.retries.standard.ExponentialBackoff
    monkeypatch.setattr(backoff, "delay_amount", lambda self, context: 0)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{probe.getsockname()[1]}"
        world.configure(name, endpoint_url=closed)
        for step in (world.capture, world.snapshot):
            with refused((SourceError, LakeError), closed, "endpoint_url"):
                step(name)
    world.configure(name)
    world.put(name, "a")
    assert world.capture(name).rows == 1


DAMAGES = [
    (damage.not_json, "not JSON"),
    (damage.without_item, "without an Item"),
    (damage.without_key, "key attribute pk"),
    (damage.unknown_type, "unknown attribute type"),
    (damage.one_key_twice, "keys"),
    (damage.file_missing, "missing"),
    (damage.wrong_md5, "MD5"),
    (damage.cut_short, "ends in the middle"),
    (damage.not_gzip, "GZIP"),
    (damage.count_too_high, "promises"),
    (damage.counts_disagree, "counts"),
    (damage.summary_checksum_wrong, "checksum"),
    (damage.files_checksum_wrong, "checksum"),
    (damage.checksum_missing, "checksum"),
    (damage.manifest_is_not_one, "manifest"),
]


def _damage_once(
    world: World, monkeypatch: pytest.MonkeyPatch, harm: Callable[[Export], None]
) -> list[Export]:
    """Harm the next export as soon as it is complete, before it is read."""
    done: list[Export] = []
    describe = exports.describe_export

    def harmed(aws: Any, arn: str) -> ExportStatus:
        status = describe(aws, arn)
        if status.status == "COMPLETED" and not done:
            assert status.manifest_key is not None
            done.append(Export(world, status.manifest_key))
            harm(done[0])
        return status

    monkeypatch.setattr(exports, "describe_export", harmed)
    return done


def _named_in(harm: Callable[[Export], None], export: Export) -> str:
    """What the message must name: the damaged file, or the export that it belongs to."""
    of_data = (
        damage.not_json,
        damage.without_item,
        damage.without_key,
        damage.unknown_type,
        damage.file_missing,
        damage.wrong_md5,
        damage.cut_short,
        damage.not_gzip,
    )
    if harm in of_data:
        return next(f["dataFileS3Key"] for f in export.files if f["itemCount"])
    return export.summary_key.split("/")[-2]


@pytest.fixture
def exportable(world: World) -> str:
    name = world.make_table("exportable")
    world.configure(name)
    for number in range(5):
        world.put(name, f"i{number}", v={"S": SECRET})
    return name


@local_only
@pytest.mark.parametrize(("harm", "said"), DAMAGES, ids=[h.__name__ for h, _ in DAMAGES])
def test_a_damaged_export_is_refused(
    world: World,
    exportable: str,
    monkeypatch: pytest.MonkeyPatch,
    harm: Callable[[Export], None],
    said: str,
) -> None:
    harmed = _damage_once(world, monkeypatch, harm)
    heard: list[str] = []
    with pytest.raises(ExportError) as caught:
        snapshot.take_snapshot(world.table_lake(exportable), context=RunContext(heard.append))
    text = str(caught.value)
    assert said in text
    assert _named_in(harm, harmed[0]) in text
    assert "SECRET" not in text + "".join(heard)
    _assert_nothing_published(world, exportable)


@local_only
@pytest.mark.parametrize("harm", [damage.not_json, damage.file_missing, damage.checksum_missing])
def test_after_a_damaged_export_there_is_a_way_on(
    world: World,
    exportable: str,
    monkeypatch: pytest.MonkeyPatch,
    harm: Callable[[Export], None],
) -> None:
    """The error says what to do, and doing it (running again) gives a sound baseline."""
    _damage_once(world, monkeypatch, harm)
    with pytest.raises(ExportError) as caught:
        world.snapshot(exportable)
    assert caught.value.fix, f"no fix in: {caught.value}"
    assert world.snapshot(exportable).items == 5
    world.capture_past_handover(exportable)
    world.publish(exportable)
    assert assert_mirrors(world, exportable) == 5


def test_a_damaged_second_export_leaves_the_first_in_place(
    world: World, exportable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.bootstrap(exportable)
    _damage_once(world, monkeypatch, damage.wrong_md5)
    with pytest.raises(ExportError, match="MD5"):
        world.snapshot(exportable)
    world.put(exportable, "later")
    world.capture(exportable)
    assert not world.publish(exportable).new_baseline
    assert len(world.items(exportable)) == 6
    assert world.rows("SELECT count(*) FROM exportable.pitr_export", exportable) == [(5,)]


BAD_RECORDS: list[tuple[str, Callable[[dict[str, Any]], None]]] = [
    ("an unknown attribute type", lambda r: r["dynamodb"]["NewImage"].update(v={"ZZ": SECRET})),
    (
        "a number of more than 38 digits",
        lambda r: r["dynamodb"]["NewImage"].update(v={"N": "1" * 39}),
    ),
    ("an unknown event name", lambda r: r.update(eventName="EXPLODE")),
    ("a record without an event id", lambda r: r.pop("eventID")),
    ("a record without keys", lambda r: r["dynamodb"].update(Keys={})),
    (
        "a record whose new image does not fit its event name",
        lambda r: r["dynamodb"].pop("NewImage"),
    ),
    (
        "a record without its creation time",
        lambda r: r["dynamodb"].pop("ApproximateCreationDateTime"),
    ),
]


def test_unreadable_records_are_quarantined_and_counted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = world.make_table("spoilt")
    path = world.configure(name)
    world.put(name, "good", v={"S": SECRET})
    for number, _ in enumerate(BAD_RECORDS):
        world.put(name, f"bad{number}", v={"S": SECRET})
    world.put(name, "good too", v={"S": SECRET})
    spoil(monkeypatch, {f"bad{n}": change for n, (_, change) in enumerate(BAD_RECORDS)})
    result = world.capture(name)
    assert (result.rows, result.quarantined) == (2, len(BAD_RECORDS))
    assert world.capture(name).quarantined == 0, "they are read once"
    state = world.table_lake(name).log.load()
    (quarantined,) = state.quarantined.values()
    assert quarantined.reasons == {reason: 1 for reason, _ in BAD_RECORDS}
    folder = r"/error/spoilt/unreadable-record/year=\d{4}/month=\d\d/day=\d\d/"
    assert re.search(folder, quarantined.key)
    assert_no_orphans(world, name)
    data = world.lake().store.read(quarantined.key)
    assert data is not None
    assert len(data.splitlines()) == len(BAD_RECORDS)

    with dg.DagsterInstance.ephemeral() as instance:
        key = dg.AssetKey([name, "raw_stream"])
        job = build_definitions(world.lake().settings, path).resolve_implicit_global_asset_job_def()
        outcome = job.execute_in_process(
            asset_selection=[key], partition_key=world.days(name)[-1].isoformat(), instance=instance
        )
        evaluation = _readable_check(outcome)
        assert not evaluation.passed
        assert evaluation.metadata["records"].value == len(BAD_RECORDS)
        reasons = str(evaluation.metadata["reasons"].value)
        assert all(f"| {reason} | 1 |" in reasons for reason, _ in BAD_RECORDS)


def _readable_check(outcome: Any) -> dg.AssetCheckEvaluation:
    found = {check.check_name: check for check in outcome.get_asset_check_evaluations()}
    return found["no_quarantined_records"]


@local_only
def test_a_healthy_table_passes_the_check(world: World) -> None:
    name = world.make_table("sound")
    path = world.configure(name)
    world.put(name, "a")
    world.capture(name)
    with dg.DagsterInstance.ephemeral() as instance:
        job = build_definitions(world.lake().settings, path).resolve_implicit_global_asset_job_def()
        outcome = job.execute_in_process(
            asset_selection=[dg.AssetKey([name, "raw_stream"])],
            partition_key=world.days(name)[-1].isoformat(),
            instance=instance,
        )
        assert _readable_check(outcome).passed


@local_only
@pytest.mark.parametrize("blocked", ["lake", "lake/_cdc", "lake/dynamo-cdc", "lake/iceberg"])
def test_a_file_where_the_lake_needs_a_folder(world: World, blocked: str) -> None:
    name = world.make_table("blocked")
    world.configure(name)
    world.put(name, "a", v={"S": SECRET})
    in_the_way = world.folder / blocked
    in_the_way.parent.mkdir(parents=True, exist_ok=True)
    in_the_way.write_text("no folder")
    root = str(world.folder / "lake")

    def everything() -> None:
        world.capture(name)
        world.bootstrap(name)
        world.build_cdc(name)

    with refused(LakeError, root):
        everything()
    assert in_the_way.read_text() == "no folder"
    in_the_way.unlink()
    world._lake = None
    everything()
    assert assert_mirrors(world, name) == 1
    assert_nothing_twice(world, name)
    world.capture(name)
    assert_no_orphans(world, name)


def test_a_capture_that_was_overtaken(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the first one's objects and its entry, a second one does the whole work."""
    name = world.make_table("contended")
    world.configure(name)
    world.bootstrap(name)
    for number in range(4):
        world.put(name, f"i{number}")
    lake, overtaken = world.lake(), []
    create = type(lake.store).create

    def overtake(self: Any, key: str, data: bytes) -> bool:
        if not overtaken and '"objects"' in data.decode():
            overtaken.append(key)
            assert world.capture(name).rows == 4
        return create(self, key, data)

    monkeypatch.setattr(type(lake.store), "create", overtake)
    lost = world.capture(name)
    assert overtaken
    assert (lost.conflicts, lost.rows) == (1, 0)
    assert_no_orphans(world, name)
    assert world.capture(name).rows == 0
    assert assert_mirrors(world, name) == 4
    world.build_cdc(name)
    assert_nothing_twice(world, name)


def test_captures_of_one_table_at_once(world: World) -> None:
    name = world.make_table("crowded")
    capture = {"poll_seconds": 0.01, "empty_polls": 1, "flush_rows": 5, "listing_lag_seconds": 0}
    world.configure(name, capture=capture)
    world.bootstrap(name)
    for number in range(40):
        world.put(name, f"i{number % 10}", v={"N": str(number)})
    outcomes: list[int] = []
    barrier = threading.Barrier(3)

    def contend() -> None:
        barrier.wait()
        outcomes.append(world.capture(name).rows)

    threads = [threading.Thread(target=contend) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(outcomes) == 3, "an attempt failed in another way"
    assert sum(outcomes) == 40
    world.capture(name)
    assert_no_orphans(world, name)
    assert assert_mirrors(world, name) == 10
    world.build_cdc(name)
    assert_nothing_twice(world, name)
    assert world.rows("SELECT count(*) FROM crowded.raw_stream", name) == [(40,)]


@local_only
def test_a_table_made_again_under_its_name(world: World) -> None:
    """A break is no error but a gap on record: readers keep the last whole state until it heals."""
    name = world.make_table("reborn")
    world.configure(name)
    world.put(name, "a")
    world.bootstrap(name)
    world.dynamodb.delete_table(TableName=name)
    world.make_table(name)
    world.put(name, "b")
    (gap,) = world.capture(name).gaps
    assert gap.cause == "table recreated"
    world.publish(name)
    assert set(world.items(name)) == {"a"}
    world.bootstrap(name)
    assert set(world.items(name)) == {"b"}
    assert assert_mirrors(world, name) == 1


def test_a_stream_turned_off_and_on(world: World) -> None:
    """What the old stream still holds lands; what was written in between is a gap until healed."""
    name = world.make_table("interrupted")
    world.configure(name)
    world.put(name, "kept")
    world.bootstrap(name)
    world.put(name, "in the old stream")
    specification = {"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"}
    world.dynamodb.update_table(TableName=name, StreamSpecification={"StreamEnabled": False})
    world.put(name, "unseen")
    world.delete(name, "kept")
    world.dynamodb.update_table(TableName=name, StreamSpecification=specification)
    world.put(name, "in the new stream")
    (gap,) = world.capture(name).gaps
    assert gap.cause == "new stream"
    world.publish(name)
    assert set(world.items(name)) == {"kept", "in the old stream"}
    world.bootstrap(name)
    assert assert_mirrors(world, name) == 3
    world.build_cdc(name)
    assert_nothing_twice(world, name)
