"""The landing columns, in their order: names, types and descriptions."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LandingColumn:
    """One column; `type` is `string`, `boolean`, `bigint` or `timestamp` (ms, UTC), as in Glue."""

    name: str
    type: str
    description: str


LANDING_COLUMNS = (
    LandingColumn("uuid", "string", "stable identity of the change, SHA-256 in hex"),
    LandingColumn("op", "string", "I insert, U update, D delete"),
    LandingColumn("time_stamp", "timestamp", "when the change was written, UTC"),
    LandingColumn("data", "string", "the new item as plain JSON; null for a delete"),
    LandingColumn("keys", "string", "the item's key, exact typed DynamoDB JSON"),
    LandingColumn("new_image", "string", "the item after the change, exact typed DynamoDB JSON"),
    LandingColumn("old_image", "string", "the item before the change, where the stream has it"),
    LandingColumn("write_time_us", "bigint", "when it was written, µs since the epoch"),
    LandingColumn("position", "string", "order of the change: shard lineage depth and number"),
    LandingColumn("sequence_number", "string", "DynamoDB's number of the change in its shard"),
    LandingColumn("shard_id", "string", "the shard it was read from"),
    LandingColumn("event_id", "string", "the stream's id of the change"),
    LandingColumn("is_ttl_delete", "boolean", "deleted by TTL; null: unknown"),
    LandingColumn("transport", "string", "how the change came to the lake"),
    LandingColumn("landed_at", "timestamp", "when it landed, UTC"),
)
