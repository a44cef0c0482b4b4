"""Preflight on the sandbox: what is wrong is red with its exact fix, and the fixes help."""

import json
import shlex
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cdc_pipeline.capture.shards.shard_reader import polls_needed
from cdc_pipeline.cli import main
from cdc_pipeline.core.plans.prices import stream_reads_usd
from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.sandbox.process import SandboxProcess
from cdc_pipeline.settings.load import load_settings
from cdc_pipeline.setup.checks.findings import Finding
from cdc_pipeline.setup.checks.report import PreflightReport
from cdc_pipeline.setup.preflight import preflight
from cdc_pipeline_tests.capture.firehose.delivery import now, record, to_us
from cdc_pipeline_tests.e2e.described_by_aws import make_global
from cdc_pipeline_tests.e2e.world import World, key, make_world
from cdc_pipeline_tests.simulators.firehose import FirehoseFiles, forwarded
from cdc_pipeline_tests.simulators.recorder import Recorder

pytestmark = pytest.mark.slow

_SECONDS = {"ApproximateCreationDateTime": 1_795_000_000}
ROLE = "arn:aws:iam::000000000777:role/reader"


@pytest.fixture(scope="module")
def proxy(sandbox: SandboxProcess) -> Iterator[Recorder]:
    with Recorder(sandbox.endpoint_url) as recorder:
        yield recorder


@pytest.fixture(scope="module")
def made(
    sandbox: SandboxProcess, proxy: Recorder, tmp_path_factory: pytest.TempPathFactory
) -> World:
    world = make_world(sandbox, tmp_path_factory.mktemp("preflight"), "s3")
    world.make_table("good")
    world.make_table("bare", view=None, recovery=False)
    world.make_table("keys_only", view="KEYS_ONLY")
    world.put("good", "a")
    world.endpoint_url = proxy.endpoint_url
    return world


@pytest.fixture
def world(made: World, proxy: Recorder, monkeypatch: pytest.MonkeyPatch) -> World:
    made.activate(monkeypatch)
    made.configure("good", export=None)
    proxy.denied.clear()
    proxy.observed.clear()
    return made


def look(*names: str) -> PreflightReport:
    lake = Lake.open(load_settings())
    return preflight(lake, [lake.settings.table(name) for name in names] or lake.settings.tables)


def run(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(main, ["preflight", *arguments], input=stdin)


def reds(report: PreflightReport) -> dict[tuple[str, str], str | None]:
    found = {("lake", f.check): f.fix for f in report.lake if not f.green}
    return found | {
        (table.table, f.check): f.fix
        for table in report.tables
        for f in table.findings
        if not f.green
    }


def test_all_green_and_nothing_left_behind(world: World) -> None:
    report = look()
    assert report.is_ready, reds(report)
    assert [f.check for f in report.lake] == ["credentials", "lake", "files", "glue", "optimizers"]
    (table,) = report.tables
    assert [f.check for f in table.findings] == ["access", "table", "recovery", "stream"]
    assert (table.key, table.items, table.account) == ("pk S, sk N", 1, world.account)
    assert table.stream_usd == stream_reads_usd(1, 5, polls_needed(2, 5_000_000))
    assert world.stored() == set()
    assert run().exit_code == 0


def test_a_global_table_is_told_as_one(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    make_global(monkeypatch)
    (found,) = [f for f in look().tables[0].findings if f.check == "table"]
    assert found.green
    assert found.found.startswith("pk S, sk N; global, with eu-west-1: of changes made there")
    assert "global, with eu-west-1" in run().output


def test_each_red_has_its_fix_and_the_exit_code_tells(world: World) -> None:
    world.configure(
        "good",
        "bare",
        "keys_only",
        "missing",
        {"name": "good", "alias": "on_kinesis", "transport": "kinesis", "region": "eu-west-1"},
        export=None,
    )
    found = reds(look())
    assert set(found) == {
        ("bare", "recovery"),
        ("bare", "stream"),
        ("keys_only", "stream"),
        ("missing", "table"),
        ("on_kinesis", "table"),
    }
    assert "complete_by_read: true" in str(found["keys_only", "stream"])
    result = run("--format", "json")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert (report["green"], [t["green"] for t in report["tables"]]) == (
        False,
        [True, False, False, False, False],
    )
    shown = run()
    assert shown.exit_code == 1
    for fix in found.values():
        assert f"Fix: {fix}" in shown.stdout
    world.configure({"name": "good", "transport": "kinesis"}, export=None)
    assert "enable-kinesis-streaming-destination --table-name good" in str(
        reds(look())["good", "stream"]
    )


def test_fix_asks_then_turns_on_what_is_off(world: World) -> None:
    world.configure("bare", "good", export=None)
    assert run("--fix", stdin="n\n").exit_code == 1
    assert not look("bare").is_ready, "nothing was changed without a yes"
    before = world.dynamodb.describe_table(TableName="good")["Table"]["LatestStreamArn"]
    fixed = run("--fix", "--yes")
    assert fixed.exit_code == 0, fixed.output
    assert look().is_ready
    stream = world.dynamodb.describe_table(TableName="bare")["Table"]["StreamSpecification"]
    assert stream == {"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"}
    again = world.dynamodb.describe_table(TableName="good")["Table"]["LatestStreamArn"]
    assert before == again, "what is on stays as it is"


# Each look is denied one action of each check: what is denied first hides what would be later.
DENIALS = [
    {
        ("good", "recovery"): "dynamodb:DescribeContinuousBackups",
        ("good", "stream"): "dynamodb:DescribeStream",
        ("lake", "lake"): "s3:PutObject",
        ("lake", "glue"): "glue:GetDatabase",
    },
    {
        ("good", "stream"): "dynamodb:GetShardIterator",
        ("lake", "lake"): "s3:GetObject",
        ("lake", "glue"): "glue:GetTable",
    },
    {
        ("good", "stream"): "dynamodb:GetRecords",
        ("lake", "lake"): "s3:ListBucket",
        ("lake", "glue"): "glue:GetPartitions",
    },
    {("good", "table"): "dynamodb:DescribeTable", ("lake", "glue"): "glue:BatchCreatePartition"},
]


@pytest.mark.parametrize("denied", DENIALS)
def test_denials_tell_the_statement(
    world: World, proxy: Recorder, denied: dict[tuple[str, str], str]
) -> None:
    proxy.denied.update(denied.values())
    found = reds(look())
    assert set(found) == set(denied)
    for place, action in denied.items():
        statement = json.loads(str(found[place]).partition(": ")[2])
        assert action in statement["Action"]
        resources = " ".join(statement["Resource"])
        asked = {resource for done, resource in proxy.observed if done == action}
        for resource in asked:
            # Buckets and tables by name, streams by ARN; whatever is in it, in a folder of it.
            folder = resource.partition("/_cdc/")[0].partition("/stream/")[0]
            assert folder.removeprefix("arn:aws:dynamodb:") in resources
    assert world.stored() == set()


def test_tables_that_aws_does_not_know_are_told_by_row(world: World, tmp_path: Path) -> None:
    source, before = tmp_path / "tables.csv", world.settings_path.read_text()
    source.write_text("bare\nnowhere\nkeys_only\nbare,us-west-1\n")
    arguments = ["tables", "add", "--from", str(source), "--alias", ""]
    refused = CliRunner().invoke(main, arguments)
    assert refused.exit_code == 1
    assert "row 4: tables 'bare' and 'bare' have one safe name" in refused.stderr
    source.write_text("name,region,alias\nbare\nnowhere\nkeys_only\nbare,us-west-1,west\n")
    refused = CliRunner().invoke(main, arguments)
    rows = [line.split(":")[0].strip() for line in refused.stderr.splitlines()[1:-1]]
    assert rows == ["row 3", "row 5"]
    assert "ResourceNotFoundException" in refused.stderr
    assert world.settings_path.read_text() == before
    source.write_text("bare\nkeys_only\n")
    assert CliRunner().invoke(main, arguments).exit_code == 0
    assert [t.name for t in load_settings().tables] == ["good", "bare", "keys_only"]


def test_folders_of_firehose(world: World, proxy: Recorder) -> None:
    folder = f"s3://{world.bucket}/landed/good"
    table = {"name": "good", "transport": "firehose", "firehose": {"prefixes": [folder]}}
    world.configure(table, export=None)
    files = FirehoseFiles(world.client("s3"), world.bucket, "landed/good/")
    files.records(record("a", to_us(now()), table="good"))
    proxy.denied.add("s3:GetObject")
    found = reds(look())
    assert f"arn:aws:s3:::{world.bucket}/landed/good*" in str(found["good", "stream"])
    proxy.denied.clear()
    (report,) = look().tables
    assert report.is_ready
    seen = report.finding("stream")
    assert seen is not None
    assert seen.found == "1 folders, 0 of them empty"


def test_preflight_reads_what_firehose_wrote(world: World) -> None:
    table = {"name": "good", "transport": "firehose"}
    s3, bucket = world.client("s3"), world.bucket

    def found(prefix: str) -> Finding:
        firehose = {"prefixes": [f"s3://{bucket}/{prefix}"]}
        world.configure({**table, "firehose": firehose}, export=None)
        (report,) = look().tables
        (finding,) = [f for f in report.findings if f.check == "files"]
        assert report.is_ready is finding.green
        return finding

    at = datetime(2026, 11, 21, 7, tzinfo=UTC)
    one = record("a", to_us(at), table="good")
    two = forwarded("D", key("b"), None, None, int(at.timestamp()) + 60, 7, table="good")
    del two["eventSourceARN"]
    theirs = record("b", to_us(at), table="bad")
    FirehoseFiles(s3, bucket, "read/good/").records({"Records": [two]}, one, theirs, one, at=at)
    seen = found("read/good/")
    assert seen.green
    assert seen.found == (
        f"s3://{bucket}/read/good/: 1 newest object read; 2 changes in Kinesis format; 1 changes "
        "in stream format, written 2026-11-21 07:00:00 to 2026-11-21 07:01:00 UTC; "
        "1 changes of table bad"
    )
    seen = found("read/goods/")
    assert not seen.green
    assert f"there are no objects under s3://{bucket}/read/goods/" in seen.found
    assert f"is s3://{bucket}/read/good/ meant?" in str(seen.fix)
    assert f"is s3://{bucket}/read/good/ meant?" in str(found("red/good/").fix)
    FirehoseFiles(s3, bucket, "joined/good").records(one)
    assert f"is s3://{bucket}/joined/good meant?" in str(found("joined/good/").fix)
    assert found("joined/good").green
    FirehoseFiles(s3, bucket, "bad/").records(theirs)
    assert "set the prefix of good, or, if bad is meant" in str(found("bad/").fix)
    FirehoseFiles(s3, bucket, "late/").records({**one, "dynamodb": {**one["dynamodb"], **_SECONDS}})
    seen = found("late/")
    assert "1 unreadable: a record of before 2012" in seen.found
    assert "another unit" in str(seen.fix)
    FirehoseFiles(s3, bucket, "zip/").put(b"PK\x03\x04")
    assert "is an object in ZIP, which is not read" in found("zip/").found
    FirehoseFiles(s3, bucket, "odd/").records(one, folder="{0:%d.%m.%Y}/")
    assert "layout: 'day-{dd}.{MM}.{yyyy}/'" in str(found("odd/").fix)


def test_a_stream_of_kinesis(world: World, proxy: Recorder) -> None:
    kinesis = world.client("kinesis")
    kinesis.create_stream(StreamName="changes", ShardCount=2)
    arn = kinesis.describe_stream_summary(StreamName="changes")["StreamDescriptionSummary"][
        "StreamARN"
    ]
    world.dynamodb.enable_kinesis_streaming_destination(TableName="good", StreamArn=arn)
    world.configure({"name": "good", "transport": "kinesis"}, export=None)
    (report,) = look().tables
    assert report.is_ready, report.findings
    assert report.stream_usd == pytest.approx(2 * 730 * 0.015)
    for action in ("ListShards", "GetRecords"):
        proxy.denied = {f"kinesis:{action}"}
        fix = reds(look())["good", "stream"]
        assert json.loads(str(fix).partition(": ")[2])["Sid"] == "Kinesis"


def test_a_channel_of_kinesis(world: World, proxy: Recorder) -> None:
    kinesis = world.client("kinesis")
    world.make_table("sent")
    on_demand = {"StreamMode": "ON_DEMAND"}
    kinesis.create_stream(StreamName="sized", ShardCount=1)
    kinesis.create_stream(StreamName="sent", StreamModeDetails=on_demand)
    sized, arn = (
        kinesis.describe_stream_summary(StreamName=name)["StreamDescriptionSummary"]["StreamARN"]
        for name in ("sized", "sent")
    )
    table: dict[str, Any] = {"TableName": "sent"}
    world.dynamodb.enable_kinesis_streaming_destination(**table, StreamArn=sized)
    world.configure({"name": "sent", "transport": "kinesis_channel"}, export=None)
    assert "StreamMode=ON_DEMAND" in str(reds(look())["sent", "stream"])
    world.dynamodb.disable_kinesis_streaming_destination(**table, StreamArn=sized)
    world.dynamodb.enable_kinesis_streaming_destination(**table, StreamArn=arn)
    key = {"StreamName": "sent", "EncryptionType": "KMS", "KeyId": "alias/aws/kinesis"}
    kinesis.start_stream_encryption(**key)
    assert "stop-stream-encryption" in str(reds(look())["sent", "stream"])
    kinesis.stop_stream_encryption(**key)
    assert "docs/transports/kinesis_channel.md" in str(reds(look())["sent", "stream"])
    kinesis.create_channel(
        ChannelName="sent",
        ServiceExecutionRoleARN=f"arn:aws:iam::{world.account}:role/channel",
        StreamConfigurationList=[
            {"StreamARN": arn, "RecordConfiguration": {"RecordFormatType": "STRING"}}
        ],
        S3DestinationConfiguration={
            "StorageConfiguration": {
                "BucketARN": f"arn:aws:s3:::{world.bucket}",
                "ExpectedBucketOwner": world.account,
                "CompressionType": "ZSTD",
                "OutputKeyTemplate": "sent/!{yyyy}/!{MM}/!{dd}/x!{extension}",
            }
        },
    )
    (report,) = look().tables
    assert report.is_ready, report.findings
    assert report.stream_usd == pytest.approx(730 * 0.04)
    seen = report.finding("stream")
    assert seen is not None
    assert seen.found == (
        f"channel sent of stream sent: STRING, ZSTD, every 300 s to s3://{world.bucket}/sent/, "
        "which is empty"
    )
    for action, sid in (("ListChannels", "Channels"), ("DescribeChannel", "Channel")):
        proxy.denied = {f"kinesis:{action}"}
        fix = reds(look())["sent", "stream"]
        assert json.loads(str(fix).partition(": ")[2])["Sid"] == sid


def test_a_role_that_may_not_be_assumed(world: World, proxy: Recorder) -> None:
    world.configure({"name": "theirs", "role_arn": ROLE, "external_id": "x-17"}, export=None)
    proxy.denied.add("sts:AssumeRole")
    ((where, fix),) = reds(look()).items()
    assert where == ("theirs", "access")
    allowed, _, trust = str(fix).partition(f"; and to the trust policy of {ROLE}: ")
    assert json.loads(allowed.partition(": ")[2])["Resource"] == [ROLE]
    assert json.loads(trust)["Principal"] == {"AWS": f"arn:aws:iam::{world.account}:root"}
    assert json.loads(trust)["Condition"] == {"StringEquals": {"sts:ExternalId": "x-17"}}


def test_nobody_without_credentials(world: World, proxy: Recorder) -> None:
    proxy.denied.add("sts:GetCallerIdentity")
    assert set(reds(look())) == {("lake", "credentials"), ("good", "access")}


def test_a_denied_fix_tells_the_statement(world: World, proxy: Recorder) -> None:
    world.make_table("off", view=None, recovery=False)
    world.configure("off", export=None)
    proxy.denied |= {"dynamodb:UpdateTable", "dynamodb:UpdateContinuousBackups"}
    result = run("--fix", "--yes")
    assert result.exit_code == 1
    assert result.stderr.count("Fix: add to the policy") == 2
    assert '"dynamodb:UpdateTable", "dynamodb:UpdateContinuousBackups"' in result.stderr


def test_exports_of_another_account(world: World) -> None:
    """The fix, applied, is enough: preflight is green then."""
    other = make_other(world)
    other.make_table("theirs")
    world.configure({"name": "theirs", "role_arn": ROLE}, export=None)
    ((where, fix),) = reds(look()).items()
    assert where == ("theirs", "exports")
    statement = json.loads(str(fix).rpartition(f"policy of bucket {world.bucket}: ")[2])
    policy = {"Version": "2012-10-17", "Statement": [statement]}
    world.client("s3").put_bucket_policy(Bucket=world.bucket, Policy=json.dumps(policy))
    assert look().is_ready
    assert world.stored() == set()


def make_other(world: World) -> World:
    other = World(world.endpoint_url, "s3", world.folder, ROLE.split(":")[4])
    assert other.account != world.account
    return other


def test_missing_buckets_and_local_lakes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.configure("good", lake="s3://no-such-bucket/lake", export=None)
    fix = reds(look())["lake", "lake"]
    assert shlex.split(str(fix)) == [
        *("aws", "s3", "mb", "s3://no-such-bucket"),
        *("--region", "us-east-1"),
    ]
    world.configure("good", lake=str(world.folder / "local"), export={"bucket": "no-such-bucket"})
    found: dict[Any, Any] = reds(look())
    assert set(found) == {("lake", "export bucket")}
    assert "s3 mb" in found["lake", "export bucket"]
