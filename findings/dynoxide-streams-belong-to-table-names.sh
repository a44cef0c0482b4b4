#!/usr/bin/env bash
# dynoxide-rs 3.2.0 (its program prints 1.5.0): stream records belong to a table's name, not to a stream.
#
# Guess: as in DynamoDB a stream that is turned off stays readable for 24 hours, the stream of a table that was
# deleted and created again starts empty, and an ARN that was never given out is not found.
# Seen: a stream that is off is a ResourceNotFoundException; the new table's stream, under an ARN of its own, begins
# with the records of the deleted table; a made-up ARN of the table is described like the real one. A reader that
# trusts the ARN applies changes of items that never were in the new table.
#
# Output: off: ResourceNotFoundException / made again: ['old', 'old', 'new'] / made-up ARN: ENABLED
#
# Needs cargo (Rust 1.88) and Python 3; takes two minutes, for the build. Exits 1 if any of the three changes.
set -euo pipefail
work=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server" 2>/dev/null || true; rm -rf "$work"' EXIT

CARGO_PROFILE_DEV_DEBUG=0 cargo install dynoxide-rs --version '=3.2.0' --locked --debug --jobs 2 --quiet \
    --no-default-features --features native-sqlite,http-server,cli --root "$work"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check 'boto3==1.43.106' 'botocore==1.43.106'
port=$("$work/venv/bin/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$work/bin/dynoxide" serve --host 127.0.0.1 --port "$port" --log quiet &
server=$!

"$work/venv/bin/python" - "$port" <<'PYTHON'
import sys
import time

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError, EndpointConnectionError

session = boto3.Session("key", "secret", region_name="us-east-1")
config = Config(proxies={}, account_id_endpoint_mode="disabled")
url = f"http://127.0.0.1:{sys.argv[1]}"
dynamodb, streams = (
    session.client(name, endpoint_url=url, config=config) for name in ("dynamodb", "dynamodbstreams")
)
TABLE = "a-table-with-a-name-of-some-length"
ON = {"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"}
for _ in range(50):
    try:
        dynamodb.list_tables()
        break
    except EndpointConnectionError:
        time.sleep(0.1)


def create():
    dynamodb.create_table(
        TableName=TABLE,
        KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "pk", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
        StreamSpecification=ON,
    )
    return dynamodb.describe_table(TableName=TABLE)["Table"]["LatestStreamArn"]


def put(pk):
    dynamodb.put_item(TableName=TABLE, Item={"pk": {"S": pk}, "at": {"N": str(time.time_ns())}})


def read(arn):
    (shard,) = streams.describe_stream(StreamArn=arn)["StreamDescription"]["Shards"]
    iterator = streams.get_shard_iterator(
        StreamArn=arn, ShardId=shard["ShardId"], ShardIteratorType="TRIM_HORIZON"
    )["ShardIterator"]
    records = streams.get_records(ShardIterator=iterator)["Records"]
    return [record["dynamodb"]["Keys"]["pk"]["S"] for record in records]


first = create()
put("old")
put("old")
made_up = f"{first.rpartition('/')[0]}/1999-01-01T00:00:00.000"
described = streams.describe_stream(StreamArn=made_up)["StreamDescription"]["StreamStatus"]
dynamodb.update_table(TableName=TABLE, StreamSpecification={"StreamEnabled": False})
try:
    streams.describe_stream(StreamArn=first)
    off = "described"
except ClientError as error:
    off = error.response["Error"]["Code"]
dynamodb.delete_table(TableName=TABLE)
second = create()
assert second != first
put("new")
again = read(second)
print("off:", off, "/ made again:", again, "/ made-up ARN:", described)
seen = off == "ResourceNotFoundException" and again == ["old", "old", "new"] and described == "ENABLED"
sys.exit(0 if seen else 1)
PYTHON
