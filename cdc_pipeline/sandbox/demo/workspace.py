"""Settings files for the sandbox's own tables."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

from cdc_pipeline.core.transports import DYNAMODB_STREAMS, FIREHOSE, KINESIS, KINESIS_CHANNEL

BUCKET = "cdc-lake"
LAKE_PREFIX = "lake"
DATABASE = "cdc"


def write_settings(
    folder: Path,
    *,
    kind: str,
    running: bool,
    transport: str = DYNAMODB_STREAMS,
    master: str | None = None,
) -> Path:
    """Write a settings file for `orders` and `customers`, with short intervals for a local AWS.

    `kind`: `s3` or `local` lake. `running`: whether sensors and schedules start by default.
    `transport`: of both tables. `master`: of the Spark that does exports and full folds, if any.
    """
    settings = {
        "lake": f"s3://{BUCKET}/{LAKE_PREFIX}" if kind == "s3" else str(folder / "lake"),
        "database": DATABASE,
        "region": "us-east-1",
        # In DynamoDB export times are inexact by a minute and listings late, hence defaults of 300
        # for both; in the sandbox both are exact.
        "handover_margin_seconds": 2,
        "start_date": (datetime.now(UTC) - timedelta(days=7)).date().isoformat(),
        "capture": {
            "interval_seconds": 5,
            "poll_seconds": 0.2,
            "listing_lag_seconds": 0,
            "linger_seconds": 600 if running else 0,
        },
        "export": {"bucket": BUCKET, "poll_seconds": 0.5},
        "current_state": {"derive_minutes": 1},
        "schedules": {"running": running, "downstream_seconds": 10, "glue_seconds": 30},
        "aggregates": str(_aggregates()),
        "tables": [
            {**_table("orders", transport), "ttl_archive": True},
            _table("customers", transport),
        ],
    }
    if master is not None:
        settings["engine"] = "spark"
        conf = {"spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1"}
        settings["spark"] = {"master": master, "conf": {**conf, "spark.ui.enabled": "false"}}
    path = folder / "cdc_pipeline.yaml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False), "utf-8")
    return path


def _table(name: str, transport: str) -> dict[str, Any]:
    table = {
        "name": name,
        "owner": "team:sales",
        "transport": transport,
        "snapshot": {"first": "auto"},
    }
    if transport in (KINESIS, KINESIS_CHANNEL):
        # The sandbox replicates at once; AWS may take longer.
        table["kinesis"] = {"late_seconds": 0, "metric_minutes": 0}
    if transport == KINESIS_CHANNEL:
        # CloudWatch counts by minute; the sandbox's channels deliver within a second.
        table["kinesis_channel"] = {"interval_seconds": 5, "lag_minutes": 0.1, "measured": False}
    if transport == FIREHOSE:
        # Firehose's folders in infra/cdc_pipeline.yaml, and its delay with that BufferSeconds.
        parquet, error = (
            f"s3://{BUCKET}/{LAKE_PREFIX}/{zone}/{DATABASE}/{name}/"
            for zone in ("dynamo-firehose", "dynamo-firehose-error")
        )
        table["firehose"] = {
            "prefixes": [parquet],
            "error_prefixes": [error],
            "interval_seconds": 5,
            "lag_minutes": 0.1,
        }
    return table


def _aggregates() -> Path:
    """Return the folder of the checkout's examples; an installed package has no such folder."""
    return Path(__file__).resolve().parents[3] / "aggregates"
