"""Kinesis streams and DynamoDB's replication into them as they are, without any API around them.

Nothing here is locked: `KinesisSimulator` has one lock around the model.
"""

import base64
import hashlib
import random
import uuid
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import msgspec

from cdc_pipeline_tests.simulators.items import Item, identity, size_of
from cdc_pipeline_tests.simulators.streams_model import ACCOUNT, REGION, StreamsModel, Table

HASHES = 2**128
MINUTE = 60
_TTL_IDENTITY = {"type": "Service", "principalId": "dynamodb.amazonaws.com"}

Precision = Literal["MICROSECOND", "MILLISECOND"] | None
"""Of write times; None: milliseconds, and the envelope does not say so (as it once was)."""


@dataclass(slots=True)
class Delivery:
    """One record of a shard. `change` is None for one that no table's change made."""

    shard_id: str
    sequence_number: str
    arrived: float
    data: bytes
    change: "Change | None"
    wire: bytes


@dataclass(slots=True)
class Change:
    """One change of a table and where Kinesis has it.

    `written_us`: when it was made; `time_us`: the same as the envelope tells it, which in
    milliseconds is less. `order` counts all changes. `stream`: where it goes; None: no destination
    was active. `skipped`: DynamoDB could not replicate it.
    """

    table: str
    table_id: str
    stream: str | None
    event_id: str
    event_name: str
    written_us: int
    precision: Precision
    order: int
    keys: Item
    new_image: Item | None
    old_image: Item | None
    by_ttl: bool
    skipped: bool = False
    deliveries: list[Delivery] = field(default_factory=list)

    @property
    def time_us(self) -> int:
        return (
            self.written_us if self.precision == "MICROSECOND" else self.written_us // 1000 * 1000
        )


@dataclass(slots=True)
class KinesisShard:
    """A shard. `records` keeps trimmed ones, `trimmed` counts them; so indexes never move.

    It owns the hashes from `low` up to `high`, without it. `ends`: how many bytes of data
    `records` hold up to and including each. `asked`, `blocked_until`: for the limits of reading.
    """

    shard_id: str
    parents: tuple[str, ...]
    low: int
    high: int
    starting: int
    opened_at: float
    last_number: int
    ending: int | None = None
    closed_at: float = 0.0
    records: list[Delivery] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    trimmed: int = 0
    asked: list[float] = field(default_factory=list)
    blocked_until: float = 0.0

    @property
    def is_open(self) -> bool:
        return self.ending is None

    def append(self, number: int, record: Delivery) -> None:
        self.last_number = number
        self.records.append(record)
        self.numbers.append(number)
        self.ends.append((self.ends[-1] if self.ends else 0) + len(record.data))

    def trim(self, horizon: float) -> None:
        """Forget records that arrived at the horizon or before, for ever."""
        while self.trimmed < len(self.records) and self.records[self.trimmed].arrived <= horizon:
            self.trimmed += 1


class KinesisStream:
    """One stream: its shards, and which of them are open, by hash range."""

    def __init__(self, name: str, shards: int, model: "KinesisModel") -> None:
        self.name = name
        self.arn = model.kinesis_arn(name)
        self.created_at = model.clock()
        self.retention_hours = 24
        self.max_record_kib = 1024
        self.by_partition_key = True
        self.shards: dict[str, KinesisShard] = {}
        self._model = model
        self._open: list[KinesisShard] = []
        bounds = [HASHES * i // shards for i in range(shards + 1)]
        for low, high in pairwise(bounds):
            self._open_shard((), low, high)

    def open_shards(self) -> list[KinesisShard]:
        return list(self._open)

    @property
    def horizon(self) -> float:
        """What arrived then or before is gone."""
        return self._model.clock() - self.retention_hours * 3600

    def trim(self) -> None:
        for shard in self.shards.values():
            shard.trim(self.horizon)

    def is_listed(self, shard: KinesisShard) -> bool:
        return shard.is_open or shard.closed_at > self.horizon

    def listed(self) -> list[KinesisShard]:
        """The shards that ListShards knows of, by id."""
        return sorted(filter(self.is_listed, self.shards.values()), key=lambda s: s.shard_id)

    def owner(self, hash_key: int) -> KinesisShard:
        return self._open[bisect_right([s.low for s in self._open], hash_key) - 1]

    def split(self, shard: KinesisShard, at: int | None = None) -> list[KinesisShard]:
        """Close a shard; two get its range, the second from hash `at` on (None: the middle)."""
        at = (shard.low + shard.high) // 2 if at is None else at
        if not shard.low < at < shard.high:
            raise ValueError(f"{shard.shard_id} cannot be split at {at}")
        self._close(shard)
        parents = (shard.shard_id,)
        low, high = shard.low, shard.high
        return [self._open_shard(parents, low, at), self._open_shard(parents, at, high)]

    def merge(self, left: KinesisShard, right: KinesisShard) -> KinesisShard:
        """Close two neighbours; one gets both ranges."""
        if left.high != right.low:
            raise ValueError(f"{left.shard_id} and {right.shard_id} are no neighbours")
        self._close(left)
        self._close(right)
        return self._open_shard((left.shard_id, right.shard_id), left.low, right.high)

    def add(
        self, shard: KinesisShard, data: bytes, partition_key: str | None, change: Change | None
    ) -> Delivery:
        number = shard.last_number + self._model.step()
        arrived = self._model.clock()
        wire = {
            "SequenceNumber": str(number),
            "ApproximateArrivalTimestamp": round(arrived, 3),
            "Data": base64.b64encode(data).decode(),
            **({} if partition_key is None else {"PartitionKey": partition_key}),
        }
        encoded = msgspec.json.encode(wire)
        delivery = Delivery(shard.shard_id, str(number), arrived, data, change, encoded)
        shard.append(number, delivery)
        return delivery

    def _close(self, shard: KinesisShard) -> None:
        if not shard.is_open:
            raise ValueError(f"{shard.shard_id} is closed already")
        shard.last_number += self._model.step()
        shard.ending = shard.last_number
        shard.closed_at = self._model.clock()
        self._open.remove(shard)

    def _open_shard(self, parents: tuple[str, ...], low: int, high: int) -> KinesisShard:
        shard_id = f"shardId-{len(self.shards):012d}"
        start = self._model.next_start()
        now = self._model.clock()
        shard = KinesisShard(shard_id, parents, low, high, start, now, start)
        self.shards[shard_id] = shard
        self._open.append(shard)
        self._open.sort(key=lambda s: s.low)
        return shard


@dataclass
class Destination:
    """That a table's changes go to a stream, and how.

    `duplicates`, `late`: probabilities that a change is delivered twice, that others overtake it.
    `waiting`: changes to be delivered, or delivered again, later; `hold`: all wait. `skip`: how
    many of the next changes DynamoDB fails to replicate.
    """

    stream: str
    precision: Precision = "MICROSECOND"
    active: bool = True
    duplicates: float = 0.0
    late: float = 0.0
    waiting: list[Change] = field(default_factory=list)
    hold: bool = False
    skip: int = 0


class KinesisModel(StreamsModel):
    """The tables of one account, their DynamoDB Streams, and the Kinesis streams they feed."""

    def __init__(self, clock: Callable[[], float], seed: int = 0, *, exact_bounds: bool = True):
        super().__init__(clock, seed, exact_bounds=exact_bounds)
        # Of its own, so that DynamoDB Streams are the same with and without Kinesis.
        self.chance = random.Random(seed)
        self.kinesis: dict[str, KinesisStream] = {}
        self.destinations: dict[str, list[Destination]] = {}
        self.changes: dict[str, list[Change]] = {}
        self.failed: dict[str, dict[int, int]] = {}
        self._start = 49_590_338_271_490_256_608_559_692_538_361_571_095_921_575_989_136_588_898

    def kinesis_arn(self, stream: str) -> str:
        return f"arn:aws:kinesis:{REGION}:{ACCOUNT}:stream/{stream}"

    def next_start(self) -> int:
        """Where the next shard's numbers begin: each in a range of its own, later ones higher."""
        self._start += 22_300_745_198_530_623_141_535_718_272_648_361_505_980_416
        return self._start

    def destination(self, table: str) -> Destination | None:
        """Where a table's changes go now."""
        return next((d for d in self.destinations.get(table, []) if d.active), None)

    # ---------------------------------------------------------------------------------- writes

    def changed(
        self, table: Table, key: Item, old: Item | None, new: Item | None, by_ttl: bool
    ) -> None:
        found = self.changes.setdefault(table.name, [])
        target = self.destination(table.name)
        bits = self.chance.getrandbits(128)
        change = Change(
            table=table.name,
            table_id=table.table_id,
            stream=target.stream if target else None,
            event_id=str(uuid.UUID(int=bits, version=4)),
            event_name="REMOVE" if new is None else "MODIFY" if old else "INSERT",
            written_us=round(self.clock() * 1_000_000),
            precision=target.precision if target else None,
            order=len(found) + 1,
            keys=key,
            new_image=new,
            old_image=old,
            by_ttl=by_ttl,
        )
        found.append(change)
        if target is not None:
            self._replicate(target, change)

    def _replicate(self, target: Destination, change: Change) -> None:
        """Deliver a change, or let others overtake it."""
        if target.skip:
            target.skip -= 1
            self._fail(change)
        elif target.hold or self.chance.random() < target.late:
            target.waiting.append(change)
        else:
            self.deliver(change)
            if self.chance.random() < target.duplicates:
                target.waiting.append(change)
        if not target.hold and self.chance.random() < 0.5:
            self.release(target, self.chance.randrange(3))

    def release(self, target: Destination, most: int = 1 << 30, *, backwards: bool = False) -> None:
        """Deliver what waits, in any order, or the last first."""
        for _ in range(min(most, len(target.waiting))):
            last = len(target.waiting) - 1
            self.deliver(target.waiting.pop(last if backwards else self.chance.randint(0, last)))

    def deliver(self, change: Change, shard_id: str | None = None) -> Delivery | None:
        """Put a change into its stream, again if it is there; None if it is too large for it."""
        stream = self.kinesis[change.stream or ""]
        data = self.envelope(change)
        if len(data) > stream.max_record_kib * 1024:
            self._fail(change)
            return None
        key = partition_key(change.keys)
        hash_key = int(hashlib.md5(key.encode()).hexdigest(), 16)
        if shard_id is not None:
            shard = stream.shards[shard_id]
        elif stream.by_partition_key:
            shard = stream.owner(hash_key)
        else:
            shard = self.chance.choice(stream.open_shards())
        # Where they are ignored they may be missing.
        delivery = stream.add(shard, data, key if stream.by_partition_key else None, change)
        change.deliveries.append(delivery)
        return delivery

    def _fail(self, change: Change) -> None:
        if change.skipped:
            return
        change.skipped = True
        minutes = self.failed.setdefault(change.table, {})
        minute = int(self.clock()) // MINUTE * MINUTE
        minutes[minute] = minutes.get(minute, 0) + 1

    # -------------------------------------------------------------------------------- envelope

    def envelope(self, change: Change) -> bytes:
        """The record's data as DynamoDB writes it; the order of its fields differs every time."""
        unit_us = 1 if change.precision == "MICROSECOND" else 1000
        body: dict[str, Any] = {
            "ApproximateCreationDateTime": change.written_us // unit_us,
            "Keys": encoded_again(change.keys),
            "SizeBytes": sum(
                size_of(image or {}) for image in (change.keys, change.new_image, change.old_image)
            ),
        }
        if change.precision is not None:
            body["ApproximateCreationDateTimePrecision"] = change.precision
        if change.new_image is not None:
            body["NewImage"] = encoded_again(change.new_image)
        if change.old_image is not None:
            body["OldImage"] = encoded_again(change.old_image)
        whole = {
            "awsRegion": REGION,
            "eventID": change.event_id,
            "eventName": change.event_name,
            "userIdentity": _TTL_IDENTITY if change.by_ttl else None,
            "recordFormat": "application/json",
            "tableName": change.table,
            "dynamodb": self._shuffled(body),
            "eventSource": "aws:dynamodb",
        }
        return msgspec.json.encode(self._shuffled(whole))

    def _shuffled(self, fields: dict[str, Any]) -> dict[str, Any]:
        return dict(self.chance.sample(list(fields.items()), len(fields)))


def partition_key(keys: Item) -> str:
    """What DynamoDB gives Kinesis for an item, so that one item's changes share a shard."""
    return hashlib.md5(str(identity(keys)).encode()).hexdigest().upper()


def encoded_again(item: Mapping[str, Any]) -> dict[str, Any]:
    """An item whose binaries, base64 text already, are encoded once more."""
    return {name: _value_again(value) for name, value in item.items()}


def _value_again(value: Any) -> Any:
    if not isinstance(value, Mapping) or len(value) != 1:
        return value
    ((tag, content),) = value.items()
    if tag == "B":
        return {tag: _text_again(content)}
    if tag == "BS":
        return {tag: [_text_again(member) for member in content]}
    if tag == "M":
        return {tag: encoded_again(content)}
    if tag == "L":
        return {tag: [_value_again(inner) for inner in content]}
    return value


def _text_again(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
