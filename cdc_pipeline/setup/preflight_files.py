"""What lies under the prefixes of a table that Firehose writes: its newest objects, really read."""

import difflib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import islice

from cdc_pipeline.aws.client.session import AwsSession
from cdc_pipeline.aws.s3.objects import FoundObject, SourceBucket
from cdc_pipeline.capture.sources.firehose_listing import bucket_of, find_arrived, newest_under
from cdc_pipeline.capture.sources.firehose_objects import Record, download, records
from cdc_pipeline.core.changes.ownership import Target
from cdc_pipeline.core.clock import time_text
from cdc_pipeline.core.errors import SourceError
from cdc_pipeline.settings.model import Firehose
from cdc_pipeline.setup.findings import Finding

_OBJECTS = 3
_RECORDS = 2000
_LEVELS = 4
_ADVICE = (
    ("before 2012", "its writer spells times in another unit than its other fields say"),
    ("a day ahead", "its writer spells times in another unit than its other fields say"),
    ("not encoded twice", "its writer changed DynamoDB's records: let it hand them on as they are"),
    ("other key attributes", "check `name` and the prefix: these are another table's changes"),
    ("uuid is not that", "check `name`, and TABLE_IDS of the Lambda function"),
)


@dataclass
class _Seen:
    """What the newest objects of a prefix hold."""

    objects: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    others: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    refused: list[str] = field(default_factory=list)
    from_us: int = 1 << 62
    to_us: int = 0

    def take(self, record: Record) -> None:
        if record.unreadable is not None:
            self.reasons[record.unreadable[0]] += 1
        elif record.change is None:
            self.others[record.other or "?"] += 1
        else:
            self.kinds[_kind(record)] += 1
            self.from_us = min(self.from_us, record.change.write_time_us)
            self.to_us = max(self.to_us, record.change.write_time_us)

    def told(self) -> str:
        """In words: counts, kinds, times, tables, reasons."""
        parts = [f"{count:,} {kind}" for kind, count in self.kinds.most_common()]
        if self.kinds:
            parts[-1] += f", written {time_text(self.from_us)} to {time_text(self.to_us)} UTC"
        parts += [f"{count:,} changes of table {name}" for name, count in self.others.most_common()]
        parts += [f"{count:,} unreadable: {why}" for why, count in self.reasons.most_common()]
        return "; ".join([f"{_count(self.objects, 'newest object')} read", *parts, *self.refused])


def look_at_files(aws: AwsSession, settings: Firehose, target: Target) -> Iterator[Finding]:
    """A finding for each prefix that changes come from."""
    for prefix in settings.prefixes:
        try:
            yield _look(aws, settings, prefix, target)
        except SourceError as error:
            yield Finding("files", False, error.message, error.fix)


def _look(aws: AwsSession, settings: Firehose, prefix: str, target: Target) -> Finding:
    bucket, root = bucket_of(aws, prefix)
    newest = _newest(aws, settings, prefix)
    if not newest:
        return _empty(bucket, prefix, root)
    seen = _Seen()
    for found in newest:
        _read(bucket, found, target, seen)
    told = f"{prefix}: {seen.told()}"
    if seen.refused:
        return Finding("files", False, told, "see above; capture stops at such an object")
    if seen.reasons:
        why = seen.reasons.most_common(1)[0][0]
        advice = (fix for part, fix in _ADVICE if part in why)
        unknown = "docs/what-we-read.md lists what is read; the rest would be quarantined"
        return Finding("files", False, told, next(advice, unknown))
    if seen.others and not seen.kinds:
        names = ", ".join(seen.others)
        fix = f"name the prefix of {target.name}, or, if {names} is meant, correct `name`"
        return Finding("files", False, told, fix)
    return Finding("files", True, told)


def _newest(aws: AwsSession, settings: Firehose, prefix: str) -> list[FoundObject]:
    """Of the last days; if there is none, of whatever there is."""
    since = (datetime.now(UTC) - timedelta(settings.window_days)).date()
    recent = [arrived.object for arrived in find_arrived(aws, prefix, settings.layout, since)]
    chosen: Iterable[FoundObject] = recent or newest_under(aws, prefix)
    return sorted(chosen, key=lambda found: found.modified)[-_OBJECTS:]


def _read(bucket: SourceBucket, found: FoundObject, target: Target, seen: _Seen) -> None:
    file = download(bucket, found)
    if file is None:
        return  # gone meanwhile
    seen.objects += 1
    with file:
        try:
            for record in islice(records(file, found.key, target), _RECORDS):
                seen.take(record)
        except SourceError as error:
            told = f"{found.key} is {error.message}" + (f" ({error.fix})" if error.fix else "")
            seen.refused.append(told)


def _empty(bucket: SourceBucket, prefix: str, root: str) -> Finding:
    near = _nearest(bucket, root)
    fix = (
        f"is s3://{bucket.bucket}/{near} meant? There are objects"
        if near is not None
        else "correct the prefix, or wait until something was delivered"
    )
    told = f"nothing was ever found under {prefix}, so nothing would ever count as complete"
    return Finding("files", False, told, fix)


def _nearest(bucket: SourceBucket, root: str) -> str | None:
    """The prefix most like this one that has objects, looked for in the folders above it."""
    path = root.rstrip("/")
    for _ in range(_LEVELS):
        parent, _, name = path.rpartition("/")
        parent += "/" if parent else ""
        folders, _ = bucket.folders(parent)
        alike = sorted(
            (f for f in folders if parent + f != root),
            key=lambda f: -difflib.SequenceMatcher(None, f.rstrip("/"), name).ratio(),
        )
        for folder in alike[:_LEVELS]:
            if next(bucket.objects(parent + folder), None) is None:
                continue
            # A date right behind the name was appended without a slash.
            joined = folder.startswith(name) and folder[len(name) : len(name) + 2] == "20"
            below = parent + folder + root[len(path) + 1 :]
            if joined or next(bucket.objects(below), None) is None:
                return parent + (name if joined else folder)
            return below
        if not parent:
            return None
        path = parent.rstrip("/")
    return None


def _kind(record: Record) -> str:
    change = record.change
    assert change is not None  # it is one
    if record.legacy:
        return "rows of an older Lambda function"
    if change.shard_id:
        return "rows of our Lambda function"
    return "changes as a stream spells them" if change.sequence_number else "changes as in Kinesis"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
