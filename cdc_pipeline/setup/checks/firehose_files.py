"""Preflight of a table's Firehose prefixes: the newest objects, downloaded and parsed."""

import difflib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import islice

from cdc_pipeline.aws.client.session import AwsSession
from cdc_pipeline.aws.s3.objects import FoundObject, SourceBucket
from cdc_pipeline.capture.sources.firehose_listing import bucket_of, find_arrived, objects_under
from cdc_pipeline.capture.sources.firehose_objects import Record, download, records
from cdc_pipeline.core.changes.ownership import Target
from cdc_pipeline.core.clock import time_text
from cdc_pipeline.core.errors import SourceError
from cdc_pipeline.settings.table import Firehose
from cdc_pipeline.setup.checks.findings import Finding

_OBJECTS = 3
_RECORDS = 2000
_LEVELS = 4
_ADVICE = (
    ("before 2012", "its writer uses another unit of time than its other fields indicate"),
    ("a day ahead", "its writer uses another unit of time than its other fields indicate"),
    ("not encoded twice", "its writer changed DynamoDB's records: make it forward them unchanged"),
    ("other key attributes", "check `name` and the prefix: these are another table's changes"),
    ("uuid is not that", "check `name`, and TABLE_IDS of the Lambda function"),
)


@dataclass
class _Contents:
    """Contents of the newest objects of a prefix."""

    objects: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    others: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    refused: list[str] = field(default_factory=list)
    from_us: int = 1 << 62
    to_us: int = 0

    def add(self, record: Record) -> None:
        if record.unreadable is not None:
            self.reasons[record.unreadable[0]] += 1
        elif record.change is None:
            self.others[record.other or "?"] += 1
        else:
            self.kinds[_kind(record)] += 1
            self.from_us = min(self.from_us, record.change.write_time_us)
            self.to_us = max(self.to_us, record.change.write_time_us)

    def describe(self) -> str:
        """Return counts, kinds, times, tables and reasons in words."""
        parts = [f"{count:,} {kind}" for kind, count in self.kinds.most_common()]
        if self.kinds:
            parts[-1] += f", written {time_text(self.from_us)} to {time_text(self.to_us)} UTC"
        parts += [f"{count:,} changes of table {name}" for name, count in self.others.most_common()]
        parts += [f"{count:,} unreadable: {why}" for why, count in self.reasons.most_common()]
        return "; ".join([f"{_count(self.objects, 'newest object')} read", *parts, *self.refused])


def check_files(aws: AwsSession, settings: Firehose, target: Target) -> Iterator[Finding]:
    """Yield a finding for each prefix with changes."""
    for prefix in settings.prefixes:
        try:
            yield _check_prefix(aws, settings, prefix, target)
        except SourceError as error:
            yield Finding("files", False, error.message, error.fix)


def _check_prefix(aws: AwsSession, settings: Firehose, prefix: str, target: Target) -> Finding:
    bucket, root = bucket_of(aws, prefix)
    newest = _newest(aws, settings, prefix)
    if not newest:
        return _empty(bucket, prefix, root)
    contents = _Contents()
    for entry in newest:
        _read(bucket, entry, target, contents)
    described = f"{prefix}: {contents.describe()}"
    if contents.refused:
        return Finding("files", False, described, "see above; capture stops at such an object")
    if contents.reasons:
        reason = contents.reasons.most_common(1)[0][0]
        advice = (fix for part, fix in _ADVICE if part in reason)
        unknown = "docs/what-we-read.md lists readable formats; others would be quarantined"
        return Finding("files", False, described, next(advice, unknown))
    if contents.others and not contents.kinds:
        names = ", ".join(contents.others)
        fix = f"set the prefix of {target.name}, or, if {names} is meant, correct `name`"
        return Finding("files", False, described, fix)
    return Finding("files", True, described)


def _newest(aws: AwsSession, settings: Firehose, prefix: str) -> list[FoundObject]:
    """Return the newest objects of the last `window_days`; if there are none, of all objects."""
    since = (datetime.now(UTC) - timedelta(settings.window_days)).date()
    recent = [arrived.object for arrived in find_arrived(aws, prefix, settings.layout, since)]
    chosen: Iterable[FoundObject] = recent or objects_under(aws, prefix)
    return sorted(chosen, key=lambda entry: entry.modified)[-_OBJECTS:]


def _read(bucket: SourceBucket, entry: FoundObject, target: Target, contents: _Contents) -> None:
    file = download(bucket, entry)
    if file is None:
        return  # deleted since the listing
    contents.objects += 1
    with file:
        try:
            for record in islice(records(file, entry.key, target), _RECORDS):
                contents.add(record)
        except SourceError as error:
            message = f"{entry.key} is {error.message}" + (f" ({error.fix})" if error.fix else "")
            contents.refused.append(message)


def _empty(bucket: SourceBucket, prefix: str, root: str) -> Finding:
    near = _nearest(bucket, root)
    fix = (
        f"is s3://{bucket.bucket}/{near} meant? There are objects"
        if near is not None
        else "correct the prefix, or wait for the first delivery"
    )
    problem = f"there are no objects under {prefix}, so no data would ever count as complete"
    return Finding("files", False, problem, fix)


def _nearest(bucket: SourceBucket, root: str) -> str | None:
    """Return the most similar prefix with objects, searched in the folders above this one."""
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
            # A date directly after the name was appended without a slash.
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
    return "changes in stream format" if change.sequence_number else "changes in Kinesis format"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
