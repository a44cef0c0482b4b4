"""One sandbox for the whole folder, clients for it, and tables and buckets of a test's own."""

import itertools
from collections.abc import Callable, Iterator

import pytest

from cdc_pipeline.sandbox.export_options import ExportOptions
from cdc_pipeline.sandbox.process import SandboxProcess
from cdc_pipeline_tests.sandbox.clients import Aws, connect

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def sandbox() -> Iterator[SandboxProcess]:
    with SandboxProcess(
        ttl_interval_seconds=0.2, exports=ExportOptions(delay_seconds=0.3)
    ) as process:
        yield process


@pytest.fixture(scope="session")
def aws(sandbox: SandboxProcess) -> Aws:
    return connect(sandbox.endpoint_url)


@pytest.fixture
def bucket(aws: Aws) -> str:
    name = f"exports-{next(_numbers)}"
    aws.s3.create_bucket(Bucket=name)
    return name


@pytest.fixture
def make_table(aws: Aws) -> Callable[..., str]:
    """Return a function that makes a table with keys `pk` and `sk` and returns its name."""

    def make(*, stream: bool = True, recovery: bool = True, name: str | None = None) -> str:
        name = name or f"table-{next(_numbers)}"
        aws.dynamodb.create_table(
            TableName=name,
            KeySchema=[
                {"AttributeName": "pk", "KeyType": "HASH"},
                {"AttributeName": "sk", "KeyType": "RANGE"},
            ],
            AttributeDefinitions=[
                {"AttributeName": "pk", "AttributeType": "S"},
                {"AttributeName": "sk", "AttributeType": "N"},
            ],
            BillingMode="PAY_PER_REQUEST",
            StreamSpecification={"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"}
            if stream
            else {"StreamEnabled": False},
        )
        if recovery:
            aws.dynamodb.update_continuous_backups(
                TableName=name,
                PointInTimeRecoverySpecification={"PointInTimeRecoveryEnabled": True},
            )
        return name

    return make
