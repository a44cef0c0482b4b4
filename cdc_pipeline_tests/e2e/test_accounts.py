"""Tables of other accounts and regions: read by an assumed role, exported to the lake's bucket."""

import json
import time
from dataclasses import replace
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.stub import Stubber

from cdc_pipeline.aws.table import describe_table
from cdc_pipeline.core.errors import ExportError, SourceError
from cdc_pipeline.sandbox.process import SandboxProcess
from cdc_pipeline_tests.e2e.deployment import deploy, requested_tables
from cdc_pipeline_tests.e2e.world import World, assert_mirrors, make_world

pytestmark = [
    pytest.mark.slow,
    # Dagster passes this parameter itself when it copies a sensor.
    pytest.mark.filterwarnings("ignore:Parameter `owners` of initializer `SensorDefinition"),
]

OTHER = "000000000999"
ROLE = f"arn:aws:iam::{OTHER}:role/data/reader"
WEST = "us-west-2"
PERMISSIONS = ["s3:PutObject", "s3:AbortMultipartUpload", "s3:PutObjectAcl"]


def in_other_account(world: World, region: str) -> World:
    """The same sandbox seen with the keys of the tables' account."""
    session = boto3.Session(OTHER, "sandbox", region_name=region)
    client = session.client("dynamodb", endpoint_url=world.endpoint_url, config=Config(proxies={}))
    return replace(world, account=OTHER, _clients={"dynamodb": client})


def let_in(world: World, permissions: list[str] = PERMISSIONS, role: str = ROLE) -> None:
    """The bucket policy that docs/aws.md asks for."""
    statement = {
        "Effect": "Allow",
        "Principal": {"AWS": role},
        "Action": permissions,
        "Resource": f"arn:aws:s3:::{world.bucket}/dynamo-export/*",
    }
    policy = {"Version": "2012-10-17", "Statement": [statement]}
    world.client("s3").put_bucket_policy(Bucket=world.bucket, Policy=json.dumps(policy))


@pytest.fixture(scope="module")
def worlds(sandbox: SandboxProcess, tmp_path_factory: pytest.TempPathFactory) -> dict[str, World]:
    """Tables named `orders` in the lake's account, and in two regions of another one."""
    lake = make_world(sandbox, tmp_path_factory.mktemp("accounts"), "s3")
    found = {
        "here": lake,
        "other": in_other_account(lake, "us-east-1"),
        "west": in_other_account(lake, WEST),
    }
    for place, world in found.items():
        world.make_table("orders")
        world.put("orders", f"{place} 1", v={"N": "1"})
    return found


@pytest.fixture
def world(worlds: dict[str, World], monkeypatch: pytest.MonkeyPatch) -> World:
    world = worlds["here"]
    world.activate(monkeypatch)
    world.configure(
        "orders",
        {"name": "orders", "alias": "other_orders", "role_arn": ROLE, "external_id": "x-17"},
        {"name": "orders", "alias": "west_orders", "role_arn": ROLE, "region": WEST},
    )
    return world


def test_three_tables_of_one_name_mirror_their_own_sources(
    world: World, worlds: dict[str, World]
) -> None:
    let_in(world)
    for place, label in (("other", "other_orders"), ("west", "west_orders")):
        world.bootstrap(label)
        worlds[place].put("orders", f"{place} 2", v={"N": "2"})
        worlds[place].delete("orders", f"{place} 1")
        world.capture(label)
        assert set(world.items(label)) == {f"{place} 2"}
        assert assert_mirrors(world, label) == 1
    world.capture("orders")
    assert world.rows("SELECT keys FROM orders.raw_stream", "orders") == [
        ('{"pk":{"S":"here 1"},"sk":{"N":"1"}}',)
    ]


def test_the_sensor_and_runs_tell_them_apart(world: World) -> None:
    asked: set[str] = set()
    deadline = time.monotonic() + 120
    with deploy(world) as made:
        # Those that were captured a moment ago are due a moment later.
        while len(asked) < 3 and time.monotonic() < deadline:
            asked |= set(requested_tables(made.tick("shard_sensor")))
    assert sorted(asked) == ["orders", "other_orders", "west_orders"]
    chosen = [world.lake().settings.table(name) for name in sorted(asked)]
    assert chosen == world.lake().settings.tables


def test_the_source_is_the_account_of_the_role(world: World) -> None:
    lake = world.lake()
    sources = [lake.table(table).source for table in lake.settings.tables]
    assert [source.account() for source in sources] == [world.account, OTHER, OTHER]
    assert sources[2].client("dynamodb").meta.region_name == WEST
    assert sources[0] is lake.aws
    assert sources[1] is lake.table(lake.settings.table("other_orders")).source, "cached"
    owners = [lake.table(table).export_owner() for table in lake.settings.tables]
    assert owners == [None, world.account, world.account]


def test_expired_credentials_are_renewed(world: World) -> None:
    source = world.table_lake("other_orders").source
    credentials: Any = source.session.get_credentials()
    before = credentials.get_frozen_credentials()
    assert credentials.get_frozen_credentials() == before
    credentials._expiry_time = credentials._time_fetcher()
    after = credentials.get_frozen_credentials()
    assert after.access_key != before.access_key
    assert source.client("dynamodb").describe_table(TableName="orders")


@pytest.mark.parametrize(
    ("owner", "permissions", "role"),
    [
        ("000000000998", PERMISSIONS, ROLE),
        (None, PERMISSIONS[:2], ROLE),
        (None, PERMISSIONS, f"arn:aws:iam::{OTHER}:role/someone-else"),
    ],
)
def test_exports_that_aws_would_refuse(
    world: World, owner: str | None, permissions: list[str], role: str
) -> None:
    let_in(world, permissions, role)
    export = {"bucket": world.bucket, "poll_seconds": 0.05, "bucket_owner": owner}
    table = {"name": "orders", "alias": "refused", "role_arn": ROLE}
    world.configure(table, export={k: v for k, v in export.items() if v is not None})
    with pytest.raises(ExportError, match="S3AccessDenied"):
        world.snapshot("refused")


def test_a_role_that_cannot_be_assumed(world: World) -> None:
    lake = world.lake()
    with Stubber(lake.aws.client("sts")) as sts:
        sts.add_client_error("assume_role", "AccessDenied", "not authorized")
        with pytest.raises(SourceError) as caught:
            describe_table(lake.table(world.table("other_orders")).source, "orders")
    assert ROLE in caught.value.message
    assert "trust policy" in str(caught.value.fix)
