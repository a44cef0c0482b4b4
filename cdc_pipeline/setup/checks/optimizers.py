"""Preflight check of Glue's table optimizers: those active on the lake's Iceberg tables."""

from collections.abc import Iterator
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from cdc_pipeline.aws.client.session import error_code
from cdc_pipeline.core.plans.iam import ICEBERG_TABLES
from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.setup.checks.findings import Finding

_TYPES = ("compaction", "retention", "orphan_file_deletion")
_BATCH = 20
"""Entries per BatchGetTableOptimizer; its reference documents no limit."""


def check_optimizers(lake: Lake, account: str) -> Finding:
    """List active optimizers in a passed finding: all may run on the tables (docs/athena.md).

    A missing permission, or a region without optimizers, is reported in the finding.
    """
    glue = lake.aws.client("glue")
    names = [f"{t.safe_name}_{kind}" for t in lake.settings.tables for kind in ICEBERG_TABLES]
    entries = [
        {"catalogId": account, "databaseName": lake.database, "tableName": name, "type": kind}
        for name in names
        for kind in _TYPES
    ]
    try:
        active = sorted(_active(glue, entries))
    except (ClientError, BotoCoreError) as error:
        code = error_code(error) if isinstance(error, ClientError) else type(error).__name__
        return Finding("optimizers", True, f"not known: BatchGetTableOptimizer answers {code}")
    if not active:
        return Finding("optimizers", True, "Glue has none active on the lake's tables")
    listed = "; ".join(f"{kind} of {name}" for name, kind in active)
    return Finding("optimizers", True, f"Glue's {listed}. Their effects: docs/athena.md")


def _active(glue: Any, entries: list[dict[str, str]]) -> Iterator[tuple[str, str]]:
    for start in range(0, len(entries), _BATCH):
        answer = glue.batch_get_table_optimizer(Entries=entries[start : start + _BATCH])
        for entry in answer.get("TableOptimizers", ()):
            optimizer = entry["tableOptimizer"]
            if optimizer.get("configuration", {}).get("enabled"):
                yield entry["tableName"], optimizer["type"]
