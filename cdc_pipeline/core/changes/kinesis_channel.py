"""Kinesis channels: the prefix of their objects, their dead letters, and their counts.

Source: Kinesis guide, "data delivery" pages (key template, dead-letter queue, monitoring). These do
not specify the delimiters of records, their order in an object, the clock of the template, and the
field names of a dead letter, so this module accepts any.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cdc_pipeline.core.errors import UnreadableError

DEFAULT_TEMPLATE = "kinesis-channel/!{channel-name}/!{channel-id}/!{yyyy}/!{MM}/!{dd}/!{HH}/"
_VARIABLE = re.compile(r"!\{([^}]*)\}")
_DAY = re.compile(r"(!\{yyyy\}/!\{MM\}/!\{dd\}|year=!\{yyyy\}/month=!\{MM\}/day=!\{dd\})/")
_SHARD = re.compile(r"shardId-\d+").fullmatch
_LETTERS = re.compile(r"[^a-z]")
_MOST_NESTED = 4


@dataclass(frozen=True)
class DeadLetter:
    """The place in the stream of a record that a channel did not deliver.

    `stream_arn`: None if the letter does not contain it.
    """

    shard_id: str
    sequence_number: str
    stream_arn: str | None = None


def folder_of(template: str, *, channel: str, channel_id: str, stream: str) -> str:
    """Return the prefix of a channel's objects: the template up to its first time."""
    names = {"channel-name": channel, "channel-id": channel_id, "stream-name": stream}
    named = _VARIABLE.sub(lambda m: names.get(m[1], m[0]), template or DEFAULT_TEMPLATE)
    day = _DAY.search(named) if has_days(template) else None
    return named[: day.start() if day else named.find("!{") % (len(named) + 1)]


def has_days(template: str) -> bool:
    """Whether objects are in folders of days, so that a listing can be limited to some days.

    True for `!{yyyy}/!{MM}/!{dd}/` or `year=!{yyyy}/month=!{MM}/day=!{dd}/` as whole path segments,
    with names only before them.
    """
    day = _DAY.search(template or DEFAULT_TEMPLATE)
    before = (template or DEFAULT_TEMPLATE)[: day.start()] if day else "?"
    names = {"channel-name", "channel-id", "stream-name"}
    return (
        (not before or before.endswith("/"))
        and {*_VARIABLE.findall(before)} <= names
        and "?" not in before
    )


def dead_letter(document: Any) -> DeadLetter:
    """Parse one failure document, with any spelling of its fields.

    The guide lists stream ARN, shard ID, sequence number and error, without field names: `shardId`,
    `ShardId` and `shard_id` are equal here. Raises `UnreadableError`.
    """
    fields = dict(_fields(document, 0)) if isinstance(document, Mapping) else {}
    shard, number = fields.get("shardid"), fields.get("sequencenumber")
    number = str(number) if isinstance(number, int) and not isinstance(number, bool) else number
    if not isinstance(shard, str) or not _SHARD(shard):
        raise UnreadableError("a dead letter without its shard")
    if not isinstance(number, str) or not number.isdecimal():
        raise UnreadableError("a dead letter without its sequence number")
    arn = fields.get("streamarn")
    return DeadLetter(shard, number, arn if isinstance(arn, str) else None)


def _fields(document: Mapping[str, Any], depth: int) -> Iterator[tuple[str, Any]]:
    for name, value in document.items():
        if isinstance(value, Mapping) and depth < _MOST_NESTED:
            yield from _fields(value, depth + 1)
        else:
            yield _LETTERS.sub("", name.lower()), value


def least_missing(counted: Mapping[int, int], found: Mapping[int, int], slack: int) -> int:
    """Return the least number of records counted as delivered that are in no object.

    `counted`, `found`: records by minute of delivery, and by minute of the object's time; the two
    minutes of a record differ by `slack` at most. All records counted in a range of minutes must be
    found in this range, extended by `slack` on both sides; the range with most records missing
    decides. So clocks alone cause no report, and beside minutes without deliveries the comparison
    is exact.
    """
    minutes = sorted({*counted, *(m + d for m in found for d in (-slack, slack + 1))})
    if not minutes:
        return 0
    worst = best_start = 0
    total, times = 0, sorted(found)
    before = after = at_start = at_end = 0
    for minute in [*minutes, minutes[-1] + 1]:
        # Up to the range's end: records counted before `minute`, found before `minute` + slack.
        while at_end < len(times) and times[at_end] < minute + slack:
            after += found[times[at_end]]
            at_end += 1
        worst = max(worst, (total - after) - best_start)
        while at_start < len(times) and times[at_start] < minute - slack:
            before += found[times[at_start]]
            at_start += 1
        best_start = min(best_start, total - before)
        total += counted.get(minute, 0)
    return worst
