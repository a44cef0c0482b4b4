"""The clock of every capture log of a lake, set by a test."""

from collections.abc import Callable

import pytest

from cdc_pipeline.lake.lake import TableLake
from cdc_pipeline.lake.storage.log import CaptureLog


def set_log_clock(
    monkeypatch: pytest.MonkeyPatch,
    clock: Callable[[], float],
    kind: type[CaptureLog] = CaptureLog,
    *,
    margin_us: int | None = 0,
) -> None:
    """Logs read `clock` (seconds since the epoch); `margin_us` None: the settings' own."""

    def log(table: TableLake) -> CaptureLog:
        margin = table.lake.settings.clock_margin_us if margin_us is None else margin_us
        return kind(table.lake.store, table.paths, clock, margin_us=margin)

    monkeypatch.setattr(TableLake, "log", property(log))
