"""Bulk puts: which ran on a table since its newest baseline, for preflight to say.

Whether what StartBulkPutItems writes reaches streams, Kinesis and incremental exports is not
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
from cdc_pipeline.settings.model import Table
from cdc_pipeline.setup.findings import Finding

_CHECK = "bulk puts"


def look_at_bulk_puts(
    source: AwsSession,
    table: Table,
    described: TableDescription,
    log: Callable[[], LogState],
) -> Finding | None:
    """A green finding that warns of bulk puts; None: this botocore does not know the call.

    A list of bulk operations names no tables (botocore 1.44.8's model), so each is described. Who
    may not ask is told that. `log`: reads the capture log; where it cannot be read, which other
    checks tell, every bulk put counts.
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
        found = sorted(_writing_since(client, {table.name, described.arn}, since))
    except (ClientError, BotoCoreError) as error:
        code = error_code(error) if isinstance(error, ClientError) else type(error).__name__
        told = f"not known: ListBulkOperations or DescribeBulkOperation answers {code}"
        return Finding(_CHECK, True, told)
    if not found:
        return Finding(_CHECK, True, "none since the newest baseline")
    return Finding(
        _CHECK,
        True,
        f"warning: {len(found)} since the newest baseline, the last begun {found[-1]}. Whether "
        "the stream has what they wrote is not documented; compare: "
        f"cdc-pipeline reconcile --full {table.safe_name}",
    )


def _writing_since(client: Any, names: set[str], since: datetime) -> Iterator[str]:
    """When those began that wrote to a table and had not ended before the time."""
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
