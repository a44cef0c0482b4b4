"""Shadow baselines: staged beside the live one, then released to take its place, or discarded.

Readers see the live baseline until a publication swaps to a released one, in one commit. A
discarded one leaves a new generation behind, in which the live baseline's changes go on.
"""

from cdc_pipeline.core.log.entries import Baseline
from cdc_pipeline.lake.lake import TableLake
from cdc_pipeline.lake.publish.baselines import record_baseline


def held_shadow(table: TableLake) -> Baseline | None:
    """The shadow that waits for a decision, None if there is none or it is not staged yet."""
    shadow = table.log.load().shadow
    return shadow if shadow and shadow.snapshot_id is not None else None


def release_shadow(table: TableLake, shadow: Baseline) -> None:
    """Make the shadow a baseline like any other: the next publication begins with it."""
    log = table.log
    record_baseline(log, log.load(), shadow, shadow=False)


def discard_shadow(table: TableLake, shadow: Baseline) -> None:
    """Decide against a shadow; maintenance removes its files when they are old enough.

    Engines that read `<table>_snapshot` by its catalogue see the live baseline again; that is done
    first, so that a run killed in between finds the shadow still held.
    """
    log = table.log
    state = log.load()
    staged = table.iceberg("snapshot")
    current = staged.current_snapshot() if staged else None
    if staged and current and state.staged and current.snapshot_id == shadow.snapshot_id:
        assert state.staged.snapshot_id is not None  # it is staged
        table.lake.iceberg.make_current(staged, state.staged.snapshot_id)
    record_baseline(log, state, shadow, discarded=True)
