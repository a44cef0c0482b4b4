"""Firehose's objects as a source: which table they are of, and which of them have arrived."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time

from cdc_pipeline.aws.s3 import FoundObject, SourceBucket
from cdc_pipeline.aws.session import AwsSession
from cdc_pipeline.aws.shards import Page, StreamDescription
from cdc_pipeline.aws.table import TableDescription, describe_table
from cdc_pipeline.capture.completion import ItemReader
from cdc_pipeline.capture.source import Source
from cdc_pipeline.core.arrival import arrival_day, is_year_folder, looks, newest_look
from cdc_pipeline.core.capture_log import LogState
from cdc_pipeline.core.delivered import Target
from cdc_pipeline.core.envelope import FIREHOSE
from cdc_pipeline.core.errors import ShardGoneError, SourceError
from cdc_pipeline.core.lineage import Shard
from cdc_pipeline.core.log_parts import SourceFile
from cdc_pipeline.core.names import day_of
from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.settings import Firehose, Table

_VIEW = "NEW_AND_OLD_IMAGES"
_DEEPEST = 2


@dataclass(frozen=True)
class Arrived:
    """An object of Firehose and the day that its folder stands for."""

    bucket: SourceBucket
    object: FoundObject
    day: date

    @property
    def uri(self) -> str:
        """Its address, which is its name in the log."""
        return f"s3://{self.bucket.bucket}/{self.object.key}"


class WithoutShards:
    """What stands in a source for the shards of a stream: there are none to read."""

    def describe(self, arn: str) -> StreamDescription:
        """A stream that is on and lists no shard."""
        return StreamDescription(arn, "ENABLED", _VIEW, [])

    def children(self, arn: str, shard_id: str) -> list[Shard] | None:
        """None: there is no lineage."""
        return None

    def iterator(self, arn: str, shard_id: str, after: str | None) -> str:
        """Raises `ShardGoneError`."""
        raise ShardGoneError(f"{arn} has no shards")

    def read(self, iterator: str) -> Page:
        """Raises `ShardGoneError`."""
        raise ShardGoneError(f"{iterator} is of no shard")


def open_files(lake: Lake, table: Table) -> Source:
    """A table whose changes Firehose writes; raises `SourceError`.

    It counts as one stream while the table is the same, whatever prefixes the settings name: what
    is in them is known by what it says.
    """
    aws = lake.source(table)
    found = describe_table(aws, table.name)
    pace = lake.settings.capture.reads_per_second
    return Source(
        table=table.name,
        table_id=found.table_id,
        arn=f"{FIREHOSE}:{found.table_id}",
        view_type=_VIEW,
        shards=WithoutShards(),
        reader=ItemReader(aws, table.name, found.key_names, pace),
        transport=FIREHOSE,
        clock_offset_us=aws.clock_offset.offset_us,
    )


def target_of(found: TableDescription) -> Target:
    """What makes changes of delivered records."""
    return Target(found.name, found.table_id, found.key_types)


def arrived_since(aws: AwsSession, settings: Firehose, since: date, now_us: int) -> list[Arrived]:
    """Every object in folders of `since` and later days, in the order of arrival.

    Requests: one for each prefix and each folder of a kind of error, and two for each of them that
    holds days (one more for every 1000 objects). Raises `SourceError`.
    """
    found = [
        arrived
        for prefix in [*settings.prefixes, *settings.error_prefixes]
        for bucket, root in _roots(aws, prefix)
        for arrived in _under(bucket, root, since, day_of(now_us))
    ]
    # Prefixes may lie in each other.
    single = {arrived.uri: arrived for arrived in found}
    return sorted(single.values(), key=lambda a: (a.day, a.object.modified, a.uri))


def find_again(aws: AwsSession, files: Iterable[SourceFile]) -> Iterator[Arrived]:
    """Objects that were named before, as they are now; one that is gone as it was.

    One request for each. Raises `SourceError`.
    """
    for file in files:
        bucket, key = _bucket_of(aws, file.uri)
        day = date.fromisoformat(file.arrived)
        gone = FoundObject(key, file.etag, file.bytes, datetime.combine(day, time.min, UTC))
        listed = (found for found in bucket.objects(key) if found.key == key)
        yield Arrived(bucket, next(listed, gone), day)


def has_news(aws: AwsSession, settings: Firehose, state: LogState, now_us: int) -> bool:
    """Whether today's folders hold an object that the log does not know, or part of one.

    A cheap look, two requests a prefix: late objects are for the next whole one.
    """
    if any(not (file.whole or file.unread) for file in state.files.values()):
        return True
    return any(_news(aws, prefix, state, day_of(now_us)) for prefix in settings.prefixes)


def _news(aws: AwsSession, prefix: str, state: LogState, today: date) -> bool:
    bucket, root = _bucket_of(aws, prefix)
    known = [uri.removeprefix(prefix) for uri in state.files if uri.startswith(prefix)]
    return any(
        f"s3://{bucket.bucket}/{found.key}" not in state.files
        for look in newest_look(today, known)
        for found in bucket.objects(root + look.prefix, look.after and root + look.after)
        if not _is_hidden(found.key)
    )


def _bucket_of(aws: AwsSession, prefix: str) -> tuple[SourceBucket, str]:
    name, _, root = prefix.removeprefix("s3://").partition("/")
    return SourceBucket(aws, name), root


def _roots(aws: AwsSession, prefix: str) -> Iterator[tuple[SourceBucket, str]]:
    """The folders in which years are: the prefix, or those of kinds of errors in it."""
    bucket, root = _bucket_of(aws, prefix)
    for folder in _dated(bucket, root, 0):
        yield bucket, folder


def _dated(bucket: SourceBucket, root: str, depth: int) -> Iterator[str]:
    folders, names = bucket.folders(root)
    stray = [name for name in names if name and not _is_hidden(name)]
    others = [f for f in folders if not is_year_folder(f) and not _is_hidden(f)]
    if stray or (others and depth == _DEEPEST):
        _refuse(bucket, root + [*stray, *others][0])
    if len(others) < len(folders):
        yield root
    for folder in others:
        yield from _dated(bucket, root + folder, depth + 1)


def _under(bucket: SourceBucket, root: str, since: date, today: date) -> Iterator[Arrived]:
    for look in looks(since, today):
        for found in bucket.objects(root + look.prefix, look.after and root + look.after):
            if _is_hidden(found.key) or found.key.endswith("/"):
                continue
            day = arrival_day(found.key.removeprefix(root), found.modified.date())
            if day is None:
                _refuse(bucket, found.key)
            elif day >= since:
                yield Arrived(bucket, found, day)


def _is_hidden(key: str) -> bool:
    return key.rstrip("/").rpartition("/")[2].startswith(("_", "."))


def _refuse(bucket: SourceBucket, key: str) -> None:
    raise SourceError(
        f"s3://{bucket.bucket}/{key} is under a prefix of Firehose and in no folder of a day "
        "(2026/11/21/ or year=2026/month=11/day=21/)",
        fix="name the prefix up to where the date begins, or move what Firehose did not write",
    )
