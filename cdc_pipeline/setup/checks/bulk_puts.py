"""Preflight check of bulk puts: those that ran on a table since its newest baseline.

Whether writes of StartBulkPutItems reach streams, Kinesis and incremental exports is not
documented.
"""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from cdc_pipeline.aws.client.session import AwsSession, error_code
from cdc_pipeline.aws.table import TableDescription
from cdc_pipeline.core.clock import utc
from cdc_pipeline.core.errors import CdcPipelineError
from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.settings.table import Table
from cdc_pipeline.setup.checks.findings import Finding

_CHECK = "bulk puts"


def check_bulk_puts(
    source: AwsSession,
    table: Table,
    described: TableDescription,
    log: Callable[[], LogState],
) -> Finding | None:
    """Warn of bulk puts in a passed finding; None: this version of botocore lacks the call.

    Lists of bulk operations contain no table names (botocore 1.44.8's model), so each operation is
    described. A missing permission is reported in the finding. `log`: reads the capture log; if it
    cannot be read, which other checks report, every bulk put counts.
    """
    client = source.client("dynamodb")
    if "ListBulkOperations" not in client.meta.service_model.operation_names:
        return None
    try:
        baseline = log().staged
    except CdcPipelineError:
        baseline = None
    since = utc(baseline.export_time_us if baseline else 0)
    try:
        starts = sorted(_started_since(client, {table.name, described.arn}, since))
    except (ClientError, BotoCoreError) as error:
        code = error_code(error) if isinstance(error, ClientError) else type(error).__name__
        message = f"not known: ListBulkOperations or DescribeBulkOperation answers {code}"
        return Finding(_CHECK, True, message)
    if not starts:
        return Finding(_CHECK, True, "none since the newest baseline")
    return Finding(
        _CHECK,
        True,
        f"warning: {len(starts)} since the newest baseline, the last begun {starts[-1]}. Whether "
        "the stream has their writes is not documented; compare: "
        f"cdc-pipeline reconcile --full {table.safe_name}",
    )


def _started_since(client: Any, names: set[str], since: datetime) -> Iterator[str]:
    """Yield the start times of bulk operations on a table that had not ended before `since`."""
    for summary in _listed(client):
        ended = summary.get("EndTime")
        if ended is not None and ended < since:
            continue
        arn = summary["BulkOperationArn"]
        answer = client.describe_bulk_operation(BulkOperationArn=arn)
        operation = answer["BulkOperationDescription"]
        if any(detail.get("TableName") in names for detail in operation.get("TableDetails", ())):
            yield f"{operation['StartTime'].astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def _listed(client: Any) -> Iterator[dict[str, Any]]:
    token: dict[str, str] = {}
    while True:
        answer = client.list_bulk_operations(**token)
        yield from answer["BulkOperationsSummaryList"]
        if not answer.get("NextToken"):
            return
        token = {"NextToken": answer["NextToken"]}
