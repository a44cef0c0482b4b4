"""Point-in-time recovery: the tables that have it, since when, and the restorable times."""

from typing import Any

from cdc_pipeline.sandbox.aws.dynamodb.journal import Clock, TableJournal
from cdc_pipeline.sandbox.aws.dynamodb.responses import RefusedError, Response, answering
from cdc_pipeline.sandbox.aws.dynamodb.streams import Writes

_DAY_MICROS = 24 * 3600 * 1_000_000
_DEFAULT_RECOVERY_DAYS = 35


class Recovery:
    """Answers the continuous-backup operations and keeps the journals.

    `lag_seconds`: distance of LatestRestorableDateTime from now; 300 in AWS.
    """

    def __init__(self, dynamodb: Any, writes: Writes, clock: Clock, *, lag_seconds: float) -> None:
        self._dynamodb = dynamodb
        self._writes = writes
        self._clock = clock
        self._lag_micros = round(lag_seconds * 1_000_000)
        self._days: dict[str, int] = {}

    def install(self) -> None:
        """Replace the emulator's handlers; once per process."""
        module = self._dynamodb
        self._update_backups = module._update_continuous_backups
        self._delete_table = module._delete_table
        module._describe_continuous_backups = answering(self._describe)
        module._update_continuous_backups = answering(self._change)
        module._delete_table = self._forget_table

    def clear(self) -> None:
        """Remove all data, as the emulator's reset does."""
        self._days.clear()

    def journal(self, table: dict[str, Any]) -> TableJournal:
        """Return the table's journal; refuses if recovery is off."""
        journal = self._writes.journals.get(table["TableId"])
        if journal is None:
            raise RefusedError(
                "PointInTimeRecoveryUnavailableException",
                f"Point in time recovery is not enabled for table '{table['TableName']}'",
            )
        return journal

    def earliest(self, table: dict[str, Any]) -> int:
        """Return EarliestRestorableDateTime in µs of a table with recovery."""
        window = self._days.get(table["TableId"], _DEFAULT_RECOVERY_DAYS) * _DAY_MICROS
        return max(self.journal(table).enabled_micros, self._clock.now() - window)

    def latest(self, table: dict[str, Any]) -> int:
        """Return LatestRestorableDateTime in µs of a table with recovery.

        Directly after enabling recovery it equals the earliest time, as observed in AWS.
        """
        return max(self.earliest(table), self._clock.now() - self._lag_micros)

    def _table(self, data: dict[str, Any]) -> dict[str, Any]:
        name = self._dynamodb._normalize_table_name(data.get("TableName"))
        table = self._dynamodb._tables.get(name)
        if table is None:
            raise RefusedError("TableNotFoundException", f"Table not found: {name}")
        return table

    def _change(self, data: dict[str, Any]) -> dict[str, Any]:
        table = self._table(data)
        specification = data.get("PointInTimeRecoverySpecification") or {}
        days = specification.get("RecoveryPeriodInDays", _DEFAULT_RECOVERY_DAYS)
        if not 1 <= days <= _DEFAULT_RECOVERY_DAYS:
            raise RefusedError(
                "ValidationException", "RecoveryPeriodInDays must be between 1 and 35"
            )
        self._update_backups(data)
        table_id = table["TableId"]
        self._days[table_id] = days
        if not specification.get("PointInTimeRecoveryEnabled"):
            # Disabling recovery deletes its history, in AWS too.
            self._writes.journals.pop(table_id, None)
        elif table_id not in self._writes.journals:
            self._writes.journals[table_id] = TableJournal(self._clock.tick())
        return self._describe(data)

    def _describe(self, data: dict[str, Any]) -> dict[str, Any]:
        table = self._table(data)
        recovery: dict[str, Any] = {"PointInTimeRecoveryStatus": "DISABLED"}
        if table["TableId"] in self._writes.journals:
            # Whole milliseconds inside the window: reported times must be restorable.
            earliest = -(-self.earliest(table) // 1000)
            recovery = {
                "PointInTimeRecoveryStatus": "ENABLED",
                "RecoveryPeriodInDays": self._days[table["TableId"]],
                "EarliestRestorableDateTime": earliest / 1000,
                "LatestRestorableDateTime": max(earliest, self.latest(table) // 1000) / 1000,
            }
        return {
            "ContinuousBackupsDescription": {
                "ContinuousBackupsStatus": "ENABLED",
                "PointInTimeRecoveryDescription": recovery,
            }
        }

    def _forget_table(self, data: dict[str, Any]) -> Response:
        name = self._dynamodb._normalize_table_name(data.get("TableName"))
        table = self._dynamodb._tables.get(name)
        response = self._delete_table(data)
        if response[0] == 200 and table is not None:
            self._writes.journals.pop(table["TableId"], None)
            self._days.pop(table["TableId"], None)
            self._writes.ttl.configure(table, None)
        return response
