"""Real clients of a simulator."""

from functools import cache
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.loaders import Loader, create_loader

from cdc_pipeline.aws.client.session import AwsSession
from cdc_pipeline_tests.simulators.streams_model import REGION
from cdc_pipeline_tests.simulators.streams_server import StreamsSimulator


@cache
def _models() -> Loader:
    """botocore's service models, read once instead of once per session."""
    return create_loader()


def session(sim: StreamsSimulator) -> AwsSession:
    """The package's own session; its credentials come from `sim.environment()`."""
    made = AwsSession(region=REGION, endpoint_url=sim.endpoint_url)
    made.session.register_component("data_loader", _models())
    return made


def plain_client(sim: StreamsSimulator, service: str = "dynamodbstreams", **config: Any) -> Any:
    """A client as boto3 makes it, without anything of the package's."""
    made = boto3.Session(
        aws_access_key_id="simulator", aws_secret_access_key="simulator", region_name=REGION
    )
    made._session.register_component("data_loader", _models())
    return made.client(
        service,  # type: ignore[call-overload]
        endpoint_url=sim.endpoint_url,
        config=Config(proxies={}, **config),
    )


def use(sim: StreamsSimulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Point the environment at a simulator, and let botocore retry without its pauses.

    botocore sleeps up to seconds before each retry and offers no hook; its endpoint module uses
    `time` for nothing else.
    """
    for name, value in sim.environment().items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("botocore.endpoint.time", SimpleNamespace(sleep=lambda seconds: None))
