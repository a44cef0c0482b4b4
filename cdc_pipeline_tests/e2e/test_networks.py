"""The way to AWS: every client takes it, over real HTTP(S), with keys that change under way."""

import json
import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cdc_pipeline.aws.client.session import AwsSession
from cdc_pipeline.aws.s3.filesystem import s3_filesystem
from cdc_pipeline.aws.s3.output import S3Output, sse_parameters
from cdc_pipeline.core.errors import LakeError, SourceError
from cdc_pipeline.lake.engine.duckdb_s3 import DuckS3
from cdc_pipeline.lake.query.connection import connect_lake
from cdc_pipeline.sandbox.process import SandboxProcess
from cdc_pipeline.setup.preflight import preflight
from cdc_pipeline_tests.e2e.world import World, make_world, quick_sandbox
from cdc_pipeline_tests.simulators.authority import make_authority
from cdc_pipeline_tests.simulators.recorder import Answer, Recorder

pytestmark = pytest.mark.slow

QUICK = {"poll_seconds": 0.05}
HOST = "aws.internal.example"  # does not resolve


@pytest.fixture(scope="module")
def quick() -> Iterator[SandboxProcess]:
    with quick_sandbox() as process:
        yield process


@pytest.fixture
def world(quick: SandboxProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = make_world(quick, tmp_path, "s3")
    made.activate(monkeypatch)
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    made.make_table("orders")
    made.put("orders", "a")
    made.configure("orders", export=QUICK)
    return made


def s3_error(status: int, code: str, message: str, **headers: str) -> Answer:
    text = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return status, {"Content-Type": "application/xml", **headers}, text


def signed_with(headers: Any) -> tuple[str, str, str]:
    """Access key, region and service."""
    found = re.search(r"Credential=([^/]+)/[0-9]+/([^/]+)/([^/]+)/", headers["Authorization"])
    assert found is not None
    return found[1], found[2], found[3]


def assert_green(world: World) -> None:
    report = preflight(world.lake(), [world.table("orders")])
    assert report.is_ready, report


def test_a_tunnel_and_a_private_authority(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, certificate = make_authority(tmp_path, HOST)
    with (
        Recorder(world.endpoint_url, certificate=certificate) as aws,
        Recorder(world.endpoint_url) as proxy,
    ):
        proxy.tunnels[f"{HOST}:443"] = aws.address
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://{HOST}")
        monkeypatch.setenv("HTTPS_PROXY", proxy.endpoint_url)
        with monkeypatch.context() as patch:
            patch.setattr("botocore.endpoint.time.sleep", lambda _: None)
            with pytest.raises((SourceError, LakeError), match="AWS_CA_BUNDLE"):
                world.capture("orders")
        monkeypatch.setenv("AWS_CA_BUNDLE", str(authority))
        world.configure("orders", export=QUICK)
        assert_green(world)
        world.bootstrap("orders")
        assert world.rows("SELECT pk FROM orders.current_state", "orders") == [("a",)]
        assert set(proxy.agents) == {"tunnel"}
        assert aws.agents["pyarrow"]
        assert aws.agents["boto3"]
        monkeypatch.setenv("AWS_ENDPOINT_URL", aws.endpoint_url)
        monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        world.configure("orders", export=QUICK)
        assert world.rows("SELECT pk FROM orders.current_state", "orders") == [("a",)]


def test_a_proxy_for_http(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with Recorder(world.endpoint_url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{HOST}:4566")
        monkeypatch.setenv("http_proxy", proxy.endpoint_url)
        world.configure("orders", export=QUICK)
        assert_green(world)
        assert proxy.agents["pyarrow"]
        assert proxy.agents["boto3"]


class Keys:
    """Credentials of a process, so near their end that botocore asks for them at each request."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "keys.json"
        self.config = folder / "config"
        self.config.write_text(f"[default]\ncredential_process = cat {self._file}\n")
        self.seen: set[str] = set()
        self.current = ""
        self.replace("first")

    def replace(self, name: str) -> None:
        self.current = name
        said = {
            "Version": 1,
            "AccessKeyId": name,
            "SecretAccessKey": "sandbox",
            "SessionToken": f"token of {name}",
            "Expiration": f"{datetime.now(UTC) + timedelta(minutes=9):%Y-%m-%dT%H:%M:%SZ}",
        }
        self._file.write_text(json.dumps(said))

    def refuse(self, method: str, path: str, headers: Any) -> Answer | None:
        key = signed_with(headers)[0]
        self.seen.add(key)
        if key == self.current and headers["X-Amz-Security-Token"] == f"token of {key}":
            return None
        return s3_error(400, "ExpiredToken", "The provided token has expired.")


def test_keys_that_end_under_way(
    quick: SandboxProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(quick.endpoint_url, "s3", tmp_path, "000000000000")
    world.client("s3").create_bucket(Bucket=world.bucket)
    world.activate(monkeypatch)
    world.make_table("orders")
    world.put("orders", "a")
    world.configure("orders", export=QUICK)
    keys = Keys(tmp_path)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(keys.config))
    with Recorder(world.endpoint_url, refuse=keys.refuse) as aws:
        monkeypatch.setenv("AWS_ENDPOINT_URL", aws.endpoint_url)
        world.bootstrap("orders")
        lake = world.lake()
        file = DuckS3(s3_filesystem(lake.aws))._open(_data_file(world))
        with connect_lake(lake, ["orders"]) as connection:
            keys.replace("second")
            world.put("orders", "b")
            world.capture("orders")
            world.publish("orders")
            assert world.lake() is lake
            asked = "SELECT count(*) FROM orders.current_state"
            assert connection.execute(asked).fetchone() is not None
        assert file.read()[:4] == b"PAR1"
        counted = world.rows("SELECT count(*) FROM orders.current_state", "orders")
        assert counted == [(2,)]
    assert keys.seen == {"first", "second"}


def _data_file(world: World) -> str:
    found = next(key for key in world.stored("iceberg/") if key.endswith(".parquet"))
    return f"{world.bucket}/lake/{found}"


def test_the_buckets_own_region(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    where = {"LocationConstraint": "eu-west-1"}
    world.client("s3").create_bucket(Bucket="in-ireland", CreateBucketConfiguration=where)

    def refuse(method: str, path: str, headers: Any) -> Answer | None:
        _, region, service = signed_with(headers)
        if service != "s3" or region == "eu-west-1":
            return None
        named = {"x-amz-bucket-region": "eu-west-1"}
        return s3_error(301, "PermanentRedirect", "use the specified endpoint", **named)

    with Recorder(world.endpoint_url, refuse=refuse) as aws:
        monkeypatch.setenv("AWS_ENDPOINT_URL", aws.endpoint_url)
        world.configure("orders", lake="s3://in-ireland/lake", export=QUICK)
        assert_green(world)
        world.bootstrap("orders")
        assert world.rows("SELECT pk FROM orders.current_state", "orders") == [("a",)]


def demand_kms(method: str, path: str, headers: Any) -> Answer | None:
    """As a bucket does whose policy denies objects that do not ask for SSE-KMS."""
    begins = (method == "PUT" and "uploadId" not in path) or path.endswith("?uploads")
    is_object = path.count("/") > 1 and signed_with(headers)[2] == "s3"
    if not (begins and is_object) or headers["x-amz-server-side-encryption"] == "aws:kms":
        return None
    return s3_error(
        403,
        "AccessDenied",
        "User: arn:aws:iam::1:role/r is not authorized to perform: s3:PutObject on resource: "
        '"arn:aws:s3:::b/k" with an explicit deny in a resource-based policy',
    )


def test_a_bucket_that_demands_sse_kms(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with Recorder(world.endpoint_url, refuse=demand_kms) as aws:
        monkeypatch.setenv("AWS_ENDPOINT_URL", aws.endpoint_url)
        world.configure("orders", export=QUICK)
        (red,) = [f for f in preflight(world.lake(), [world.table("orders")]).lake if not f.green]
        assert red.check == "lake"
        assert "`kms_key: aws/s3`" in str(red.fix)
        assert "add to the policy" not in str(red.fix)
        world.configure("orders", export=QUICK, kms_key="aws/s3")
        assert_green(world)
        world.bootstrap("orders")
        world.build_cdc("orders")
    s3 = world.client("s3")
    for key in sorted(world.stored()):
        kind = s3.head_object(Bucket=world.bucket, Key=f"lake/{key}").get("ServerSideEncryption")
        assert kind == "aws:kms", key
    assert any("/AWSDynamoDB/" in key for key in world.stored()), "the export's are among them"


def test_an_explicit_deny_is_no_missing_permission(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = {"why": ""}

    def refuse(method: str, path: str, headers: Any) -> Answer | None:
        if method != "PUT" or path.count("/") < 2:
            return None
        return s3_error(403, "AccessDenied", said["why"])

    def fix(why: str) -> str:
        said["why"] = why
        report = preflight(world.lake(), [world.table("orders")])
        return str(next(f.fix for f in report.lake if not f.green))

    with Recorder(world.endpoint_url, refuse=refuse) as aws:
        monkeypatch.setenv("AWS_ENDPOINT_URL", aws.endpoint_url)
        world.configure("orders", export=QUICK)
        doing = "User: arn:aws:sts::1:x is not authorized to perform: s3:PutObject"
        denied = fix(f"{doing} with an explicit deny in a service control policy")
        assert denied.startswith("a service control policy denies this explicitly")
        assert "add to the policy" not in denied
        missing = fix(f"{doing} because no identity-based policy allows the s3:PutObject action")
        assert json.loads(missing.partition(": ")[2])["Sid"] == "Lake"
        unexplained = fix("Access Denied")
        assert unexplained.startswith("add to the policy")
        assert "denies it explicitly" in unexplained


def test_long_files_are_written_in_parts_or_not_at_all(world: World) -> None:
    data = os.urandom(1 << 20)
    with Recorder(world.endpoint_url) as aws:
        session = AwsSession(region="us-east-1", endpoint_url=aws.endpoint_url)
        files = s3_filesystem(session, sse_parameters("aws/s3"))
        path = f"{world.bucket}/long"
        with files.open_output_stream(path) as file:
            for _ in range(20):
                file.write(data)
            assert file.tell() == 20 << 20
        assert files.open_input_file(path).read() == data * 20
        headers = world.client("s3").head_object(Bucket=world.bucket, Key="long")
        assert headers["ServerSideEncryption"] == "aws:kms"
        files.delete_file(path)
        aws.denied = {"s3:PutObject"}
        file = S3Output(session.client("s3"), world.bucket, "denied", {})
        with pytest.raises(LakeError, match="denied: AWS says AccessDenied"):
            file.write(data * 9)
        aws.denied = set()
        file = S3Output(session.client("s3"), world.bucket, "denied", {})
        file.write(data * 9)
        aws.denied = {"s3:PutObject"}
        with pytest.raises(LakeError, match="denied: AWS says AccessDenied"):
            file.write(data * 40)
    assert "Uploads" not in world.client("s3").list_multipart_uploads(Bucket=world.bucket)
    assert "Contents" not in world.client("s3").list_objects_v2(Bucket=world.bucket)
