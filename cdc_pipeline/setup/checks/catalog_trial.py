"""Trial of a catalogue: the features that the lake needs, tried on a small table."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import pyarrow as pa
from pyiceberg.exceptions import CommitFailedException, NoSuchTableError
from pyiceberg.table import Table

from cdc_pipeline.core.errors import CdcPipelineError
from cdc_pipeline.lake.lake import Lake

TRIAL_TABLE = "cdc_pipeline_preflight"
_ROWS = pa.table({"_key": ["a", "b"]})
_TAG = "cdc_pipeline_preflight"

NEEDED = {
    "properties": "keep table properties set by a commit (such as watermarks)",
    "base": "refuse a commit based on an outdated version",
    "tags": "keep tags (baselines have them)",
}
"""Features that the lake needs."""

USEFUL = {
    "created_properties": "keep properties given at creation (a commit sets them instead)",
    "location": "accept a given location (its service removes old files there, not maintenance)",
    "untag": "remove tags and branches (erasure cannot complete)",
    "expiry": "expire snapshots (its service must; erasure cannot complete)",
    "drop": f"drop tables (`{TRIAL_TABLE}` stays and is used again next time)",
}
"""Optional features, each with the consequence of its absence."""


@dataclass
class Trial:
    """Failed features (keys of `NEEDED` and `USEFUL`) with the catalogue's answer."""

    failed: dict[str, str] = field(default_factory=dict)

    def expect(self, name: str, done: bool, answer: str = "accepted, but not done") -> None:
        """Record the outcome of a feature."""
        if not done:
            self.failed[name] = answer

    def attempt(self, name: str, work: Callable[[], bool]) -> None:
        """Try a feature and record its outcome; a refusal is an outcome, too."""
        try:
            self.expect(name, work())
        except CdcPipelineError as error:
            self.failed[name] = error.message
        except (CommitFailedException, NotImplementedError, NoSuchTableError, OSError) as error:
            self.failed[name] = f"{type(error).__name__}: {error}"


def try_catalog(lake: Lake) -> Trial:
    """Create a table, commit, tag, expire and drop; raises `LakeError` if creation fails."""
    tables, trial = lake.iceberg, Trial()
    name = (lake.database, TRIAL_TABLE)
    _drop(lake)
    is_left = _exists(lake)
    if is_left:
        trial.failed["drop"] = "refused"
    created = {"cdc_pipeline.created": "1"}
    table = tables.trial_table(TRIAL_TABLE, _ROWS.schema, created)
    if not is_left:
        trial.expect("created_properties", table.properties.get("cdc_pipeline.created") == "1")
    trial.expect("location", tables.is_placed(table), table.location())

    def set_properties() -> bool:
        with table.transaction() as transaction:
            transaction.set_properties({"commit.retry.num-retries": "0", "cdc_pipeline.set": "1"})
        return tables.catalog.load_table(name).properties.get("cdc_pipeline.set") == "1"

    trial.attempt("properties", set_properties)
    if "properties" in trial.failed:
        return trial
    table.append(_ROWS)
    first = table.metadata.current_snapshot_id
    assert first is not None  # an append makes one
    trial.attempt("base", lambda: _refuses_stale(tables.catalog.load_table(name), table))
    table = tables.catalog.load_table(name)

    def tag() -> bool:
        table.manage_snapshots().create_tag(first, _TAG).commit()
        return _TAG in tables.catalog.load_table(name).metadata.refs

    def untag() -> bool:
        table.manage_snapshots().remove_tag(_TAG).commit()
        return _TAG not in tables.catalog.load_table(name).metadata.refs

    def expire() -> bool:
        table.maintenance.expire_snapshots().by_ids([first]).commit()
        return tables.catalog.load_table(name).snapshot_by_id(first) is None

    trial.attempt("tags", tag)
    if "tags" not in trial.failed:
        trial.attempt("untag", untag)
    if "untag" in trial.failed:
        trial.failed["expiry"] = "not tried: the tag was not removed and keeps the snapshot"
    else:
        trial.attempt("expiry", expire)
    _drop(lake)
    trial.expect("drop", not _exists(lake), "refused")
    return trial


def _refuses_stale(stale: Table, table: Table) -> bool:
    table.append(_ROWS)
    try:
        stale.append(_ROWS)
    except CommitFailedException:
        return True
    return False


def _exists(lake: Lake) -> bool:
    try:
        lake.iceberg.catalog.load_table((lake.database, TRIAL_TABLE))
    except NoSuchTableError:
        return False
    return True


def _drop(lake: Lake) -> None:
    """Drop the trial table, with its files if they are in the lake."""
    name = (lake.database, TRIAL_TABLE)
    refusals = (CdcPipelineError, NoSuchTableError, NotImplementedError, OSError)
    with suppress(*refusals):
        lake.iceberg.catalog.purge_table(name)
    if _exists(lake):
        with suppress(*refusals):
            lake.iceberg.catalog.drop_table(name)
    if not _exists(lake):
        lake.store.delete([*lake.store.list(f"iceberg/{lake.database}/{TRIAL_TABLE}/")])
