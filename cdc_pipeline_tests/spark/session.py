"""A local Spark, or why there is none here."""

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import cdc_pipeline
from cdc_pipeline.sandbox.demo.spark import no_java

ICEBERG = "org.apache.iceberg:iceberg-spark-runtime-4.1_2.13:1.12.0"
"""The newest Iceberg for the Spark of the extra `spark`: Maven coordinates."""

SQLITE = "org.xerial:sqlite-jdbc:3.46.1.3"
"""How Spark reaches the catalogue of a local lake."""

_IVY = Path(cdc_pipeline.__file__).resolve().parents[1] / ".cache" / "ivy"


def unavailable() -> str | None:
    """Why Spark cannot run here and what would help, None where it can."""
    if reason := no_java():
        return reason
    if importlib.util.find_spec("pyspark") is None:
        return "pyspark is not installed: `make test-spark` does that"
    return None


def has_spark() -> bool:
    """Whether Spark can run here, and Linux tells what it costs."""
    return unavailable() is None and Path("/proc/self/stat").exists()


def start(scratch: Path, *, cores: int = 2, memory: str = "1g", iceberg: bool = False) -> Any:
    """A new SparkSession in UTC that talks to this machine only and keeps its files in `scratch`.

    `iceberg`: with Iceberg, which Spark's own resolver fetches once; pyspark raises a
    `PySparkRuntimeError` when that fails, and the resolver tells why on standard error.
    """
    from pyspark.sql import SparkSession  # pyright: ignore[reportMissingImports]

    options = {
        "spark.master": f"local[{cores}]",
        "spark.app.name": "cdc_pipeline",
        "spark.driver.memory": memory,
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.log.level": "ERROR",
        "spark.local.dir": str(scratch / "local"),
        "spark.sql.warehouse.dir": str(scratch / "warehouse"),
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.shuffle.partitions": str(cores),
        # By default a type of Spark's own that others read as a timestamp of no zone.
        "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
    }
    if iceberg:
        options |= _iceberg(scratch)
    builder: Any = SparkSession.builder
    return builder.config(map=options).getOrCreate()


def _iceberg(scratch: Path) -> dict[str, str]:
    wanted = (ICEBERG, SQLITE)
    jars = [_IVY / "jars" / "{}_{}-{}.jar".format(*jar.split(":")) for jar in wanted]
    if not all(jar.exists() for jar in jars):
        return {"spark.jars.packages": ",".join(wanted), "spark.jars.ivy": str(_IVY)}
    # A copy asks nobody, and nobody else tidies it away.
    return {"spark.jars": ",".join(str(shutil.copy(jar, scratch)) for jar in jars)}


if __name__ == "__main__":
    print(no_java() or "")
