"""Shadow baselines: staged beside the live one, then released to replace it, or discarded.

Readers see the live baseline until a publication changes to a released one, in one commit. After a
discarded one, a new generation remains, in which the changes of the live baseline continue.
"""

from cdc_pipeline.core.log.entries import Baseline
from cdc_pipeline.lake.lake import TableLake
from cdc_pipeline.lake.publish.baselines import record_baseline


def staged_shadow(table: TableLake) -> Baseline | None:
    """Return the staged shadow without a decision, None if there is none."""
    shadow = table.log.load().shadow
    return shadow if shadow and shadow.snapshot_id is not None else None


def release_shadow(table: TableLake, shadow: Baseline) -> None:
    """Make the shadow a normal baseline: the next publication uses it."""
    log = table.log
    record_baseline(log, log.load(), shadow, shadow=False)


def discard_shadow(table: TableLake, shadow: Baseline) -> None:
    """Discard a shadow; maintenance removes its files when they are old enough.

    Engines that read `<table>_snapshot` by its catalogue see the live baseline again. This comes
    first, so that after a kill in between the shadow is still without a decision.
    """
    log = table.log
    state = log.load()
    staged = table.iceberg("snapshot")
    current = staged.current_snapshot() if staged else None
    if staged and current and state.staged and current.snapshot_id == shadow.snapshot_id:
        assert state.staged.snapshot_id is not None  # it is staged
        table.lake.iceberg.make_current(staged, state.staged.snapshot_id)
    record_baseline(log, state, shadow, discarded=True)
