"""What clients that are not boto3 are told about S3 is what botocore would do itself."""

from pathlib import Path

import pytest

from cdc_pipeline.aws.client.s3_access import S3Access, endpoint_style
from cdc_pipeline.aws.client.session import AwsSession

VPCE = "https://bucket.vpce-0a1b2c3d-4e5f6a7b.s3.us-east-1.vpce.amazonaws.com"
FIPS, DUAL = {"AWS_USE_FIPS_ENDPOINT": "true"}, {"AWS_USE_DUALSTACK_ENDPOINT": "true"}


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("AWS_") or name.lower() in ("no_proxy", "http_proxy", "https_proxy"):
            monkeypatch.delenv(name)
    for name, value in {
        "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "hidden",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(tmp_path / "config"),
    }.items():
        monkeypatch.setenv(name, value)


def access(region: str = "us-east-1", endpoint_url: str | None = None) -> S3Access:
    return AwsSession(region=region, endpoint_url=endpoint_url).s3_access()


@pytest.mark.parametrize(
    ("region", "settings", "environment", "host"),
    [
        ("us-east-1", None, {}, None),
        ("us-gov-west-1", None, {}, None),
        ("us-east-1", None, {"AWS_ENDPOINT_URL_S3": VPCE}, VPCE),
        ("us-east-1", VPCE, {}, VPCE),
        ("us-gov-west-1", None, FIPS, "https://s3-fips.us-gov-west-1.amazonaws.com"),
        ("us-east-1", None, DUAL, "https://s3.dualstack.us-east-1.amazonaws.com"),
        ("us-east-1", None, DUAL | FIPS, "https://s3-fips.dualstack.us-east-1.amazonaws.com"),
        ("cn-north-1", None, {}, "https://s3.cn-north-1.amazonaws.com.cn"),
        ("eusc-de-east-1", None, {}, "https://s3.eusc-de-east-1.amazonaws.eu"),
    ],
)
def test_hosts(
    region: str,
    settings: str | None,
    environment: dict[str, str],
    host: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = access(region, settings)
    assert (found.endpoint_url, found.region) == (host, region)
    assert found.has_bucket_in_host == (host != VPCE)


@pytest.mark.parametrize(
    ("endpoint", "style", "bucket", "expected"),
    [
        ("https://s3.eu-west-1.amazonaws.com", None, "a", (None, True)),
        (
            "https://s3.eu-west-1.amazonaws.com",
            "path",
            "a",
            ("https://s3.eu-west-1.amazonaws.com", False),
        ),
        (
            "https://s3.eu-west-1.amazonaws.com",
            None,
            "a.b",
            ("https://s3.eu-west-1.amazonaws.com", False),
        ),
        ("http://minio:9000/", None, "a", ("http://minio:9000", False)),
        ("http://minio:9000", "virtual", "a", ("http://minio:9000", True)),
    ],
)
def test_where_the_bucket_is_named(
    endpoint: str, style: str | None, bucket: str, expected: tuple[str | None, bool]
) -> None:
    assert endpoint_style(endpoint, style, bucket) == expected


def test_proxies_and_who_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "user:word@proxy.example:3128")
    found = access()
    assert found.proxy_url == "http://user:word@proxy.example:3128"
    assert "word" not in repr(found)
    assert "hidden" not in repr(found)
    assert access(endpoint_url="http://minio.example").proxy_url is None
    monkeypatch.setenv("NO_PROXY", "localhost,.amazonaws.com")
    assert access().proxy_url is None


def test_authorities(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = tmp_path / "config"
    assert Path(str(access().ca_file)).is_file()
    config.write_text("[default]\nca_bundle = /from/config.pem\n")
    assert access().ca_file == "/from/config.pem"
    monkeypatch.setenv("AWS_CA_BUNDLE", "/from/environment.pem")
    assert access().ca_file == "/from/environment.pem"
