"""A real Trino over the local AWS: its engine and connectors by Maven, started as a child.

The whole server (1 GB) is not needed: `Serve.java` starts the engine with the two connectors that
read a lake, in the HTTP server that Trino's own tests use. Of the versions that run on Java 17 it
is the newest whose parts Maven could resolve.
"""

import base64
import json
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from cdc_pipeline_tests.maven import CACHE, Unavailable, fetched_jars, require_java

VERSION = "406"
JAVA = 17
_ARTIFACTS = [f"io.trino:trino-main:{VERSION}", f"io.trino:trino-iceberg:{VERSION}"]
_FETCH_SECONDS = 900
_SOURCE = Path(__file__).with_name("Serve.java")


def jars() -> Path:
    """The folder with Trino, fetched once; raises `Unavailable`."""
    require_java(JAVA, f"Trino {VERSION}", compiler=True)
    return fetched_jars(CACHE / "trino" / VERSION, _ARTIFACTS, _FETCH_SECONDS)


class TrinoError(Exception):
    """Trino refused or failed a statement."""


@dataclass(frozen=True)
class Trino:
    """A running server with three catalogues over one Glue.

    `iceberg`, `hive`, and `projected`: the latter with Athena's partition projection.
    """

    base_url: str

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """The rows of a statement as Python values, times as UTC without a zone."""
        return self._run(sql)[0]

    def splits(self, sql: str) -> int:
        """Into how many parts Trino divided a statement: one for each small file, and its own."""
        return self._run(sql)[1]["totalSplits"]

    def _run(self, sql: str) -> tuple[list[tuple[Any, ...]], dict[str, Any]]:
        request = urllib.request.Request(
            f"{self.base_url}/v1/statement",
            data=sql.encode(),
            headers={"X-Trino-User": "test", "X-Trino-Time-Zone": "UTC"},
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        kinds: list[str] = []
        found: list[list[Any]] = []
        page = json.load(opener.open(request))
        while True:
            if "error" in page:
                raise TrinoError(f"{page['error']['message']}\n{sql}")
            kinds = [column["type"] for column in page.get("columns", ())] or kinds
            found += page.get("data", [])
            if "nextUri" not in page:
                break
            page = json.load(opener.open(page["nextUri"]))
        return [tuple(map(_value, row, kinds)) for row in found], page["stats"]


def _value(value: Any, kind: str) -> Any:
    if value is None:
        return None
    if kind.startswith("decimal"):
        return Decimal(value)
    if kind.startswith("timestamp"):
        return datetime.fromisoformat(value.removesuffix(" UTC"))
    if kind == "date":
        return date.fromisoformat(value)
    if kind == "varbinary":
        return base64.b64decode(value)
    if kind.startswith("array("):
        return [_value(member, kind[6:-1]) for member in value]
    return value


@contextmanager
def running(endpoint_url: str, account: str) -> Iterator[Trino]:
    """A Trino over the Glue and S3 of this endpoint. Raises `Unavailable`."""
    settings = {
        "hive.metastore.glue.endpoint-url": endpoint_url,
        "hive.metastore.glue.region": "us-east-1",
        "hive.metastore.glue.aws-access-key": account,
        "hive.metastore.glue.aws-secret-key": "sandbox",
        # The local Glue knows no segments and would answer each with everything.
        "hive.metastore.glue.partitions-segments": "1",
        "hive.s3.endpoint": endpoint_url,
        "hive.s3.path-style-access": "true",
        "hive.s3.ssl.enabled": "false",
        "hive.s3.aws-access-key": account,
        "hive.s3.aws-secret-key": "sandbox",
    }
    command = ["java", "-Xmx1g", "-cp", f"{jars()}/*", str(_SOURCE)]
    command += [f"{name}={value}" for name, value in settings.items()]
    log = CACHE / "trino" / VERSION / "server.log"
    with log.open("wb") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        )
    assert process.stdin is not None  # both were asked for
    assert process.stdout is not None
    try:
        yield Trino(_base_url(process.stdout, log))
    finally:
        process.stdin.close()  # which ends it
        process.wait()
        process.stdout.close()


def _base_url(lines: Any, log: Path) -> str:
    for line in lines:
        if line.startswith("LISTENING "):
            return line.split()[1]
    last = log.read_text("utf-8", "replace").strip().splitlines()[-3:]
    raise RuntimeError(f"Trino did not start: {' '.join(last) or 'no output'}")


if __name__ == "__main__":
    try:
        jars()
    except Unavailable as reason:
        print(reason)
