"""Firehose's objects as a source: their table, and listings of arrived objects."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time

from cdc_pipeline.aws.client.session import AwsSession
from cdc_pipeline.aws.s3.objects import FoundObject, SourceBucket
from cdc_pipeline.aws.shards import Page, StreamDescription
from cdc_pipeline.aws.table import TableDescription, describe_table
from cdc_pipeline.capture.sources.item_reader import ItemReader
from cdc_pipeline.capture.sources.source import Source
from cdc_pipeline.core.changes.ownership import Target
from cdc_pipeline.core.errors import ShardGoneError, SourceError
from cdc_pipeline.core.log.entries import SourceFile
from cdc_pipeline.core.log.lineage import Shard
from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.core.names import split_s3
from cdc_pipeline.core.plans.firehose_folders import (
    Parts,
    arrival_day,
    by_layout,
    dated,
    label_of,
    may_hold,
    newest_of,
)
from cdc_pipeline.core.transports import FIREHOSE, NEW_AND_OLD_IMAGES
from cdc_pipeline.lake.lake import TableLake
from cdc_pipeline.settings.table import Firehose

_DEEPEST = 2


@dataclass(frozen=True)
class ArrivedObject:
    """An object of Firehose and the day of its folder."""

    bucket: SourceBucket
    object: FoundObject
    day: date

    @property
    def uri(self) -> str:
        """Address of the object, also its name in the log."""
        return f"s3://{self.bucket.bucket}/{self.object.key}"


class NoShards:
    """Placeholder for the shards of a source that has none."""

    def describe(self, arn: str) -> StreamDescription:
        """An enabled stream without shards."""
        return StreamDescription(arn, "ENABLED", NEW_AND_OLD_IMAGES, [])

    def children(self, arn: str, shard_id: str) -> list[Shard] | None:
        """None: there is no lineage."""
        return None

    def iterator(self, arn: str, shard_id: str, after: str | None) -> str:
        """Raises `ShardGoneError`."""
        raise ShardGoneError(f"{arn} has no shards")

    def read(self, iterator: str) -> Page:
        """Raises `ShardGoneError`."""
        raise ShardGoneError(f"{iterator} is of no shard")


def open_firehose(table: TableLake, described: TableDescription | None = None) -> Source:
    """Open a table whose changes Firehose writes, described now if not yet; raises `SourceError`.

    It counts as one stream as long as the table is the same, also with other prefixes in the
    settings: records are identified by their content.
    """
    aws = table.source
    described = described or describe_table(aws, table.name)
    pace = table.lake.settings.capture.reads_per_second
    return Source(
        table=table.name,
        table_id=described.table_id,
        arn=f"{FIREHOSE}:{described.table_id}",
        view_type=NEW_AND_OLD_IMAGES,
        shards=NoShards(),
        reader=ItemReader(aws, table.name, described.key_names, pace),
        transport=FIREHOSE,
        clock_offset_us=aws.clock_offset.offset_us,
        target=target_of(described),
    )


def target_of(described: TableDescription) -> Target:
    """Return the table that the records of a source must belong to."""
    return Target(described.name, described.table_id, described.key_types, described.arn)


def arrived_since(
    aws: AwsSession, settings: Firehose, since: date, now_us: int
) -> list[ArrivedObject]:
    """List all objects in folders of `since` and later days, in the order of arrival.

    Requests: one for each folder above the months, and two for each listed month (one more for
    every 1000 folders or objects). With a `layout` in the settings all objects are listed.
    Raises `SourceError`.
    """
    objects = [
        arrived
        for prefix in [*settings.prefixes, *settings.error_prefixes]
        for arrived in find_arrived(aws, prefix, settings.layout, since)
    ]
    # One prefix may contain another.
    unique = {arrived.uri: arrived for arrived in objects}
    return sorted(unique.values(), key=lambda a: (a.day, a.object.modified, a.uri))


def find_arrived(
    aws: AwsSession, prefix: str, layout: str | None, since: date
) -> Iterator[ArrivedObject]:
    """List the objects of one prefix; see `arrived_since`."""
    bucket, root = bucket_of(aws, prefix)
    if layout is not None:
        yield from _by_layout(bucket, root, layout, since)
        return
    if not root or root.endswith("/"):
        yield from _walk(bucket, root, (), since, _DEEPEST)
        return
    # Firehose appends its date to a prefix as it is: `raw/orders` gives `raw/orders2026/11/21/`.
    folders, _ = bucket.folders(root)
    if "/" in folders:
        yield from _walk(bucket, f"{root}/", (), since, _DEEPEST)
    for folder in folders:
        parts = dated(folder[:-1])
        if parts is not None and len(parts) < 3 and may_hold(parts, since):
            yield from _walk(bucket, root + folder, parts, since, None)
        elif parts is not None and may_hold(parts, since):
            yield from _of_days(bucket, root, {folder: parts}, (), since)


def is_empty(aws: AwsSession, prefix: str) -> bool:
    """Whether there is no object under a prefix, in any folder; one request."""
    bucket, root = bucket_of(aws, prefix)
    return not any(not _is_hidden(f.key) and not f.key.endswith("/") for f in bucket.objects(root))


def list_again(aws: AwsSession, files: Iterable[SourceFile]) -> Iterator[ArrivedObject]:
    """List logged objects again, with their current state; one that is gone keeps its old state.

    One request for each. Raises `SourceError`.
    """
    for file in files:
        bucket, key = bucket_of(aws, file.uri)
        day = date.fromisoformat(file.arrived)
        gone = FoundObject(key, file.etag, file.bytes, datetime.combine(day, time.min, UTC))
        listed = (item for item in bucket.objects(key) if item.key == key)
        yield ArrivedObject(bucket, next(listed, gone), day)


def has_new_objects(aws: AwsSession, settings: Firehose, state: LogState) -> bool:
    """Whether there is an object after the newest logged ones, or an object read in part.

    A cheap check, with one request for each spelling of days in a prefix: late objects are found
    by the next whole listing, and so is everything under a `layout` of the settings.
    """
    if any(not (file.whole or file.unread) for file in state.files.values()):
        return True
    return settings.layout is None and any(_has_newer(aws, p, state) for p in settings.prefixes)


def _has_newer(aws: AwsSession, prefix: str, state: LogState) -> bool:
    bucket, root = bucket_of(aws, prefix)
    known = [uri.removeprefix(prefix) for uri in state.files if uri.startswith(prefix)]
    if not known:
        return not is_empty(aws, prefix)
    return any(
        not _is_hidden(newer.key) and not newer.key.endswith("/")
        for lead, last in newest_of(known).items()
        for newer in bucket.objects(root + lead, root + last)
    )


def objects_under(aws: AwsSession, prefix: str) -> list[FoundObject]:
    """List the objects under a prefix, in all folders; raises `SourceError`."""
    bucket, root = bucket_of(aws, prefix)
    return [f for f in bucket.objects(root) if not (_is_hidden(f.key) or f.key.endswith("/"))]


def bucket_of(aws: AwsSession, prefix: str) -> tuple[SourceBucket, str]:
    """Split a prefix of the settings into its bucket and its key."""
    name, root = split_s3(prefix)
    return SourceBucket(aws, name), root


def _walk(
    bucket: SourceBucket, path: str, known: Parts, since: date, deeper: int | None
) -> Iterator[ArrivedObject]:
    """Objects under a folder; its name and its parents are the parts `known` of a day.

    `deeper`: number of levels of other folders allowed above folders of days; None: objects outside
    folders of days belong to something else, and are ignored. Otherwise they raise `SourceError`.
    """
    folders, names = bucket.folders(path)
    stray = [name for name in names if name and not _is_hidden(name)]
    if stray and deeper is not None:
        _refuse(bucket, path + stray[0])
    days: dict[str, Parts] = {}
    for folder in folders:
        if _is_hidden(folder):
            continue
        parts = dated(folder[:-1], known)
        if parts is None and known:
            parts = dated(folder[:-1])  # the folder taken for a year was none
        if parts is None and deeper is not None:
            if known or deeper == 0:
                _refuse(bucket, path + folder)
            yield from _walk(bucket, path + folder, (), since, deeper - 1)
        elif parts is not None and may_hold(parts, since):
            if len(parts) == 3:
                days[folder] = parts
            else:
                yield from _walk(bucket, path + folder, parts, since, deeper)
    yield from _of_days(bucket, path, days, known, since)


def _of_days(
    bucket: SourceBucket, path: str, days: Mapping[str, Parts], known: Parts, since: date
) -> Iterator[ArrivedObject]:
    """Objects in folders of days under `path`: one listing for all folders with the same label."""
    for label in dict.fromkeys(map(label_of, days)):
        first = min(folder for folder in days if label_of(folder) == label)
        for item in bucket.objects(path + label, path + first):
            folder, _, name = item.key.removeprefix(path).partition("/")
            parts = dated(folder, known) or dated(folder)
            if parts is None or len(parts) < 3 or not name or _is_hidden(item.key):
                continue
            if item.key.endswith("/"):
                continue
            day = arrival_day(parts, item.key.rpartition("/")[2], item.modified.date())
            if day >= since and label_of(folder) == label:
                yield ArrivedObject(bucket, item, day)


def _by_layout(
    bucket: SourceBucket, root: str, layout: str, since: date
) -> Iterator[ArrivedObject]:
    day_of_key = by_layout(layout)
    for item in bucket.objects(root):
        if _is_hidden(item.key) or item.key.endswith("/"):
            continue
        day = day_of_key(item.key.removeprefix(root), item.modified.date())
        if day is None:
            raise SourceError(
                f"s3://{bucket.bucket}/{item.key} does not match `layout: {layout}`",
                fix="correct the layout, or set `layout: last_modified`: then an object's day is "
                "the day of its last write",
            )
        if day >= since:
            yield ArrivedObject(bucket, item, day)


def _is_hidden(key: str) -> bool:
    return key.rstrip("/").rpartition("/")[2].startswith(("_", "."))


def _refuse(bucket: SourceBucket, key: str) -> None:
    raise SourceError(
        f"s3://{bucket.bucket}/{key} is under a prefix of the settings but in no folder of a day, "
        "such as 2026/11/21/, year=2026/month=11/day=21/ or dt=2026-11-21/",
        fix="name the prefix up to the beginning of the date; or set the form of its keys, "
        "`layout: 'day-{dd}.{MM}.{yyyy}/'`, or `layout: last_modified` for keys without a day; or "
        "move objects that are not copies of the table's changes",
    )
