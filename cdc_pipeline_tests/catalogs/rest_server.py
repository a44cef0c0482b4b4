"""Iceberg's own REST catalogue, the reference: its jars by Maven, started as a child."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cdc_pipeline_tests.maven import CACHE, Unavailable, fetched_jars, require_java

VERSION = "1.10.0"
"""The newest whose test jar, which the servlet is in, is published."""

JAVA = 17
_ARTIFACTS = [
    f"org.apache.iceberg:iceberg-core:{VERSION}",
    f"org.apache.iceberg:iceberg-core:{VERSION}:tests",
    "org.apache.hadoop:hadoop-client-api:3.4.1",
    "org.apache.hadoop:hadoop-client-runtime:3.4.1",
    "org.eclipse.jetty:jetty-servlet:11.0.25",
    "org.xerial:sqlite-jdbc:3.46.1.3",
    "org.slf4j:slf4j-simple:2.0.16",
]
_FETCH_SECONDS = 600
_SOURCE = Path(__file__).with_name("IcebergRest.java")


def jars() -> Path:
    """The folder with the server, fetched once; raises `Unavailable`."""
    require_java(JAVA, f"Iceberg {VERSION}'s REST catalogue", compiler=True)
    return fetched_jars(CACHE / "iceberg-rest" / VERSION, _ARTIFACTS, _FETCH_SECONDS)


@contextmanager
def running(folder: Path) -> Iterator[str]:
    """The address of a catalogue that keeps its database in `folder`. Raises `Unavailable`."""
    command = ["java", "-Xmx512m", "-cp", f"{jars()}/*", str(_SOURCE)]
    command += [
        "catalog-impl=org.apache.iceberg.jdbc.JdbcCatalog",
        f"uri=jdbc:sqlite:{folder / 'rest.db'}",
        f"warehouse=file://{folder / 'warehouse'}",
        "jdbc.schema-version=V1",
        "clients=1",  # SQLite has one writer
    ]
    with (folder / "rest.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        )
    assert process.stdin is not None  # both were asked for
    assert process.stdout is not None
    try:
        yield _address(process, folder / "rest.log")
    finally:
        process.stdin.close()  # which ends it
        process.wait()
        process.stdout.close()


def _address(process: "subprocess.Popen[str]", log: Path) -> str:
    for line in process.stdout or ():
        if line.startswith("LISTENING "):
            return line.split()[1]
    last = log.read_text("utf-8", "replace").strip().splitlines()[-3:]
    raise RuntimeError(f"the REST catalogue did not start: {' '.join(last) or 'no output'}")


if __name__ == "__main__":
    try:
        jars()
    except Unavailable as reason:
        print(f"Nothing is run in a REST catalogue: {reason}")
