"""AWS's DynamoDB Local: fetched by Maven and started as a child, or why it cannot be."""

import shutil
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

import cdc_pipeline

VERSION = "2.6.1"
JAVA = 17  # the least that 2.x runs on
_CACHE = Path(cdc_pipeline.__file__).resolve().parents[1] / ".cache" / "dynamodb-local"
_FETCH_SECONDS = 240
_START_SECONDS = 30
_POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>contract</groupId><artifactId>dynamodb-local</artifactId><version>1</version>
  <packaging>pom</packaging>
  <dependencies>
    <dependency>
      <groupId>com.amazonaws</groupId><artifactId>DynamoDBLocal</artifactId>
      <version>{VERSION}</version>
    </dependency>
  </dependencies>
</project>
"""


class Unavailable(Exception):
    """DynamoDB Local cannot run here; the message says why and what would help."""


@contextmanager
def running() -> Iterator[str]:
    """The endpoint of a fresh DynamoDB Local in memory.

    Raises `Unavailable` where Java, Maven or the download is missing. A server that does not start
    is an error like any other.
    """
    _require_java()
    jars = _jars()
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


def _require_java() -> None:
    java = shutil.which("java")
    if java is None:
        raise Unavailable(f"there is no `java` on PATH: install a Java {JAVA} runtime or newer")
    told = subprocess.run([java, "-version"], capture_output=True, text=True, check=False)
    version = told.stderr.partition('"')[2].partition('"')[0]
    major = version.partition(".")[0]
    if told.returncode or not major.isdecimal() or int(major) < JAVA:
        raise Unavailable(f"`java` is {version or 'broken'}: version {VERSION} needs {JAVA}")


def _jars() -> Path:
    """The folder with the server and all that it needs; fetched once per version."""
    folder = _CACHE / VERSION
    jars = folder / "lib"
    if jars.exists():
        return jars
    maven = shutil.which("mvn")
    if maven is None:
        raise Unavailable("there is no `mvn` on PATH, which fetches it: install Maven")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "pom.xml").write_text(_POM, "utf-8")
    draft = folder / "draft"
    command = [maven, "--batch-mode", "--quiet", "--strict-checksums", "--no-transfer-progress"]
    command += ["-Dstyle.color=never"]
    command += ["dependency:copy-dependencies", "-DincludeScope=runtime"]
    command += [f"-DoutputDirectory={draft}"]
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=_FETCH_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"Maven did not fetch it within {_FETCH_SECONDS} s") from None
    if done.returncode:
        told = [line for line in done.stdout.splitlines() if "ERROR" in line] or ["no message"]
        raise Unavailable(f"Maven could not fetch it: {told[0]}")
    draft.rename(jars)
    return jars


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
