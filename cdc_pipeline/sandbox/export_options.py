"""Times of the sandbox's exports: AWS's, or shorter ones."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """Times of exports. `delay_seconds`: shortest time IN_PROGRESS.

    The others default to AWS's. `least_window_seconds`: shortest window of an incremental export.
    `restorable_lag_seconds`: distance of LatestRestorableDateTime from now.
    """

    delay_seconds: float = 0.5
    least_window_seconds: float = 15 * 60
    restorable_lag_seconds: float = 5 * 60


# For the demo, whose sandbox is minutes old: with AWS's 900 s it could heal no gap in the first
# quarter of an hour.
QUICK_WINDOW_SECONDS = 1.0
QUICK_EXPORTS = ExportOptions(least_window_seconds=QUICK_WINDOW_SECONDS, restorable_lag_seconds=0)
