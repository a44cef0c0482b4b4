"""What is under contract, behind one interface: our simulator, our sandbox, DynamoDBs of others."""

import itertools
import time
from collections.abc import Callable
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

from cdc_pipeline_tests.simulators.clock import SimulatedClock
from cdc_pipeline_tests.simulators.items import Item, identity, key_of
from cdc_pipeline_tests.simulators.streams_server import StreamsSimulator

SIMULATOR, SANDBOX = "simulator", "sandbox"
DYNOXIDE, MOTO, DYNALITE = "dynoxide", "moto", "dynalite"
WITH_STREAMS = (SIMULATOR, SANDBOX, DYNOXIDE, MOTO)
TAKING_WRITES = (SANDBOX, DYNOXIDE, MOTO, DYNALITE)
"""Those with writes over HTTP: not the simulator."""
WITH_BOTH = tuple(name for name in WITH_STREAMS if name in TAKING_WRITES)
KEY_NAMES = ("pk", "sk")
BOTH_IMAGES = "NEW_AND_OLD_IMAGES"
_KEY_TYPES = {"pk": "S", "sk": "N"}
_READ_SECONDS = 60
_EMPTY_PAGES = 3
_numbers = itertools.count(1)


def _new_name() -> str:
    # dynoxide's shard ids are made of it, and botocore refuses those below 28 letters.
    return f"contract-table-{next(_numbers)}"


class Backend:
    """DynamoDB and its streams over HTTP. Tables have the keys `pk` (S) and `sk` (N)."""

    def __init__(self, name: str, endpoint_url: str) -> None:
        self.name = name
        self.endpoint_url = endpoint_url
        self.dynamodb = self._client("dynamodb")
        self.streams = self._client("dynamodbstreams")

    def clock(self) -> float:
        """Seconds since the epoch, as this backend's writes have them."""
        return time.time()

    def sleep(self, seconds: float) -> None:
        """Let time go by, where that is needed."""
        time.sleep(seconds)

    def create_table(self, view: str = BOTH_IMAGES, name: str | None = None) -> str:
        """A new table with a stream; its name."""
        return self._create_table(
            name, StreamSpecification={"StreamEnabled": True, "StreamViewType": view}
        )

    def create_table_without_stream(self) -> str:
        """A new table; its name."""
        return self._create_table(None)

    def _create_table(self, name: str | None, **settings: Any) -> str:
        name = name or _new_name()
        self.dynamodb.create_table(
            TableName=name,
            KeySchema=[
                {"AttributeName": key, "KeyType": kind}
                for key, kind in zip(KEY_NAMES, ("HASH", "RANGE"), strict=True)
            ],
            AttributeDefinitions=[
                {"AttributeName": key, "AttributeType": kind} for key, kind in _KEY_TYPES.items()
            ],
            BillingMode="PAY_PER_REQUEST",
            **settings,
        )
        self.dynamodb.get_waiter("table_exists").wait(
            TableName=name, WaiterConfig={"Delay": 1, "MaxAttempts": _READ_SECONDS}
        )
        return name

    def delete_table(self, name: str) -> None:
        self.dynamodb.delete_table(TableName=name)

    def disable_stream(self, name: str) -> None:
        self._update_stream(name, {"StreamEnabled": False})

    def enable_stream(self, name: str, view: str = BOTH_IMAGES) -> None:
        self._update_stream(name, {"StreamEnabled": True, "StreamViewType": view})

    def put(self, table: str, item: Item) -> None:
        self.dynamodb.put_item(TableName=table, Item=item)

    def update(self, table: str, key: Item, **attributes: Any) -> None:
        """UpdateItem that sets attributes; it makes the item if there is none."""
        names = list(attributes)
        sets = ", ".join(f"#{i} = :{i}" for i in range(len(names)))
        self.dynamodb.update_item(
            TableName=table,
            Key=key,
            UpdateExpression=f"SET {sets}",
            ExpressionAttributeNames={f"#{i}": name for i, name in enumerate(names)},
            ExpressionAttributeValues={f":{i}": attributes[n] for i, n in enumerate(names)},
        )

    def delete(self, table: str, key: Item) -> None:
        self.dynamodb.delete_item(TableName=table, Key=key)

    def get(self, table: str, key: Item) -> Item | None:
        found = self.dynamodb.get_item(TableName=table, Key=key, ConsistentRead=True)
        return found.get("Item")

    def describe(self, table: str) -> dict[str, Any]:
        return self.dynamodb.describe_table(TableName=table)["Table"]

    def arn(self, table: str) -> str:
        """The ARN of the table's latest stream."""
        return self.describe(table)["LatestStreamArn"]

    def describe_stream(self, arn: str) -> dict[str, Any]:
        """The description of a stream with its shards of all pages."""
        shards: list[dict[str, Any]] = []
        start: dict[str, str] = {}
        while True:
            found = self.streams.describe_stream(StreamArn=arn, **start)["StreamDescription"]
            shards += found["Shards"]
            if not found.get("LastEvaluatedShardId"):
                return found | {"Shards": shards}
            start = {"ExclusiveStartShardId": found["LastEvaluatedShardId"]}

    def shard_ids(self, arn: str) -> list[str]:
        return [shard["ShardId"] for shard in self.describe_stream(arn)["Shards"]]

    def iterator(self, arn: str, shard: str, kind: str, number: str | None = None) -> str:
        place = {} if number is None else {"SequenceNumber": number}
        return self.streams.get_shard_iterator(
            StreamArn=arn, ShardId=shard, ShardIteratorType=kind, **place
        )["ShardIterator"]

    def scan(self, table: str) -> list[Item]:
        pages = self.dynamodb.get_paginator("scan").paginate(TableName=table, ConsistentRead=True)
        return [item for page in pages for item in page["Items"]]

    def _update_stream(self, name: str, specification: dict[str, Any]) -> None:
        self.dynamodb.update_table(TableName=name, StreamSpecification=specification)

    def _client(self, service: str) -> Any:
        session = boto3.Session("sandbox", "sandbox", region_name="us-east-1")
        return session.client(
            service,  # type: ignore[call-overload]
            endpoint_url=self.endpoint_url,
            # An error 500 that some answer with is looked at, not tried again.
            config=Config(
                proxies={}, account_id_endpoint_mode="disabled", retries={"total_max_attempts": 1}
            ),
        )


class Simulated(Backend):
    """The simulator reads over HTTP like any other; it is written to by calls."""

    def __init__(self, simulator: StreamsSimulator, clock: SimulatedClock) -> None:
        super().__init__(SIMULATOR, simulator.endpoint_url)
        self._simulator = simulator
        self._clock = clock

    def clock(self) -> float:
        return self._clock()

    def sleep(self, seconds: float) -> None:
        self._clock.advance(max(1.0, seconds))

    def create_table(self, view: str = BOTH_IMAGES, name: str | None = None) -> str:
        name = name or _new_name()
        self._simulator.create_table(name, key=KEY_NAMES, view_type=view, shards=3)
        return name

    def delete_table(self, name: str) -> None:
        self._simulator.delete_table(name)

    def disable_stream(self, name: str) -> None:
        self._simulator.disable_stream(name)

    def enable_stream(self, name: str, view: str = BOTH_IMAGES) -> None:
        self._simulator.enable_stream(name, view_type=view, shards=3)

    def put(self, table: str, item: Item) -> None:
        self._simulator.put(table, item)

    def update(self, table: str, key: Item, **attributes: Any) -> None:
        place = identity(key_of(key, KEY_NAMES))
        items = self._simulator.items(table)
        old = next((i for i in items if identity(key_of(i, KEY_NAMES)) == place), key)
        self._simulator.put(table, {**old, **attributes})

    def delete(self, table: str, key: Item) -> None:
        self._simulator.delete(table, key)


def key(pk: str, sk: int | str = 1) -> Item:
    return {"pk": {"S": pk}, "sk": {"N": str(sk)}}


def read_shard(backend: Backend, iterator: str | None) -> list[dict[str, Any]]:
    """The records from an iterator to the end, or to a few empty pages in a row."""
    records: list[dict[str, Any]] = []
    empty = 0
    while iterator and empty < _EMPTY_PAGES:
        page = backend.streams.get_records(ShardIterator=iterator)
        records += page["Records"]
        empty = 0 if page["Records"] else empty + 1
        iterator = page.get("NextShardIterator")
    return records


def read_stream(backend: Backend, arn: str, count: int) -> list[dict[str, Any]]:
    """All records of a stream, shard by shard, once there are at least `count`."""
    deadline = time.monotonic() + _READ_SECONDS
    while True:
        records = [
            record
            for shard in backend.shard_ids(arn)
            for record in read_shard(backend, backend.iterator(arn, shard, "TRIM_HORIZON"))
        ]
        if len(records) >= count or time.monotonic() > deadline:
            return records
        time.sleep(0.1)


def error_code(call: Callable[..., Any], **arguments: Any) -> str:
    """The code of the error that a call ends with, '' if it succeeds."""
    try:
        call(**arguments)
    except ClientError as error:
        return error.response["Error"]["Code"]
    return ""
