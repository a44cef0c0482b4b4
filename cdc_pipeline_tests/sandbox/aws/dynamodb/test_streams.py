"""Stream records: TTL deletes, sizes, times, and that nothing changes them afterwards."""

import itertools
import time
from collections.abc import Callable
from typing import Any

import pytest

from cdc_pipeline_tests.sandbox.clients import Aws, key, read_stream, wait_for

pytestmark = pytest.mark.slow


def _expire_by(aws: Aws, table: str, attribute: str) -> None:
    aws.dynamodb.update_time_to_live(
        TableName=table,
        TimeToLiveSpecification={"Enabled": True, "AttributeName": attribute},
    )


def test_ttl_deletes_are_removes_by_the_service(aws: Aws, make_table: Callable[..., str]) -> None:
    table = make_table()
    past = str(int(time.time()) - 100)
    # Present before TTL is turned on, as well as after.
    early = {**key("early"), "gone_at": {"N": past}, "v": {"S": "x"}}
    aws.dynamodb.put_item(TableName=table, Item=early)
    _expire_by(aws, table, "gone_at")
    soon = {**key("soon"), "gone_at": {"N": str(int(time.time()) + 1)}}
    kept = [
        {**key("text"), "gone_at": {"S": past}},
        {**key("later"), "gone_at": {"N": str(int(time.time()) + 3600)}},
        {**key("milliseconds"), "gone_at": {"N": str(int(time.time() * 1000))}},
        {**key("ancient"), "gone_at": {"N": str(int(time.time()) - 6 * 365 * 86400)}},
        {**key("other"), "expires_at": {"N": past}},
        {**key("moved"), "gone_at": {"N": str(int(time.time()) + 1)}},
    ]
    for item in [soon, *kept]:
        aws.dynamodb.put_item(TableName=table, Item=item)
    kept[-1] = {**key("moved"), "gone_at": {"N": str(int(time.time()) + 3600)}}
    aws.dynamodb.put_item(TableName=table, Item=kept[-1])

    def removed() -> list[dict[str, Any]]:
        found = [r for r in read_stream(aws, table) if r["eventName"] == "REMOVE"]
        return found if len(found) >= 2 else []

    records = wait_for(removed)
    time.sleep(0.5)
    assert [record["dynamodb"]["OldImage"] for record in removed()] == [early, soon]
    for record in records:
        assert record["userIdentity"] == {
            "PrincipalId": "dynamodb.amazonaws.com",
            "Type": "Service",
        }
        assert "NewImage" not in record["dynamodb"]
    left = aws.dynamodb.scan(TableName=table)["Items"]
    assert sorted(i["pk"]["S"] for i in left) == sorted(i["pk"]["S"] for i in kept)
    aws.dynamodb.delete_item(TableName=table, Key=key("text"))
    assert "userIdentity" not in read_stream(aws, table)[-1]


def test_size_is_that_of_keys_and_images(aws: Aws, make_table: Callable[..., str]) -> None:
    table = make_table()
    # Names are counted as UTF-8. N: 1 + a byte per two digits, and 1 if negative; L and M: 3 and
    # 1 per element; BOOL and NULL: 1.
    keys = 2 + 3 + 2 + 2
    first = {
        **key("abc", 12),
        "é": {"S": "ö"},
        "n": {"N": "-12345"},
        "b": {"B": b"12345"},
        "t": {"BOOL": True},
        "z": {"NULL": True},
        "l": {"L": [{"S": "xy"}]},
        "m": {"M": {"k": {"N": "7"}}},
        "ss": {"SS": ["a", "bc"]},
    }
    item = keys + (2 + 2) + (1 + 5) + (1 + 5) + (1 + 1) + (1 + 1)
    item += (1 + 3 + 1 + 2) + (1 + 3 + 1 + 1 + 2) + (2 + 3)
    aws.dynamodb.put_item(TableName=table, Item=first)
    aws.dynamodb.put_item(TableName=table, Item={**key("abc", 12), "v": {"S": "four"}})
    aws.dynamodb.delete_item(TableName=table, Key=key("abc", 12))
    sizes = [record["dynamodb"]["SizeBytes"] for record in read_stream(aws, table)]
    second = keys + 5
    assert sizes == [keys + item, keys + item + second, keys + second]


def test_creation_times_are_whole_seconds(aws: Aws, make_table: Callable[..., str]) -> None:
    table = make_table()
    before = int(time.time())
    aws.dynamodb.put_item(TableName=table, Item=key("a"))
    (record,) = read_stream(aws, table)
    moment = record["dynamodb"]["ApproximateCreationDateTime"]
    assert moment.microsecond == 0
    assert before <= moment.timestamp() <= time.time()


def test_records_do_not_change_after_later_updates(
    aws: Aws, make_table: Callable[..., str]
) -> None:
    table = make_table()
    aws.dynamodb.put_item(
        TableName=table,
        Item={
            **key("a"),
            "m": {"M": {"in": {"L": [{"N": "1"}]}}},
            "s": {"SS": ["x"]},
        },
    )
    snapshots = [read_stream(aws, table)]
    expressions: list[tuple[str, dict[str, Any]]] = [
        ("SET m.#in[0] = :v", {":v": {"N": "2"}}),
        ("SET m.#in[1] = :v", {":v": {"L": [{"S": "deep"}]}}),
        ("SET m.#in[1][0] = :v, copied = m.#in", {":v": {"S": "deeper"}}),
        ("REMOVE m.#in[0]", {}),
        ("ADD s :v", {":v": {"SS": ["y"]}}),
        ("DELETE s :v", {":v": {"SS": ["x"]}}),
        ("SET p = :v, q = :v", {":v": {"L": [{"N": "1"}]}}),
        ("SET p[0] = :v", {":v": {"N": "9"}}),
    ]
    for expression, values in expressions:
        more = {"ExpressionAttributeValues": values} if values else {}
        names = {"ExpressionAttributeNames": {"#in": "in"}} if "#in" in expression else {}
        aws.dynamodb.update_item(
            TableName=table, Key=key("a"), UpdateExpression=expression, **more, **names
        )
        snapshots.append(read_stream(aws, table))
    aws.dynamodb.update_item(
        TableName=table,
        Key=key("a"),
        AttributeUpdates={"s": {"Action": "ADD", "Value": {"SS": ["z"]}}},
    )
    last = read_stream(aws, table)
    assert len(last) == len(expressions) + 2
    for count, snapshot in enumerate(snapshots, start=1):
        assert snapshot == last[:count]
    for before, after in itertools.pairwise(last):
        assert after["dynamodb"]["OldImage"] == before["dynamodb"]["NewImage"]
    # One value for two attributes stays two values.
    assert last[-1]["dynamodb"]["NewImage"]["q"] == {"L": [{"N": "1"}]}
    assert last[-1]["dynamodb"]["NewImage"]["p"] == {"L": [{"N": "9"}]}


def test_partiql_writes_reach_the_stream(aws: Aws, make_table: Callable[..., str]) -> None:
    table = make_table()
    run, where = aws.dynamodb.execute_statement, "WHERE pk = 'a' AND sk = 1"
    run(Statement=f"INSERT INTO \"{table}\" VALUE {{'pk': 'a', 'sk': 1, 'v': 'x'}}")
    run(Statement=f"UPDATE \"{table}\" SET v = 'y' {where}")
    run(Statement=f"UPDATE \"{table}\" SET v = 'y' {where}")
    run(Statement=f'DELETE FROM "{table}" {where}')
    aws.dynamodb.execute_transaction(
        TransactStatements=[
            {"Statement": f"INSERT INTO \"{table}\" VALUE {{'pk': 'b', 'sk': {n}}}"} for n in (1, 2)
        ]
    )
    records = [
        (r["eventName"], r["dynamodb"].get("OldImage"), r["dynamodb"].get("NewImage"))
        for r in read_stream(aws, table)
    ]
    x, y = ({**key("a"), "v": {"S": value}} for value in "xy")
    assert records == [
        ("INSERT", None, x),
        ("MODIFY", x, y),
        ("REMOVE", y, None),
        ("INSERT", None, key("b", 1)),
        ("INSERT", None, key("b", 2)),
    ]


def test_arithmetic_keeps_38_digits(aws: Aws, make_table: Callable[..., str]) -> None:
    table = make_table()
    big = "12345678901234567890123456789012345678"
    aws.dynamodb.put_item(TableName=table, Item={**key("a"), "n": {"N": big}, "m": {"N": big}})
    found = aws.dynamodb.update_item(
        TableName=table,
        Key=key("a"),
        UpdateExpression="SET n = n + :one ADD m :one",
        ExpressionAttributeValues={":one": {"N": "1"}},
        ReturnValues="ALL_NEW",
    )["Attributes"]
    assert found["n"] == found["m"] == {"N": str(int(big) + 1)}
