"""What Kinesis channels say: where their objects lie, which records they gave up, and counts.

Source: Kinesis guide, "data delivery" pages (key template, dead-letter queue, monitoring). Not in
them: how records are delimited, their order in an object, the clock of the template, and the exact
names in a dead letter, so all of these are taken as they come.
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
    """A record that a channel did not deliver: where it is in the stream.

    `stream_arn`: None where the letter does not say.
    """

    shard_id: str
    sequence_number: str
    stream_arn: str | None = None


def folder_of(template: str, *, channel: str, channel_id: str, stream: str) -> str:
    """The prefix of a channel's objects: the template up to where times begin."""
    names = {"channel-name": channel, "channel-id": channel_id, "stream-name": stream}
    named = _VARIABLE.sub(lambda m: names.get(m[1], m[0]), template or DEFAULT_TEMPLATE)
    found = _DAY.search(named) if has_days(template) else None
    return named[: found.start() if found else named.find("!{") % (len(named) + 1)]


def has_days(template: str) -> bool:
    """Whether objects lie in folders of days, so that a listing need not show those of years.

    That is `!{yyyy}/!{MM}/!{dd}/` or `year=!{yyyy}/month=!{MM}/day=!{dd}/` in parts of their own,
    with nothing but names before.
    """
    found = _DAY.search(template or DEFAULT_TEMPLATE)
    before = (template or DEFAULT_TEMPLATE)[: found.start()] if found else "?"
    names = {"channel-name", "channel-id", "stream-name"}
    return (
        (not before or before.endswith("/"))
        and {*_VARIABLE.findall(before)} <= names
        and "?" not in before
    )


def dead_letter(said: Any) -> DeadLetter:
    """What one failure document names, however its fields are spelled.

    The guide lists stream ARN, shard ID, sequence number and error, and no names: `shardId`,
    `ShardId`, `shard_id` are all one. Raises `UnreadableError`.
    """
    found = dict(_fields(said, 0)) if isinstance(said, Mapping) else {}
    shard, number = found.get("shardid"), found.get("sequencenumber")
    number = str(number) if isinstance(number, int) and not isinstance(number, bool) else number
    if not isinstance(shard, str) or not _SHARD(shard):
        raise UnreadableError("a dead letter without its shard")
    if not isinstance(number, str) or not number.isdecimal():
        raise UnreadableError("a dead letter without its sequence number")
    arn = found.get("streamarn")
    return DeadLetter(shard, number, arn if isinstance(arn, str) else None)


def _fields(said: Mapping[str, Any], depth: int) -> Iterator[tuple[str, Any]]:
    for name, value in said.items():
        if isinstance(value, Mapping) and depth < _MOST_NESTED:
            yield from _fields(value, depth + 1)
        else:
            yield _LETTERS.sub("", name.lower()), value


def least_missing(counted: Mapping[int, int], found: Mapping[int, int], slack: int) -> int:
    """The least number of records that were counted as delivered and are in no object.

    `counted`, `found`: records by minute of delivery and of the object's time, which differ by
    `slack` minutes at most. Of every stretch of minutes, what was counted in it must be found in
    it and `slack` around it; the worst stretch tells. So nothing is reported only because of the
    clocks, and around minutes without deliveries the comparison is exact.
    """
    minutes = sorted({*counted, *(m + d for m in found for d in (-slack, slack + 1))})
    if not minutes:
        return 0
    worst = best_start = 0
    total, times = 0, sorted(found)
    before = after = at_start = at_end = 0
    for minute in [*minutes, minutes[-1] + 1]:
        # Up to the stretch's end: everything counted before `minute`, found before it and slack.
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
