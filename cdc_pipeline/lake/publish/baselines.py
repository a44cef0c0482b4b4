"""Baselines as snapshots of `<table>_snapshot`: the tags that keep them, and those that are gone.

Whoever else expires snapshots (Athena's VACUUM, Spark, the catalogue's optimizer) knows nothing of
our log, and spares only what a ref names. So each baseline that something is still made from has a
tag.
"""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from cdc_pipeline.core.log.entries import Baseline
from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.lake.iceberg.tables import over_conflicts
from cdc_pipeline.lake.lake import TableLake
from cdc_pipeline.lake.storage.log import CaptureLog, Parts

TAG = "cdc_pipeline_baseline_"
"""What the tags begin with; the generation is behind it."""


def kept_baselines(state: LogState) -> list[Baseline]:
    """Those that states are made from, or may be: staged ones and a held shadow, oldest first."""
    kept = (b for b in state.baselines.values() if b.is_staged or b is state.shadow)
    return sorted(
        (b for b in kept if b.snapshot_id is not None), key=lambda baseline: baseline.generation
    )


def tag_baselines(table: TableLake) -> None:
    """Give every kept baseline its tag, and take those of others away.

    The log is read behind the tags' table, so that a tag never names what an erasure replaced.
    Raises `CommitConflictError` where others keep committing; the next one does it then.
    """

    def tag() -> None:
        found = table.iceberg("snapshot")
        if found is None:
            return
        there = {snapshot.snapshot_id for snapshot in found.metadata.snapshots}
        wanted = {
            f"{TAG}{baseline.generation}": baseline.snapshot_id
            for baseline in kept_baselines(table.log.load())
            if baseline.snapshot_id in there
        }
        table.lake.iceberg.tag(found, TAG, wanted)

    over_conflicts(tag)


def record_baseline(
    log: CaptureLog, state: LogState, baseline: Baseline, **changes: Any
) -> Baseline:
    """Log `changes` of a baseline as it stands; what others decided about it meanwhile stays."""

    def change(now: LogState) -> Parts | None:
        standing = now.baselines[baseline.generation]
        changed = replace(standing, **changes)
        return None if changed == standing else {"baseline": changed}

    log.commit(state, change)
    return state.baselines[baseline.generation]


def forget_baselines(table: TableLake, generations: Collection[int]) -> None:
    """Log that lost or damaged baselines are none any more.

    States between their exports and the next ones are told from an earlier baseline then.
    """
    log = table.log
    state = log.load()
    for generation in sorted(generations):
        record_baseline(log, state, state.baselines[generation], discarded=True)
