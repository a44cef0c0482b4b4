"""Records of a delivery stream: waiting, failed, in batches."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

_MB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Record:
    """A waiting record; `metadata`: kinesisRecordMetadata of records from Kinesis."""

    record_id: str
    data: bytes
    arrived_ms: int
    metadata: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """A record for the error prefix, with the other fields of its document."""

    record: Record
    details: dict[str, Any]


@dataclass(slots=True)
class Buffer:
    """Waiting records, oldest first; removed after their delivery."""

    records: list[Record] = field(default_factory=list)

    def due(self, config: dict[str, Any]) -> bool:
        """Return whether there are enough bytes, or the oldest record has waited long enough."""
        if not self.records:
            return False
        hints = config.get("BufferingHints") or {}
        waited = time.time() - self.records[0].arrived_ms / 1000
        size = sum(len(record.data) for record in self.records)
        return waited >= int(hints.get("IntervalInSeconds", 300)) or size >= _MB * int(
            hints.get("SizeInMBs", 5)
        )


def batches(records: list[Record], most_bytes: int) -> Iterator[list[Record]]:
    """Split records into batches by a limit of bytes, with at least one record each."""
    batch: list[Record] = []
    size = 0
    for record in records:
        if batch and size + len(record.data) > most_bytes:
            yield batch
            batch, size = [], 0
        batch.append(record)
        size += len(record.data)
    if batch:
        yield batch


def with_data(record: Record, data: bytes) -> Record:
    """Return a record with other data."""
    return Record(record.record_id, data, record.arrived_ms, record.metadata)


def concatenate(records: list[Record]) -> bytes:
    """Return the data of all records as one object's body."""
    return b"".join(record.data for record in records)
