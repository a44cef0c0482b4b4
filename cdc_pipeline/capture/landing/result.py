"""Result of a capture run, for logs, metadata and tests."""

from dataclasses import dataclass, field

from cdc_pipeline.core.errors import CdcPipelineError
from cdc_pipeline.core.log.entries import Gap, LandedObject
from cdc_pipeline.core.log.state import LogState


@dataclass
class CaptureResult:
    """Result of one capture run. `days`: rows and bytes landed, by write day.

    `skipped`: records of other tables, or left to another transport. `late`: changes written
    before a watermark that was published already. `warnings`: problems without a failure, for
    people.
    """

    table: str
    rows: int = 0
    quarantined: int = 0
    days: dict[str, tuple[int, int]] = field(default_factory=dict)
    entries: int = 0
    conflicts: int = 0
    orphans_removed: int = 0
    shards_open: int = 0
    shards_finished: int = 0
    watermark_us: int = 0
    seconds: float = 0.0
    failed_shards: dict[str, str] = field(default_factory=dict)
    gaps: list[Gap] = field(default_factory=list)
    skipped: int = 0
    late: int = 0
    warnings: list[str] = field(default_factory=list)

    def add(self, other: "CaptureResult") -> None:
        """Add the result of an earlier stream of the same table."""
        self.rows += other.rows
        self.quarantined += other.quarantined
        self.entries += other.entries
        self.conflicts += other.conflicts
        self.orphans_removed += other.orphans_removed
        self.seconds += other.seconds
        self.failed_shards |= other.failed_shards
        self.gaps = other.gaps + self.gaps
        self.skipped += other.skipped
        self.late += other.late
        self.warnings = other.warnings + self.warnings
        for day, (rows, size) in other.days.items():
            self._add_day(day, rows, size)

    def count(self, objects: list[LandedObject], unreadable: int) -> None:
        """Add one log entry's objects and quarantined records."""
        self.entries += 1
        self.quarantined += unreadable
        for landed in objects:
            self._add_day(landed.day, landed.rows, landed.bytes)
            self.rows += landed.rows

    def _add_day(self, day: str, rows: int, size: int) -> None:
        day_rows, day_bytes = self.days.get(day, (0, 0))
        self.days[day] = (day_rows + rows, day_bytes + size)

    def close(self, state: LogState, seconds: float) -> None:
        """Set the fields known only at the end of the run."""
        shards = state.shards.values()
        self.shards_open = sum(1 for shard in shards if shard.status == "reading")
        self.shards_finished = sum(1 for shard in shards if shard.status == "finished")
        self.watermark_us = state.watermark_us
        self.seconds = seconds


class CaptureFailedError(CdcPipelineError):
    """Some shards could not be read; the records of the others have landed."""
