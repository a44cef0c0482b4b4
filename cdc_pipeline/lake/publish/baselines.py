"""Baselines as snapshots of `<table>_snapshot`: tags, changes in the log, discarding.

Other tools that expire snapshots (Athena's VACUUM, Spark, the catalogue's optimizer) do not read
the capture log and keep only snapshots with a ref. So each baseline in use has a tag.
"""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from cdc_pipeline.core.log.entries import Baseline
from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.lake.iceberg.tables import retry_on_conflict
from cdc_pipeline.lake.lake import TableLake
from cdc_pipeline.lake.storage.log import CaptureLog, Parts

TAG = "cdc_pipeline_baseline_"
"""Prefix of the tags; the generation follows."""


def kept_baselines(state: LogState) -> list[Baseline]:
    """Return the baselines that states are or may be made from, oldest first.

    These are the staged ones and a held shadow.
    """
    kept = (b for b in state.baselines.values() if b.is_staged or b is state.shadow)
    return sorted(
        (b for b in kept if b.snapshot_id is not None), key=lambda baseline: baseline.generation
    )


def tag_baselines(table: TableLake) -> None:
    """Tag every kept baseline and remove the tags of others.

    The log is read after the Iceberg table, so that no tag names a snapshot that an erasure
    replaced. Raises `CommitConflictError` if others keep committing; the next call tags then.
    """

    def tag() -> None:
        staged = table.iceberg("snapshot")
        if staged is None:
            return
        existing = {snapshot.snapshot_id for snapshot in staged.metadata.snapshots}
        tags = {
            f"{TAG}{baseline.generation}": baseline.snapshot_id
            for baseline in kept_baselines(table.log.load())
            if baseline.snapshot_id in existing
        }
        table.lake.iceberg.tag(staged, TAG, tags)

    retry_on_conflict(tag)


def record_baseline(
    log: CaptureLog, state: LogState, baseline: Baseline, **changes: Any
) -> Baseline:
    """Log `changes` to a baseline's fields; keep what other writers changed meanwhile."""

    def change(now: LogState) -> Parts | None:
        current = now.baselines[baseline.generation]
        changed = replace(current, **changes)
        return None if changed == current else {"baseline": changed}

    log.commit(state, change)
    return state.baselines[baseline.generation]


def discard_baselines(table: TableLake, generations: Collection[int]) -> None:
    """Log that lost or damaged baselines are discarded.

    States between their exports and the next ones are then made from an earlier baseline.
    """
    log = table.log
    state = log.load()
    for generation in sorted(generations):
        record_baseline(log, state, state.baselines[generation], discarded=True)
