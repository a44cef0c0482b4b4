"""Reports of preflight: state and findings of each table, and findings of the lake."""

from dataclasses import dataclass, field

from cdc_pipeline.setup.checks.findings import Finding


@dataclass
class TableReport:
    """State and findings of a table. Sizes are up to six hours old; costs are list prices in USD.

    `stream_usd`: per month, reads of changes at the interval of the settings while changes are
    few. `recovery_usd`: per month, point-in-time recovery. `requests_usd`: per month, requests to
    S3 and Glue while nothing changes. `served_stream_usd`, `served_requests_usd`: the same under
    `cdc-pipeline serve` at that pace.
    """

    table: str
    name: str
    transport: str
    role_arn: str | None
    account: str | None = None
    region: str | None = None
    key: str | None = None
    items: int | None = None
    bytes: int | None = None
    export_usd: float | None = None
    recovery_usd: float | None = None
    stream_usd: float | None = None
    requests_usd: float | None = None
    served_stream_usd: float | None = None
    served_requests_usd: float | None = None
    findings: list[Finding] = field(default_factory=list)

    @property
    def is_ready(self) -> bool:
        """Whether all checks passed."""
        return all(finding.green for finding in self.findings)

    def finding(self, check: str) -> Finding | None:
        """Return the finding of a check, None if the check did not run."""
        return next((finding for finding in self.findings if finding.check == check), None)


@dataclass(frozen=True)
class PreflightReport:
    """Findings of the lake and of each table."""

    lake: list[Finding]
    tables: list[TableReport]

    @property
    def is_ready(self) -> bool:
        """Whether all checks passed."""
        findings = [*self.lake, *(f for table in self.tables for f in table.findings)]
        return all(finding.green for finding in findings)
