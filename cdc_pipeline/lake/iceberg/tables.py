"""Iceberg tables through PyIceberg: commits of whole tables and days, lists of files.

A commit asserts the snapshot it was computed from. PyIceberg's automatic retry is off, because only
the caller can decide whether its result is still valid. The watermark is committed with the data.
"""

import secrets
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import date, datetime, timedelta
from typing import TypeVar

import pyarrow as pa
from pyiceberg.catalog import Catalog
from pyiceberg.catalog.rest import RestCatalog
from pyiceberg.exceptions import (
    CommitFailedException,
    CommitStateUnknownException,
    NamespaceAlreadyExistsError,
    NoSuchTableError,
    RESTError,
)
from pyiceberg.expressions import In
from pyiceberg.manifest import DataFile
from pyiceberg.table import ALWAYS_TRUE, Table, Transaction
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.refs import MAIN_BRANCH
from pyiceberg.table.update import (
    AssertRefSnapshotId,
)
from pyiceberg.table.update.snapshot import ExpireSnapshots

from cdc_pipeline.core.errors import LakeError
from cdc_pipeline.lake.iceberg.checksums import ChecksumFolder, checksum_folder
from cdc_pipeline.lake.iceberg.evolution import (
    evolve,
    forget_schemas,
    has_rows,
    listed_days,
    other_days,
)
from cdc_pipeline.lake.iceberg.files import live_files
from cdc_pipeline.lake.iceberg.properties import (
    DESCRIPTION,
    PROPERTY,
    description_folder,
    table_property,
    with_prefix,
)
from cdc_pipeline.lake.iceberg.row_delta import RowDelta, append_to_empty, commit_row_delta
from cdc_pipeline.lake.iceberg.writer import (
    ROW_GROUP_ROWS,
    WrittenFiles,
    append_stream,
    append_tables,
)
from cdc_pipeline.lake.storage.errors import storage_errors
from cdc_pipeline.lake.storage.store import Store

_DESCRIBED = ("columns", "statistics", "misfits")
"""Properties of older versions without a description; Glue accepts 512,000 bytes each."""

_EPOCH = date(1970, 1, 1)
_PROPERTIES = {
    "format-version": "2",
    "commit.retry.num-retries": "0",
    "write.parquet.compression-codec": "zstd",
    "write.parquet.row-group-limit": str(ROW_GROUP_ROWS),
    "write.metadata.delete-after-commit.enabled": "true",
    "write.metadata.previous-versions-max": "50",
}


_METRICS = "write.metadata.metrics.column."
_ATTEMPTS = 5
_ROW_DELTA = f"{PROPERTY}row_delta"
_EXPIRED_AT_ONCE = 60
T = TypeVar("T")


class CommitConflictError(LakeError):
    """Another writer committed to the table first; nothing of this commit became visible."""


def retry_on_conflict(attempt: Callable[[], T]) -> T:
    """Run `attempt` again after each commit conflict, up to five times.

    `attempt` must load its inputs each time. Raises `CommitConflictError` after five conflicts.
    """
    for _ in range(_ATTEMPTS - 1):
        with suppress(CommitConflictError):
            return attempt()
    return attempt()


class ExpiryIgnoredError(LakeError):
    """The catalogue accepted a commit that expires snapshots, and kept the snapshots."""


class Tables:
    """The Iceberg tables of one database, under `iceberg/<database>/` of the lake.

    `places_tables`: whether the lake chooses a table's location; False: the catalogue does.
    """

    def __init__(
        self, catalog: Catalog, database: str, store: Store, *, places_tables: bool = True
    ) -> None:
        self.catalog = self._catalog = catalog
        self._database = database
        self._store = store
        self._places_tables = places_tables

    def load(self, name: str) -> Table | None:
        """Load the table as it is now; None if it has no commit."""
        try:
            table = self._catalog.load_table((self._database, name))
        except NoSuchTableError:
            return None
        return table if table.current_snapshot() else None

    def replace(
        self,
        name: str,
        rows: pa.RecordBatchReader | WrittenFiles,
        properties: Mapping[str, str],
        *,
        over: Table | None,
        key: str | None = None,
        described: str | Callable[[], str] | None = None,
    ) -> Table:
        """Replace the whole table by `rows`, or by files that have them, in one commit.

        `over`: the table as loaded when the rows were computed (None: it had no rows); any later
        commit raises `CommitConflictError`. The schema becomes the rows' schema. `key`: the column
        of item keys, whose bounds are stored in full. `described`: a text stored with the rows that
        may be too long for a property, see `description`; a function is called behind the last row.
        """
        table = over or self._ensure(name, rows.schema)
        if over is None and table.current_snapshot():
            raise _conflict(table)

        path = self._description_path(name) if described is not None else None
        summary = {PROPERTY + DESCRIPTION: self._store.uri(path)} if path else {}

        def change(transaction: Transaction) -> None:
            evolve(transaction, rows.schema)
            _bound(transaction, key)
            has_dead_rows = bool(live_files(table).deletes)
            if has_rows(table):
                transaction.delete(ALWAYS_TRUE)
            append = append_to_empty if has_dead_rows else append_stream
            append(transaction, rows, summary, self._checksums(name))
            if path and described is not None:
                text = described if isinstance(described, str) else described()
                self._store.write(path, text.encode())
                _drop_described_properties(transaction)
            transaction.set_properties(with_prefix(properties) | summary)

        return self._commit(table, change)

    def planned(
        self, name: str, schema: pa.Schema, *, over: Table | None, key: str | None = None
    ) -> TableMetadata:
        """Return the metadata by which files for `replace` are written.

        It has the field ids that the commit gives to the columns of `schema`, and neither snapshots
        nor times, so that the same plan has the same text. Arguments as there; a table without a
        commit is created.
        """
        transaction = (over or self._ensure(name, schema)).transaction()
        evolve(transaction, schema)
        _bound(transaction, key)
        return transaction.table_metadata.model_copy(
            update={
                "last_updated_ms": 0,
                "current_snapshot_id": None,
                "snapshots": [],
                "snapshot_log": [],
                "metadata_log": [],
                "refs": {},
            }
        )

    def change_rows(
        self,
        table: Table,
        delta: RowDelta,
        schema: pa.Schema,
        properties: Mapping[str, str],
        *,
        described: str | None = None,
        expired: Collection[int] = (),
    ) -> Table:
        """Commit a row delta over the table as loaded; raises the errors of `replace`.

        `schema`: of the delta's rows; it has every column of the table, in a type that Iceberg can
        promote the present one to, see `holds`. `expired`: snapshots to expire in the same commit;
        by a REST catalogue some at a time, because it may refuse that and the whole commit with it.
        """
        name = table.name()[-1]
        summary = self._describe(name, described) if described is not None else {}
        expires_later = isinstance(self._catalog, RestCatalog)

        def change(transaction: Transaction) -> None:
            evolve(transaction, schema)
            properties_of_delta = {**summary, _ROW_DELTA: "true"}
            commit_row_delta(transaction, delta, properties_of_delta, self._checksums(name))
            transaction.set_properties(with_prefix(properties) | summary)
            if described is not None:
                _drop_described_properties(transaction)
            if expired and not expires_later:
                ExpireSnapshots(transaction).by_ids([*expired]).commit()

        committed = self._commit(table, change)
        if expires_later and len(expired) >= _EXPIRED_AT_ONCE:
            with suppress(ExpiryIgnoredError, RESTError, CommitFailedException):
                _expire(committed, [*expired])
        return committed

    def _describe(self, name: str, text: str) -> dict[str, str]:
        """Store a description; return its property for the table.

        It belongs in the snapshot's summary, too: the file is kept as long as the snapshot.
        """
        path = self._description_path(name)
        self._store.write(path, text.encode())
        return {PROPERTY + DESCRIPTION: self._store.uri(path)}

    def _checksums(self, name: str) -> ChecksumFolder:
        return ChecksumFolder(self._store, checksum_folder(self._database, name))

    def _description_path(self, name: str) -> str:
        return f"{description_folder(self._database, name)}{secrets.token_hex(8)}.json"

    def replace_days(
        self,
        name: str,
        days: Collection[date],
        schema: pa.Schema,
        chunks: Iterable[pa.Table],
        properties: Mapping[str, str],
        *,
        over: Table | None,
        key: str | None = None,
    ) -> Table:
        """Replace the rows of some days by `chunks` (with a `day` column), in one commit.

        `over` and `key`: as in `replace`. The schema becomes the chunks' schema. If it changes the
        type of a column, other days are rewritten in it; raises `LakeError` if the new type cannot
        hold their values.
        """
        table = over or self._ensure(name, schema, partition="day")
        if over is None and table.current_snapshot():
            raise _conflict(table)

        def change(transaction: Transaction) -> None:
            others = other_days(table, days, schema)
            evolve(transaction, schema)
            _bound(transaction, key)
            if others is not None:
                transaction.overwrite(others)
            elif has_rows(table) and (old := self.days(table) & {*days}):
                transaction.delete(f"day IN {listed_days(old)}")
            append_tables(transaction, chunks, self._checksums(name))
            transaction.set_properties(with_prefix(properties))

        return self._commit(table, change)

    def make_current(self, table: Table, snapshot_id: int) -> None:
        """Make an earlier snapshot current again, for engines that do not read the capture log."""
        with storage_errors(table.location()), self._conflicts(table):
            table.manage_snapshots().set_current_snapshot(snapshot_id).commit()

    def remove_rows(
        self, table: Table, column: str, values: Collection[str], branch: str = MAIN_BRANCH
    ) -> tuple[Table, int]:
        """Commit the table (or a branch) without the rows that have one of `values` in `column`.

        Only files with such rows are rewritten. A new snapshot is made in any case: it prevents
        commits computed from an earlier one, and its manifests name no deleted file, whose bounds
        could have values of removed rows. Returns the table and the number of removed rows; raises
        the errors of `replace`.
        """
        before = _records(table.metadata, branch)
        removed = 0

        def change(transaction: Transaction) -> None:
            nonlocal removed
            if values and before:
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "Delete operation did not match any records")
                    transaction.delete(In(column, values), branch=branch)  # type: ignore[call-arg]
            with transaction.update_snapshot(branch=branch).fast_append():
                pass  # an append drops the entries of deleted files
            removed = before - _records(transaction.table_metadata, branch)
            items = table_property(table, "items")
            if removed and items is not None and branch == MAIN_BRANCH:
                transaction.set_properties(with_prefix({"items": str(int(items) - removed)}))

        return self._commit(table, change), removed

    def set_properties(self, table: Table, properties: Mapping[str, str]) -> Table:
        """Commit properties only; raises `CommitConflictError` if the rows have changed."""

        def change(transaction: Transaction) -> None:
            # A commit of properties asserts nothing by itself, and these belong to the rows.
            snapshot = table.metadata.current_snapshot_id
            rows = AssertRefSnapshotId(ref=MAIN_BRANCH, snapshot_id=snapshot)  # type: ignore[call-arg]
            transaction._stage((), (rows,))
            transaction.set_properties(with_prefix(properties))

        return self._commit(table, change)

    def branch(self, table: Table, name: str, snapshot_id: int) -> Table:
        """Create a branch at a snapshot, replacing one left by a killed run; return the table."""
        with self._conflicts(table):
            if name in table.metadata.refs:
                table.manage_snapshots().remove_branch(name).commit()
            table.manage_snapshots().create_branch(snapshot_id, name).commit()
        return table

    def drop_branch(self, table: Table, name: str) -> None:
        """Drop a branch; its snapshots stay until they expire."""
        with self._conflicts(table):
            table.manage_snapshots().remove_branch(name).commit()
        if name in table.metadata.refs:
            raise LakeError(
                f"table {'.'.join(table.name())}: the catalogue did not drop the branch {name}",
                fix="use a catalogue that follows the Iceberg specification (docs/catalogues.md)",
            )

    def tag(self, table: Table, prefix: str, tags: Mapping[str, int | None]) -> None:
        """Make `tags` the only tags with names beginning with `prefix`, in one commit.

        Raises `CommitConflictError` if another writer moved one of them meanwhile.
        """
        existing = {
            name: ref.snapshot_id
            for name, ref in table.metadata.refs.items()
            if name.startswith(prefix)
        }
        if existing == tags:
            return
        with self._conflicts(table), table.manage_snapshots() as refs:
            for name in existing.keys() - tags.keys():
                refs.remove_tag(name)
            for name, snapshot_id in tags.items():
                if snapshot_id is not None and existing.get(name) != snapshot_id:
                    refs.create_tag(snapshot_id, name)

    @contextmanager
    def _conflicts(self, table: Table) -> Iterator[None]:
        try:
            yield
        except CommitFailedException as error:
            raise _conflict(table) from error

    def days(self, table: Table) -> set[date]:
        """Return the days with files of a table partitioned by day."""
        return {*self.rows_by_day(table)}

    def rows_by_day(self, table: Table) -> dict[date, int]:
        """Return the number of rows per day of a table partitioned by day, for days with files."""
        partitions = table.inspect.partitions()
        if "partition" not in partitions.column_names:  # PyIceberg omits it without partitions
            return {}
        counts = partitions.select(["partition", "record_count"]).to_pylist()
        return {row["partition"]["day"]: row["record_count"] for row in counts}

    def day_of_file(self, file: DataFile) -> date:
        """Return the day of a file in a table partitioned by day."""
        return _EPOCH + timedelta(days=file.partition[0])

    def expire(self, table: Table, until: datetime, keep: Collection[int | None]) -> int:
        """Expire snapshots older than `until`, except `keep` and those with a ref.

        Their files stay until maintenance removes them as unreferenced. Returns the number of
        expired snapshots. Raises `ExpiryIgnoredError`.
        """
        named = {ref.snapshot_id for ref in table.metadata.refs.values()}
        old = [
            snapshot.snapshot_id
            for snapshot in table.metadata.snapshots
            if snapshot.timestamp_ms < until.timestamp() * 1000
            and snapshot.snapshot_id not in named
            and snapshot.snapshot_id not in keep
        ]
        with suppress(CommitFailedException):  # the next maintenance expires them
            if old:
                _expire(table, old)
            with suppress(RESTError):  # optional, and not every catalogue supports it
                forget_schemas(table)
            return len(old)
        return 0

    def _commit(self, table: Table, change: Callable[[Transaction], None]) -> Table:
        transaction = table.transaction()
        try:
            with storage_errors(table.location()), self._conflict_if_replaced(table):
                change(transaction)
                return transaction.commit_transaction()
        except CommitFailedException as error:
            raise _conflict(table) from error
        except CommitStateUnknownException as error:
            raise LakeError(
                f"table {'.'.join(table.name())}: the catalogue's response was lost, so the commit "
                "may or may not have succeeded",
                fix="run it again; the result is the same in both cases",
            ) from error

    @contextmanager
    def _conflict_if_replaced(self, table: Table) -> Iterator[None]:
        """Raise a conflict for a missing file if the version it belongs to was replaced."""
        before = table.metadata.current_snapshot_id
        try:
            yield
        except FileNotFoundError as error:
            now = self._catalog.load_table(table.name()).metadata
            if now.current_snapshot_id != before:
                raise _conflict(table) from error
            raise

    def _ensure(self, name: str, schema: pa.Schema, partition: str | None = None) -> Table:
        self.ensure_database()
        identifier = (self._database, name)
        location = self._location(name) if self._places_tables else None
        with storage_errors(location or name):
            table = self._catalog.create_table_if_not_exists(
                identifier, schema=schema, location=location, properties=_PROPERTIES
            )
            table = self._settle(table)
            if partition and table.spec().is_unpartitioned():
                # Another first writer may do the same at the same time; then its spec is used.
                with suppress(CommitFailedException), table.update_spec() as spec:
                    spec.add_identity(partition)
                table = self._catalog.load_table(identifier)
        return table

    def trial_table(self, name: str, schema: pa.Schema, properties: Mapping[str, str]) -> Table:
        """Create a table as the catalogue makes it, or load it; for `catalog_trial`."""
        self.ensure_database()
        location = self._location(name) if self._places_tables else None
        return self._catalog.create_table_if_not_exists(
            (self._database, name), schema=schema, location=location, properties={**properties}
        )

    def _settle(self, table: Table) -> Table:
        """Set the creation properties that a catalogue dropped.

        This precedes any data: without them PyIceberg would retry the first commit by itself.
        """
        required = {name: value for name, value in _PROPERTIES.items() if name != "format-version"}
        if any(table.properties.get(name) != value for name, value in required.items()):
            # Another first writer may do the same at the same time.
            with suppress(CommitFailedException), table.transaction() as transaction:
                transaction.set_properties(required)
            table = self._catalog.load_table(table.name())
        missing = [name for name in required if name not in table.properties]
        if missing:
            raise LakeError(
                f"table {'.'.join(table.name())}: the catalogue does not keep the table property "
                f"{missing[0]}, and the lake's watermarks are table properties",
                fix="use a catalogue that follows the Iceberg specification (docs/catalogues.md)",
            )
        return table

    def _location(self, name: str) -> str:
        return self._store.uri(f"iceberg/{self._database}/{name}")

    def is_placed(self, table: Table) -> bool:
        """Whether the table's files are in the lake, where maintenance removes them."""
        location = table.location().removeprefix("file://").removeprefix("file:")
        return f"{location.rstrip('/')}/".startswith(f"{self._location(table.name()[-1])}/")

    def ensure_database(self) -> None:
        """Create the database unless it exists."""
        try:
            self._catalog.create_namespace_if_not_exists(self._database)
        except NamespaceAlreadyExistsError:
            return


def _expire(table: Table, snapshot_ids: list[int]) -> None:
    table.maintenance.expire_snapshots().by_ids(snapshot_ids).commit()
    if any(table.snapshot_by_id(snapshot_id) for snapshot_id in snapshot_ids):
        raise ExpiryIgnoredError(
            f"table {'.'.join(table.name())}: the catalogue did not expire snapshots as requested",
            fix="let its own service expire them, or use another catalogue (docs/catalogues.md)",
        )


def _drop_described_properties(transaction: Transaction) -> None:
    """Drop what older versions had as properties: the description has it now."""
    present = transaction.table_metadata.properties
    old = [name for name in map(PROPERTY.__add__, _DESCRIBED) if name in present]
    if old:
        transaction.remove_properties(*old)


def delta_snapshots(table: Table, until: datetime) -> list[int]:
    """Return the snapshots of row deltas older than `until` that no ref names."""
    named = {ref.snapshot_id for ref in table.metadata.refs.values()}
    return [
        snapshot.snapshot_id
        for snapshot in table.metadata.snapshots
        if snapshot.timestamp_ms < until.timestamp() * 1000
        and snapshot.snapshot_id not in named
        and snapshot.summary is not None
        and _ROW_DELTA in snapshot.summary.additional_properties
    ]


def _conflict(table: Table) -> CommitConflictError:
    return CommitConflictError(
        f"table {'.'.join(table.name())}: another writer committed first",
        fix="run it again; the next run starts from the present state",
    )


def _records(metadata: TableMetadata, branch: str) -> int:
    snapshot = metadata.snapshot_by_name(branch)
    summary = snapshot.summary if snapshot else None
    return int(summary["total-records"] or 0) if summary else 0


def _bound(transaction: Transaction, key: str | None) -> None:
    """Store full bounds of keys in the manifests, so that engines find the files of a key.

    By default Iceberg stores 16 characters of a text, and all keys may begin with the same ones.
    """
    if key and transaction.table_metadata.properties.get(_METRICS + key) != "full":
        transaction.set_properties({_METRICS + key: "full"})
