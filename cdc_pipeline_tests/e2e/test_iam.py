"""Least privilege: every AWS call of the pipeline is allowed, and what no call needs is named.

The pipeline runs behind a proxy that records the actions of its requests. Policies come from the
same settings.
"""

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any

import pytest
from click.testing import CliRunner

from cdc_pipeline.aws.cloudwatch import channel_ages
from cdc_pipeline.capture.sources.kinesis_channel import ChannelFiles
from cdc_pipeline.capture.sources.source_choice import open_source
from cdc_pipeline.cli import main
from cdc_pipeline.core.errors import NotReadyError
from cdc_pipeline.core.plans.iam import Policy, Statement
from cdc_pipeline.defs.operations.notify import notify
from cdc_pipeline.erase.erase import erase_item
from cdc_pipeline.lake.glue_partitions import find_repairs, registered_days
from cdc_pipeline.lake.query.aggregates import build_aggregate
from cdc_pipeline.lake.upkeep.maintenance import maintain_table
from cdc_pipeline.lake.upkeep.status import table_status
from cdc_pipeline.reconcile.reconcile import reconcile_full, reconcile_sample
from cdc_pipeline.repair.heal import heal_all
from cdc_pipeline.sandbox.aws.control import control
from cdc_pipeline.sandbox.process import SandboxProcess
from cdc_pipeline.setup.permissions import Policies, build_policies
from cdc_pipeline.transform.aggregates import load_aggregates
from cdc_pipeline_tests.e2e.test_accounts import OTHER, ROLE, in_other_account, let_in
from cdc_pipeline_tests.e2e.world import World, make_world, quick_sandbox
from cdc_pipeline_tests.sandbox.clients import wait_for
from cdc_pipeline_tests.simulators.recorder import Observed, Recorder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

REGION = "us-east-1"
TOPIC = "arn:aws:sns:us-east-1:000000000001:alarms"
VICTIM = "victim-5e1f"
KEY = "arn:aws:kms:us-east-1:000000000001:key/k"

UNOBSERVED = {
    "s3:PutObjectAcl": "DynamoDB sets the owner of export files in the caller's name",
    "s3:AbortMultipartUpload": "DynamoDB, pyarrow and boto3 give up uploads that fail half way",
    "glue:CreateDatabase": "only where the database is not there yet",
    "glue:BatchUpdatePartition": "when the landing columns or the lake's place have changed",
    "glue:BatchGetTableOptimizer": "preflight asks which optimizers are active",
    "glue:DeletePartition": "when a folder of a day has become empty",
    "kms:Decrypt": "S3 and Kinesis use the key in the caller's name",
    "kms:GenerateDataKey": "S3 uses the key in the caller's name",
}
"""Allowed and perhaps not seen here, and why it is allowed."""


@pytest.fixture(scope="module")
def quick() -> Iterator[SandboxProcess]:
    with quick_sandbox() as process:
        yield process


@pytest.fixture(scope="module")
def driven(
    quick: SandboxProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[set[Observed], Policies]]:
    """What a lake of five tables called in all that it does, and the policies for it."""
    direct = make_world(quick, tmp_path_factory.mktemp("iam"), "s3")
    with pytest.MonkeyPatch.context() as patch, Recorder(quick.endpoint_url) as recorder:
        patch.setattr("cdc_pipeline.repair.incremental_export.WAIT_SECONDS", 0.2)
        _make_sources(direct)
        world = World(recorder.endpoint_url, "s3", direct.folder, direct.account)
        world.activate(patch)
        topic = TOPIC.replace("000000000001", world.account)
        world.configure(
            "orders",
            {"name": "people", "transport": "kinesis", "kinesis": {"late_seconds": 0}},
            {"name": "orders", "alias": "away", "role_arn": ROLE},
            {
                "name": "landed",
                "transport": "firehose",
                "firehose": {"prefixes": [f"s3://{world.bucket}/raw/"], "lag_minutes": 0},
            },
            {
                "name": "delivered",
                "transport": "kinesis_channel",
                "kinesis": {"late_seconds": 0, "metric_minutes": 0},
                # Measured, an idle stream is behind for a quarter of an hour.
                "kinesis_channel": {"lag_minutes": 0, "measured": False},
            },
            export={"bucket": world.bucket, "poll_seconds": 0.05, "least_window_minutes": 0.0001},
            alarms={"sns_topic": topic},
        )
        lake = world.lake()
        found = build_policies(lake, lake.settings.tables, keys=[KEY])
        recorder.observed.clear()
        _drive(world, direct)
        yield set(recorder.observed), found


def _make_sources(world: World) -> None:
    world.client("s3").put_bucket_versioning(
        Bucket=world.bucket, VersioningConfiguration={"Status": "Enabled"}
    )
    world.client("sns").create_topic(Name="alarms")
    let_in(world)
    away = in_other_account(world, REGION)
    names = ("orders", "people", "landed", "delivered")
    for place, name in (*((world, name) for name in names), (away, "orders")):
        place.make_table(name)
        place.put(name, "a")
    kinesis = world.client("kinesis")
    _open_channel(world, kinesis)
    kinesis.create_stream(StreamName="people-changes", ShardCount=1)
    kinesis.get_waiter("stream_exists").wait(
        StreamName="people-changes", WaiterConfig={"Delay": 1, "MaxAttempts": 30}
    )
    summary = kinesis.describe_stream_summary(StreamName="people-changes")
    world.dynamodb.enable_kinesis_streaming_destination(
        TableName="people", StreamArn=summary["StreamDescriptionSummary"]["StreamARN"]
    )


def _open_channel(world: World, kinesis: Any) -> None:
    """A channel of what is written to the table `delivered`, which gives one record up."""
    on_demand = {"StreamMode": "ON_DEMAND"}
    kinesis.create_stream(StreamName="delivered-changes", StreamModeDetails=on_demand)
    summary = kinesis.describe_stream_summary(StreamName="delivered-changes")
    arn = summary["StreamDescriptionSummary"]["StreamARN"]
    world.dynamodb.enable_kinesis_streaming_destination(TableName="delivered", StreamArn=arn)
    kinesis.create_channel(
        ChannelName="delivered",
        ServiceExecutionRoleARN=f"arn:aws:iam::{world.account}:role/channel",
        StreamConfigurationList=[
            {"StreamARN": arn, "RecordConfiguration": {"RecordFormatType": "JSON"}}
        ],
        S3DestinationConfiguration={
            "StorageConfiguration": {
                "BucketARN": f"arn:aws:s3:::{world.bucket}",
                "ExpectedBucketOwner": world.account,
                "CompressionType": "NONE",
            }
        },
    )
    control(world.endpoint_url, channel_dead_letters=1)
    world.put("delivered", "given up")
    letters = "kinesis-channel/errors/delivered/"
    s3 = world.client("s3")
    wait_for(lambda: "Contents" in s3.list_objects_v2(Bucket=world.bucket, Prefix=letters))


def _drive(world: World, direct: World) -> None:
    """All that the pipeline does with its tables, once."""
    lake = world.lake()
    direct.client("s3").put_object(
        Bucket=direct.bucket, Key=f"raw/{datetime.now(UTC):%Y/%m/%d}/a", Body=b'{"not": "a change"}'
    )
    assert world.capture("landed").quarantined == 1
    for table in lake.settings.tables:
        if table.transport == "firehose":
            continue
        world.bootstrap(table.label)
        world.build_cdc(table.label)
        table_status(lake.table(table))
        find_repairs(lake.table(table))
        registered_days(lake.table(table))
    for aggregate in load_aggregates(lake.settings.aggregates_folder):
        with suppress(Exception):  # they are about other columns; what they read is the point
            build_aggregate(lake, aggregate)
    losses = open_source(lake.table(world.table("people"))).losses
    assert losses is not None  # it is on Kinesis; capture asks first after five minutes
    losses.count(time.time_ns() // 1000 - 600_000_000, time.time_ns() // 1000)
    files = open_source(lake.table(world.table("delivered"))).files
    assert isinstance(files, ChannelFiles)
    now_us = time.time_ns() // 1000
    channel_ages(lake.aws, files.dimensions(), now_us - 600_000_000, now_us)
    orders = world.table("orders")
    reconcile_sample(lake.table(orders), 10)
    reconcile_full(lake.table(orders))
    _heal(world, direct)
    maintain_table(lake.table(orders))
    _erase(world, direct)
    notify(lake, "a subject", ["a line"], lambda _: None)
    world.rows("SELECT * FROM orders.history", "orders")


def _heal(world: World, direct: World) -> None:
    for on in (False, True):
        view = {"StreamViewType": "NEW_AND_OLD_IMAGES"} if on else {}
        direct.dynamodb.update_table(
            TableName="orders", StreamSpecification={"StreamEnabled": on, **view}
        )
        direct.put("orders", f"lost {on}")
        time.sleep(1.1)
    lake, orders = world.lake(), world.table("orders")
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        world.capture("orders")
        with suppress(NotReadyError):
            list(heal_all(lake.table(orders)))
            break
        time.sleep(0.2)
    world.publish("orders")


def _erase(world: World, direct: World) -> None:
    direct.put("orders", VICTIM)
    world.capture("orders")
    direct.delete("orders", VICTIM)
    time.sleep(1.1)
    world.capture("orders")
    erase_item(world.table_lake("orders"), json.dumps({"pk": VICTIM, "sk": 1}))


def _arns(observed: Observed, account: str, roles: set[str]) -> list[str]:
    """What an observed action may be about, as ARNs; nothing where its request does not tell."""
    action, what = observed
    service = action.partition(":")[0]
    if not what or what.startswith("arn:"):
        return [what] if what else []
    accounts = [account, *(role.split(":")[4] for role in roles)]
    if service == "s3":
        return [f"arn:aws:s3:::{what}"]
    if service == "dynamodb":
        return [f"arn:aws:dynamodb:{REGION}:{owner}:table/{what}" for owner in accounts]
    if service == "glue":
        kind = "table" if "/" in what else "database"
        return [f"arn:aws:glue:{REGION}:{account}:{kind}/{what}"]
    return [f"arn:aws:{service}:{REGION}:{account}:{what}"]


def _allows(statements: list[Statement], action: str, arns: list[str]) -> bool:
    resources = [r for s in statements if action in s["Action"] for r in s["Resource"]]
    if not arns:
        return bool(resources)
    return any(fnmatchcase(arn, pattern) for arn in arns for pattern in resources)


def _statements(found: Policies) -> list[Statement]:
    documents: list[Policy] = [found.pipeline, found.erase]
    documents += [policy for policy, _ in found.roles.values()]
    return [statement for document in documents for statement in document["Statement"]]


def test_every_call_is_allowed(driven: tuple[set[Observed], Policies]) -> None:
    observed, found = driven
    assert len({action for action, _ in observed}) > 25, "the pipeline was driven"
    account = found.pipeline["Statement"][0]["Resource"][0].split(":")[4]
    statements, roles = _statements(found), set(found.roles)
    refused = [
        one
        for one in sorted(observed)
        if not _allows(statements, one[0], _arns(one, account, roles))
    ]
    assert refused == []


def test_every_allowed_action_is_used_or_has_its_reason(
    driven: tuple[set[Observed], Policies],
) -> None:
    observed, found = driven
    allowed = {action for s in _statements(found) for action in s["Action"]}
    unseen = allowed - {action for action, _ in observed}
    assert unseen - UNOBSERVED.keys() == set()
    assert UNOBSERVED.keys() - allowed == set(), "reasons for what is not allowed any more"


def test_nothing_is_allowed_everywhere(driven: tuple[set[Observed], Policies]) -> None:
    _, found = driven
    for statement in _statements(found):
        assert not any("*" in action for action in statement["Action"])
        if statement["Action"] != ["cloudwatch:GetMetricStatistics"]:  # it knows no resources
            assert "*" not in statement["Resource"]
    kinesis = next(s for s in found.pipeline["Statement"] if s["Sid"] == "Kinesis")
    assert [r.rpartition("/")[2] for r in kinesis["Resource"]] == ["people-changes"]


def test_the_role_of_another_account(driven: tuple[set[Observed], Policies]) -> None:
    _, found = driven
    ((arn, (policy, trust)),) = found.roles.items()
    assert arn == ROLE
    tables = {r for s in policy["Statement"] for r in s["Resource"] if ":dynamodb:" in r}
    assert {r.split(":")[4] for r in tables} == {OTHER}
    assert trust["Statement"][0]["Action"] == "sts:AssumeRole"
    assert found.export_bucket is not None
    (allowed,) = found.export_bucket["Statement"]
    assert allowed["Principal"] == {"AWS": [ROLE]}
    exported = [s for s in policy["Statement"] if s["Sid"] == "ExportFiles"]
    for resource in exported[0]["Resource"]:
        assert any(fnmatchcase(resource, pattern) for pattern in allowed["Resource"])


def test_the_command_prints_documents(
    quick: SandboxProcess, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(quick, tmp_path, "s3")
    world.activate(monkeypatch)
    world.configure("orders", "customers")

    def run(*arguments: str) -> Any:
        ended = CliRunner().invoke(main, ["iam-policy", *arguments])
        assert ended.exit_code == 0, ended.output
        return json.loads(ended.output)

    whole, narrow = run(), run("--table", "orders", "--document", "pipeline")
    assert whole["export_bucket"] is None
    assert whole["pipeline"]["Version"] == narrow["Version"] == "2012-10-17"
    assert "customers" in json.dumps(whole["pipeline"])
    assert "customers" not in json.dumps(narrow)
    ended = CliRunner().invoke(main, ["iam-policy", "--document", "export-bucket"])
    assert ended.exit_code == 1
    assert "none of these tables is in another account" in ended.output
