"""Rules of DynamoDB Streams that an emulator breaks, and what it does instead."""

from dataclasses import dataclass
from typing import Any

from cdc_pipeline_tests.contract.backends import DYNAMODB_LOCAL, SANDBOX, Backend


@dataclass(frozen=True)
class Deviation:
    """`instead`: what the emulator does, asserted, so that a change of it shows."""

    instead: Any
    why: str


DEVIATIONS: dict[tuple[str, str], Deviation] = {
    (SANDBOX, "a put that lists a set in another order has no record"): Deviation(
        ["INSERT", "MODIFY", "REMOVE"], "ministack compares sets as lists"
    ),
    (DYNAMODB_LOCAL, "records name their region"): Deviation(
        {"ddblocal"}, "its region is called so whatever the client says"
    ),
    (DYNAMODB_LOCAL, "record times are exact to the second"): Deviation(
        False, "they are rounded down to the minute"
    ),
    (DYNAMODB_LOCAL, "a page has at most 1 MB"): Deviation(
        False, "a page ends at 1000 records only"
    ),
    (DYNAMODB_LOCAL, "tables have an id"): Deviation(False, "DescribeTable has no TableId"),
    (DYNAMODB_LOCAL, "a table made again has another id"): Deviation(
        True, "DescribeTable has no TableId"
    ),
    (DYNAMODB_LOCAL, "a gap tells a table made again from a stream"): Deviation(
        "new stream", "DescribeTable has no TableId, and the ARN stays the same"
    ),
}
"""By backend and rule."""


def holds(backend: Backend, rule: str, found: Any, aws: Any) -> None:
    """Assert that a backend does what AWS does, or exactly what the table says instead."""
    deviation = DEVIATIONS.get((backend.name, rule))
    if deviation is None:
        assert found == aws, f"{backend.name} breaks the rule: {rule}"
        return
    assert deviation.instead != aws, f"{rule}: no deviation at all"
    assert found == deviation.instead, (
        f"{backend.name} no longer deviates as the table says ({deviation.why}): {rule}"
    )
