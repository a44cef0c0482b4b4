"""What a catalogue does of what the lake asks of it, tried on a small table of its own."""

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
    "properties": "keep table properties that a commit sets (watermarks are such)",
    "base": "refuse a commit on a version that is not the last any more",
    "tags": "keep tags (baselines have them)",
}
"""What the lake cannot do without."""

USEFUL = {
    "created_properties": "keep properties given at creation (they are set by a commit)",
    "location": "take the place that it is given (its service, not ours, removes old files there)",
    "untag": "remove tags and branches (erasure refuses to end)",
    "expiry": "expire snapshots (its service must; erasure refuses to end)",
    "drop": f"drop tables (`{TRIAL_TABLE}` stays, and serves the next time)",
}
"""What it can do without, and what that means."""


@dataclass
class Trial:
    """Names of `NEEDED` and `USEFUL` that did not work; `said`: what the catalogue said to them."""

    failed: dict[str, str] = field(default_factory=dict)

    def expect(self, name: str, done: bool, said: str = "it was taken and not done") -> None:
        """Note that something worked or did not."""
        if not done:
            self.failed[name] = said

    def attempt(self, name: str, work: Callable[[], bool]) -> None:
        """Do something and note whether it worked; refusals are answers, too."""
        try:
            self.expect(name, work())
        except CdcPipelineError as error:
            self.failed[name] = error.message
        except (CommitFailedException, NotImplementedError, NoSuchTableError, OSError) as error:
            self.failed[name] = f"{type(error).__name__}: {error}"


def try_catalog(lake: Lake) -> Trial:
    """Create a table, commit, tag, expire and drop; raises `LakeError` where it cannot begin."""
    tables, trial = lake.iceberg, Trial()
    name = (lake.database, TRIAL_TABLE)
    _drop(lake)
    there = _exists(lake)
    if there:
        trial.failed["drop"] = "it refused"
    made = {"cdc_pipeline.created": "1"}
    table = tables.trial_table(TRIAL_TABLE, _ROWS.schema, made)
    if not there:
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
        trial.failed["expiry"] = "a tag keeps what was to expire"
    else:
        trial.attempt("expiry", expire)
    _drop(lake)
    trial.expect("drop", not _exists(lake), "it refused")
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
    """Drop it, with its files where they are the lake's."""
    name = (lake.database, TRIAL_TABLE)
    refusals = (CdcPipelineError, NoSuchTableError, NotImplementedError, OSError)
    with suppress(*refusals):
        lake.iceberg.catalog.purge_table(name)
    if _exists(lake):
        with suppress(*refusals):
            lake.iceberg.catalog.drop_table(name)
    if not _exists(lake):
        lake.store.delete([*lake.store.list(f"iceberg/{lake.database}/{TRIAL_TABLE}/")])
