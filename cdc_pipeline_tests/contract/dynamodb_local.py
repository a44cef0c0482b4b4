"""AWS's DynamoDB Local: fetched by Maven and started as a child, or why it cannot be."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from cdc_pipeline_tests.maven import CACHE, fetched_jars, require_java

VERSION = "2.6.1"
JAVA = 17  # the least that 2.x runs on
_FOLDER = CACHE / "dynamodb-local" / VERSION
_FETCH_SECONDS = 240
_START_SECONDS = 30


@contextmanager
def running() -> Iterator[str]:
    """The endpoint of a fresh DynamoDB Local in memory.

    Raises `Unavailable` where Java, Maven or the download is missing. A server that does not start
    is an error like any other.
    """
    require_java(JAVA, f"version {VERSION}")
    jars = fetched_jars(_FOLDER, [f"com.amazonaws:DynamoDBLocal:{VERSION}"], _FETCH_SECONDS)
    port = _free_port()
    command = [sys.executable, "-m", "cdc_pipeline.sandbox.guard", "java"]
    command += [f"-Djava.library.path={jars}", "-cp", f"{jars}/*"]
    command += ["com.amazonaws.services.dynamodbv2.local.main.ServerRunner"]
    command += ["-inMemory", "-disableTelemetry", "-port", str(port)]
    log = jars.parent / "server.log"
    with log.open("wb") as output:
        # The guard ends it when its standard input closes, however we end.
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True
        )
    try:
        endpoint_url = f"http://127.0.0.1:{port}"
        _await(endpoint_url, process, log)
        yield endpoint_url
    finally:
        assert process.stdin is not None  # it was started with a pipe
        process.stdin.close()
        process.wait()


def _await(endpoint_url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    client = boto3.Session("sandbox", "sandbox", region_name="us-east-1").client(
        "dynamodb", endpoint_url=endpoint_url, config=Config(proxies={}, retries={"mode": "legacy"})
    )
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            client.list_tables()
            return
        except (BotoCoreError, ClientError):
            time.sleep(0.2)
    told = log.read_text("utf-8", "replace").strip().splitlines()[-3:]
    raise RuntimeError(f"DynamoDB Local did not start: {' '.join(told) or 'no output'}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
