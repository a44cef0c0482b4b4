"""Rules of DynamoDB, the text of AWS that decides each, and what an emulator does instead."""

from dataclasses import dataclass
from typing import Any

from cdc_pipeline_tests.contract.backends import DYNALITE, DYNOXIDE, MOTO, Backend

_TYPES = "developer guide, HowItWorks.NamingRulesDataTypes"
_QUOTAS = "developer guide, ServiceQuotas"
_STREAMS = "developer guide, Streams"
_TABLES = "API model dynamodb 2012-08-10"
_READS = "API model dynamodbstreams 2012-08-10"
_NOWHERE = "not documented; what the others agree on"

RULES: dict[str, str] = {
    # Items.
    "zeros at the ends of a number are trimmed": f"{_TYPES}: leading and trailing zeroes",
    "zeros at the ends of a number in a set are trimmed": f"{_TYPES}: leading and trailing zeroes",
    "a number key reads as its normal form": f"{_TYPES}: leading and trailing zeroes",
    "a number has at most 38 digits": f"{_TYPES}: exceeding this results in an exception",
    "a number inside a value has at most 38 digits": f"{_TYPES}: exceeding 38 is an exception",
    "a number that is a key is checked like any other": f"{_TYPES}: digits and range",
    "a number is below 1E126": f"{_TYPES}: to 9.9999999999999999999999999999999999999E+125",
    "a number is not nearer to 0 than 1E-130": f"{_TYPES}: from 1E-130",
    "a number has no underscores": _NOWHERE,
    "a set has each member once": f"{_TYPES}: each value within a set must be unique",
    "a set has each number once however it is spelled": f"{_TYPES}: unique; zeroes are trimmed",
    "a set of binaries is not empty": f"{_TABLES}, PutItem: set type attributes cannot be empty",
    "values nest no deeper than 32 levels": f"{_TYPES}: up to 32 levels deep",
    "an item of almost 400 KB is taken": f"{_QUOTAS}: the maximum item size is 400 KB",
    # Records.
    "an update that makes an item has one record": f"{_STREAMS}: each record exactly once",
    "each write that changes something is captured once": f"{_STREAMS}: each record exactly once",
    "a put that changes nothing has no record": f"{_STREAMS}: does not change any data",
    "a put that spells a number in another way has no record": f"{_STREAMS}, and {_TYPES}: zeroes",
    "a put that lists a set in another order has no record": f"{_STREAMS}, and {_TYPES}: no order",
    "a put that lists attributes in another order has no record": f"{_STREAMS}: any data",
    "an update that changes nothing has no record": f"{_STREAMS}: does not change any data",
    "sequence numbers have 21 to 40 digits": f"{_READS}, SequenceNumber",
    "records name their region": f"{_READS}, Record: where GetRecords was received",
    "record times are whole seconds": f"{_READS}, StreamRecord: rounded down to the second",
    # Streams and their shards.
    "a stream's description names the keys": f"{_READS}, StreamDescription",
    "the label of a stream is a time in ISO 8601": f"{_READS}, StreamDescription",
    "a shard that takes records has no end": f"{_READS}, DescribeStream: then the shard is open",
    "a listing begins behind ExclusiveStartShardId": f"{_READS}, LastEvaluatedShardId: excluding",
    "ShardFilter gives a shard's children": f"{_READS}, ShardFilter: CHILD_SHARDS",
    "a page has at most 1000 records": f"{_READS}, GetRecords",
    "a page has at most 1 MB": f"{_READS}, GetRecords",
    "an unknown stream is not found": f"{_READS}, DescribeStream: ResourceNotFoundException",
    "an unknown shard is not found": f"{_READS}, GetShardIterator: ResourceNotFoundException",
    "an unknown shard of no stream is not found": f"{_READS}, GetShardIterator",
    "a broken iterator is invalid": _NOWHERE,
    "a table whose stream is off takes writes": f"{_STREAMS}: on or off at any time",
    "a stream that is off is still described": f"{_STREAMS}: readable for 24 hours",
    "a stream that is off says so": f"{_READS}, StreamStatus",
    "the shards of a stream that is off end": f"{_STREAMS}: open shards are closed",
    "the shards of a stream that is off are closed": f"{_STREAMS}: open shards are closed",
    "a stream that is off can be turned on again": f"{_STREAMS}: a new stream",
    "a stream turned on again begins empty": f"{_STREAMS}: a new stream with another descriptor",
    "the stream of a table made again begins empty": f"{_STREAMS}: records of its own table",
    "the stream of a deleted table is still described": f"{_TABLES}, DeleteTable: for 24 hours",
    "tables have an id": f"{_TABLES}, TableDescription",
    "a table made again has another id": f"{_TABLES}, TableDescription: unique, when created",
    "a gap tells a table made again from a stream": f"{_TABLES}, TableDescription: TableId",
}
"""What AWS does, and where AWS says so. Our simulator and our sandbox break none of them."""


@dataclass(frozen=True)
class Deviation:
    """`instead`: what the emulator does, asserted, so that a change of it shows."""

    instead: Any
    why: str


_MODIFY = Deviation(["INSERT", "MODIFY", "REMOVE"], "it records all puts and updates")
_KEPT = "it keeps the text of a number as it came"
_UNCHECKED = "it checks that text is a number and little more"
_ONE_SHARD = "it lists its one shard whatever is asked for"
_BY_NAME = "records are found by the table's name, whichever stream they were written for"
_NO_VIEW = "it forgets the view type with the stream and then looks for it: an internal error"

DEVIATIONS: dict[tuple[str, str], Deviation] = {
    (DYNALITE, "values nest no deeper than 32 levels"): Deviation(2, "it does not count"),
    # ----------------------------------------------------------------------------- dynoxide
    **{
        (DYNOXIDE, rule): _MODIFY
        for rule in RULES
        if rule.startswith(("a put that", "an update that changes nothing"))
    },
    (DYNOXIDE, "records name their region"): Deviation({"dynoxide"}, "the region is called so"),
    (DYNOXIDE, "a stream's description names the keys"): Deviation([], "there is no KeySchema"),
    (DYNOXIDE, "the label of a stream is a time in ISO 8601"): Deviation(
        False, "it is in seconds since the epoch"
    ),
    (DYNOXIDE, "a shard that takes records has no end"): Deviation(
        False, "EndingSequenceNumber is that of the newest record"
    ),
    (DYNOXIDE, "a listing begins behind ExclusiveStartShardId"): Deviation(1, _ONE_SHARD),
    (DYNOXIDE, "a page has at most 1 MB"): Deviation(False, "a page ends at 1000 records only"),
    (DYNOXIDE, "an unknown stream is not found"): Deviation("", _BY_NAME),
    (DYNOXIDE, "an unknown shard is not found"): Deviation("", "it gives an iterator for any"),
    (DYNOXIDE, "an unknown shard of no stream is not found"): Deviation("", _BY_NAME),
    (DYNOXIDE, "a stream that is off is still described"): Deviation(
        "ResourceNotFoundException", "what it recorded cannot be read until it is on again"
    ),
    (DYNOXIDE, "a stream turned on again begins empty"): Deviation(
        [0, 1, 2, 3, 4, 10, 11], _BY_NAME
    ),
    (DYNOXIDE, "the stream of a table made again begins empty"): Deviation(
        [0, 1, 2, 3, 4, 7], _BY_NAME
    ),
    # --------------------------------------------------------------------------------- moto
    (MOTO, "zeros at the ends of a number are trimmed"): Deviation(
        ["001.500", "00", "0.0", "1.0", "-01.10"], _KEPT
    ),
    (MOTO, "zeros at the ends of a number in a set are trimmed"): Deviation(["001.500"], _KEPT),
    (MOTO, "a number key reads as its normal form"): Deviation(False, _KEPT),
    (MOTO, "a number has at most 38 digits"): Deviation(2, _UNCHECKED),
    (MOTO, "a number inside a value has at most 38 digits"): Deviation(2, _UNCHECKED),
    (MOTO, "a number that is a key is checked like any other"): Deviation(2, _UNCHECKED),
    (MOTO, "a number is below 1E126"): Deviation(2, _UNCHECKED),
    (MOTO, "a number has no underscores"): Deviation(1, "Python's Decimal takes them"),
    (MOTO, "a set has each member once"): Deviation(4, "members are not compared"),
    (MOTO, "a set has each number once however it is spelled"): Deviation(1, "nor here"),
    (MOTO, "a set of binaries is not empty"): Deviation(1, "it looks at the other sets only"),
    (MOTO, "values nest no deeper than 32 levels"): Deviation(2, "it does not count"),
    (MOTO, "an item of almost 400 KB is taken"): Deviation(
        "ValidationException", "its limit is 405,000 bytes"
    ),
    (MOTO, "an update that makes an item has one record"): Deviation(2, "two INSERT"),
    (MOTO, "each write that changes something is captured once"): Deviation(
        False, "an update that makes an item has two records"
    ),
    **{
        (MOTO, rule): _MODIFY
        for rule in RULES
        if rule.startswith(("a put that", "an update that changes nothing"))
    },
    (MOTO, "record times are whole seconds"): Deviation(False, "they have microseconds"),
    (MOTO, "a listing begins behind ExclusiveStartShardId"): Deviation(1, _ONE_SHARD),
    (MOTO, "a page has at most 1 MB"): Deviation(False, "a page ends at 1000 records only"),
    (MOTO, "an unknown stream is not found"): Deviation("", "it reads the table's name only"),
    (MOTO, "an unknown shard is not found"): Deviation("500", "an internal error"),
    (MOTO, "an unknown shard of no stream is not found"): Deviation(
        "", "it reads the table's name only"
    ),
    (MOTO, "a broken iterator is invalid"): Deviation("500", "an internal error"),
    (MOTO, "a table whose stream is off takes writes"): Deviation("500", _NO_VIEW),
    (MOTO, "a stream that is off is still described"): Deviation("500", _NO_VIEW),
    (MOTO, "a stream that is off can be turned on again"): Deviation(
        "ResourceInUseException", "a table that ever had a stream gets no other"
    ),
    (DYNOXIDE, "ShardFilter gives a shard's children"): Deviation(
        None, "ShardFilter is overlooked: it lists all shards"
    ),
    (MOTO, "ShardFilter gives a shard's children"): Deviation(
        None, "ShardFilter is overlooked: it lists all shards"
    ),
    (MOTO, "tables have an id"): Deviation(False, "DescribeTable has no TableId"),
    (MOTO, "a table made again has another id"): Deviation(True, "DescribeTable has no TableId"),
    (MOTO, "a gap tells a table made again from a stream"): Deviation(
        "new stream", "DescribeTable has no TableId, and the ARN stays the same"
    ),
}
"""By backend and rule. Where AWS's text decides, AWS is right and the emulator wrong."""


def holds(backend: Backend, rule: str, found: Any, aws: Any) -> bool:
    """Assert that a backend does what AWS does, or exactly what the table says instead.

    Whether it is what AWS does: what follows from a rule cannot be asked where it is broken.
    """
    deviation = DEVIATIONS.get((backend.name, rule))
    if deviation is None:
        assert found == aws, f"{backend.name} breaks the rule: {rule} ({RULES[rule]})"
        return True
    assert deviation.instead != aws, f"{rule}: no deviation at all"
    assert found == deviation.instead, (
        f"{backend.name} no longer deviates as the table says ({deviation.why}): {rule}"
    )
    return False
