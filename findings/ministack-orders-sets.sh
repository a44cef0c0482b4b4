#!/usr/bin/env bash
# ministack 1.5.33: a put that lists the members of a set in another order is recorded in the stream as a change.
#
# Guess: it leaves out the record of a put that changes nothing, as DynamoDB does, and spelling 1.0 for 1 is nothing;
# so is the order of a set, which DynamoDB does not keep (developer guide, "Supported data types and naming rules").
# Seen: no record for the same item again, none for 1.0, but a MODIFY for ["y", "x"] after ["x", "y"].
#
# Output: same: ['INSERT'] / 1.0 for 1: ['INSERT'] / set in another order: ['INSERT', 'MODIFY']
#
# Needs Python 3.11. Exits 1 if any of the three changes.
set -euo pipefail
work=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server" 2>/dev/null || true; rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    'ministack==1.5.33' 'hypercorn==0.18.0' 'boto3==1.43.106' 'botocore==1.43.106'
port=$("$work/venv/bin/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
cd "$work"
BIND_HOST=127.0.0.1 GATEWAY_PORT="$port" IOT_MTLS_ENABLED=0 SFTP_ENABLED=0 LOG_LEVEL=WARNING PERSIST_STATE=0 \
    DOCKER_HOST=unix:///nonexistent/docker.sock "$work/venv/bin/python" -m ministack >"$work/log" 2>&1 &
server=$!

"$work/venv/bin/python" - "$port" <<'PYTHON'
import sys
import time

import boto3
from botocore.config import Config
from botocore.exceptions import EndpointConnectionError

session = boto3.Session("key", "secret", region_name="us-east-1")
config = Config(proxies={}, account_id_endpoint_mode="disabled", retries={"total_max_attempts": 1})
url = f"http://127.0.0.1:{sys.argv[1]}"
dynamodb, streams = (
    session.client(name, endpoint_url=url, config=config) for name in ("dynamodb", "dynamodbstreams")
)
for _ in range(300):
    try:
        dynamodb.list_tables()
        break
    except EndpointConnectionError:
        time.sleep(0.1)
ITEM = {"pk": {"S": "a"}, "n": {"N": "1"}, "set": {"SS": ["x", "y"]}}


def events(table, again):
    dynamodb.create_table(
        TableName=table,
        KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "pk", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
        StreamSpecification={"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"},
    )
    dynamodb.put_item(TableName=table, Item=ITEM)
    dynamodb.put_item(TableName=table, Item={**ITEM, **again})
    arn = dynamodb.describe_table(TableName=table)["Table"]["LatestStreamArn"]
    (shard,) = streams.describe_stream(StreamArn=arn)["StreamDescription"]["Shards"]
    iterator = streams.get_shard_iterator(
        StreamArn=arn, ShardId=shard["ShardId"], ShardIteratorType="TRIM_HORIZON"
    )["ShardIterator"]
    return [r["eventName"] for r in streams.get_records(ShardIterator=iterator)["Records"]]


same = events("same", {})
number = events("number", {"n": {"N": "1.0"}})
order = events("order", {"set": {"SS": ["y", "x"]}})
print("same:", same, "/ 1.0 for 1:", number, "/ set in another order:", order)
sys.exit(0 if (same, number, order) == (["INSERT"], ["INSERT"], ["INSERT", "MODIFY"]) else 1)
PYTHON
