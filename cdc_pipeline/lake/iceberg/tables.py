"""Iceberg tables through PyIceberg: whole-table and whole-day commits, file lists.

A commit asserts the snapshot it was computed from; PyIceberg's automatic retry is off, because
only the caller knows whether its result still holds. The watermark goes with the data.
"""

import dataclasses
import secrets
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import date, datetime, timedelta
from functools import lru_cache
from typing import Any, TypeVar

import pyarrow as pa
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import (
    CommitFailedException,
    CommitStateUnknownException,
    NamespaceAlreadyExistsError,
    NoSuchTableError,
    RESTError,
)
from pyiceberg.expressions import In
from pyiceberg.io import FileIO
from pyiceberg.manifest import DataFile
from pyiceberg.table import ALWAYS_TRUE, Table, Transaction
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.refs import MAIN_BRANCH
from pyiceberg.table.update import (
    AssertCurrentSchemaId,
    AssertRefSnapshotId,
    RemoveSchemasUpdate,
)

from cdc_pipeline.core.errors import LakeError
from cdc_pipeline.lake.iceberg.writer import ROW_GROUP_ROWS, append_stream, append_tables
from cdc_pipeline.lake.storage.store import Store

PROPERTY = "cdc_pipeline."
_DESCRIPTION = "description"
_DESCRIBED = ("columns", "statistics", "misfits")
"""Properties of versions that had no description; Glue takes 512,000 bytes of each."""

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
T = TypeVar("T")


class CommitConflictError(LakeError):
    """Another writer committed to the table first; nothing of ours became visible."""


def over_conflicts(attempt: Callable[[], T]) -> T:
    """Run `attempt` until no other commit comes between what it reads and its own.

    It loads what it needs each time. Raises `CommitConflictError` after five conflicts in a row.
    """
    for _ in range(_ATTEMPTS - 1):
        with suppress(CommitConflictError):
            return attempt()
    return attempt()


class ExpiryIgnoredError(LakeError):
    """The catalogue took a commit that expires snapshots, and kept them."""


class Tables:
    """The Iceberg tables of one database, under `iceberg/<database>/` of the lake.

    `places_tables`: False where the catalogue takes no place from us and chooses its own.
    """

    def __init__(
        self, catalog: Catalog, database: str, store: Store, *, places_tables: bool = True
    ) -> None:
        self.catalog = self._catalog = catalog
        self._database = database
        self._store = store
        self._places_tables = places_tables

    def load(self, name: str) -> Table | None:
        """The table as it is now, None if it was never committed to."""
        try:
            table = self._catalog.load_table((self._database, name))
        except NoSuchTableError:
            return None
        return table if table.current_snapshot() else None

    def replace(
        self,
        name: str,
        rows: pa.RecordBatchReader,
        properties: Mapping[str, str],
        *,
        over: Table | None,
        key: str | None = None,
        described: str | None = None,
    ) -> Table:
        """Make `rows` the whole table in one commit.

        `over`: the table as it was when the rows were computed (None: it had no rows); any
        commit since then raises `CommitConflictError`. The schema becomes the rows' schema. `key`:
        the column of items' keys, whose bounds are written whole.
        `described`: a text that goes with the rows and may be too long for a property, see
        `description`.
        """
        table = over or self._ensure(name, rows.schema)
        if over is None and table.current_snapshot():
            raise _conflict(table)

        summary = {}
        if described is not None:
            path = f"{described_in(self._database, name)}{secrets.token_hex(8)}.json"
            self._store.write(path, described.encode())
            # In the snapshot, too: the file stays as long as the snapshot does.
            summary = {PROPERTY + _DESCRIPTION: self._store.uri(path)}

        def change(transaction: Transaction) -> None:
            _evolve(transaction, rows.schema)
            _bound(transaction, key)
            if _has_rows(table):
                transaction.delete(ALWAYS_TRUE)
            append_stream(transaction, rows, summary)
            transaction.set_properties(_ours(properties) | summary)
            old = [name for name in map(PROPERTY.__add__, _DESCRIBED) if name in table.properties]
            if described is not None and old:
                transaction.remove_properties(*old)

        return self._commit(table, change)

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
        """Make `chunks` (with a `day` column) the rows of some days, in one commit.

        `over` and `key`: as for `replace`. The schema is the chunks'; where it gives a column of
        other days another type, those days are rewritten in it, or `LakeError` says that it cannot
        hold them.
        """
        table = over or self._ensure(name, schema, partition="day")
        if over is None and table.current_snapshot():
            raise _conflict(table)

        def change(transaction: Transaction) -> None:
            others = _other_days(table, days, schema)
            _evolve(transaction, schema)
            _bound(transaction, key)
            if others is not None:
                transaction.overwrite(others)
            elif _has_rows(table) and (old := self.days(table) & {*days}):
                transaction.delete(f"day IN {_listed(old)}")
            append_tables(transaction, chunks)
            transaction.set_properties(_ours(properties))

        return self._commit(table, change)

    def make_current(self, table: Table, snapshot_id: int) -> None:
        """Let engines that know nothing of our log see an earlier snapshot of the table again."""
        with _storage_errors(table.location()), self._conflicts(table):
            table.manage_snapshots().set_current_snapshot(snapshot_id).commit()

    def remove_rows(
        self, table: Table, column: str, values: Collection[str], branch: str = MAIN_BRANCH
    ) -> tuple[Table, int]:
        """Commit the table (or a branch of it) without the rows that have one of `values`.

        Only the files that hold such rows are written anew. There is a new snapshot in any case,
        so that what others computed from an earlier one can no longer be committed, and its
        manifests name no file that is gone: their bounds could tell values of removed rows.
        Returns the table and how many rows were removed; raises as `replace` does.
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
                pass  # an append leaves entries of deleted files behind
            removed = before - _records(transaction.table_metadata, branch)
            items = table_property(table, "items")
            if removed and items is not None and branch == MAIN_BRANCH:
                transaction.set_properties(_ours({"items": str(int(items) - removed)}))

        return self._commit(table, change), removed

    def set_properties(self, table: Table, properties: Mapping[str, str]) -> Table:
        """Commit properties alone; raises as `replace` does, if the rows are others by now."""

        def change(transaction: Transaction) -> None:
            # By themselves properties assert nothing, and what they say is of these rows.
            snapshot = table.metadata.current_snapshot_id
            rows = AssertRefSnapshotId(ref=MAIN_BRANCH, snapshot_id=snapshot)  # type: ignore[call-arg]
            transaction._stage((), (rows,))
            transaction.set_properties(_ours(properties))

        return self._commit(table, change)

    def branch(self, table: Table, name: str, snapshot_id: int) -> Table:
        """The table with a branch at a snapshot; one that a killed run left is begun anew."""
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
                fix="use a catalogue that keeps to Iceberg's rules (docs/catalogues.md)",
            )

    def tag(self, table: Table, prefix: str, wanted: Mapping[str, int | None]) -> None:
        """Make the tags whose names begin with `prefix` those of `wanted`, in one commit.

        Raises `CommitConflictError` when another writer moved one of them meanwhile.
        """
        have = {
            name: ref.snapshot_id
            for name, ref in table.metadata.refs.items()
            if name.startswith(prefix)
        }
        if have == wanted:
            return
        with self._conflicts(table), table.manage_snapshots() as refs:
            for name in have.keys() - wanted.keys():
                refs.remove_tag(name)
            for name, snapshot_id in wanted.items():
                if snapshot_id is not None and have.get(name) != snapshot_id:
                    refs.create_tag(snapshot_id, name)

    @contextmanager
    def _conflicts(self, table: Table) -> Iterator[None]:
        try:
            yield
        except CommitFailedException as error:
            raise _conflict(table) from error

    def days(self, table: Table) -> set[date]:
        """The days that a table partitioned by day has files for."""
        return {*self.rows_by_day(table)}

    def rows_by_day(self, table: Table) -> dict[date, int]:
        """How many rows each day of a table partitioned by day has, for days with files."""
        found = table.inspect.partitions()
        if "partition" not in found.column_names:  # PyIceberg leaves it out while there are none
            return {}
        counts = found.select(["partition", "record_count"]).to_pylist()
        return {row["partition"]["day"]: row["record_count"] for row in counts}

    def day_of_file(self, file: DataFile) -> date:
        """The day that a file of a table partitioned by day holds."""
        return _EPOCH + timedelta(days=file.partition[0])

    def expire(self, table: Table, until: datetime, keep: Collection[int | None]) -> int:
        """Forget snapshots older than `until`, but those to `keep` or that a ref names; how many.

        Their files stay until nothing refers to them and maintenance removes them. Raises
        `ExpiryIgnoredError`.
        """
        named = {ref.snapshot_id for ref in table.metadata.refs.values()}
        old = [
            snapshot.snapshot_id
            for snapshot in table.metadata.snapshots
            if snapshot.timestamp_ms < until.timestamp() * 1000
            and snapshot.snapshot_id not in named
            and snapshot.snapshot_id not in keep
        ]
        with suppress(CommitFailedException):  # the next maintenance will do
            if old:
                table.maintenance.expire_snapshots().by_ids(old).commit()
                if any(table.snapshot_by_id(snapshot_id) for snapshot_id in old):
                    raise ExpiryIgnoredError(
                        f"table {'.'.join(table.name())}: the catalogue keeps snapshots that it "
                        "was told to expire",
                        fix="let its own service expire them, or use another catalogue "
                        "(docs/catalogues.md)",
                    )
            with suppress(RESTError):  # not every catalogue can; it only tidies up
                _forget_schemas(table)
            return len(old)
        return 0

    def _commit(self, table: Table, change: Callable[[Transaction], None]) -> Table:
        transaction = table.transaction()
        try:
            with _storage_errors(table.location()), self._forgotten(table):
                change(transaction)
                return transaction.commit_transaction()
        except CommitFailedException as error:
            raise _conflict(table) from error
        except CommitStateUnknownException as error:
            raise LakeError(
                f"table {'.'.join(table.name())}: the catalogue's answer was lost, so the commit "
                "may or may not stand",
                fix="run it again; either way the result is the same",
            ) from error

    @contextmanager
    def _forgotten(self, table: Table) -> Iterator[None]:
        """A file of the version that we started from is gone with it, if there is another now."""
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
        location = self._place(name) if self._places_tables else None
        with _storage_errors(location or name):
            table = self._catalog.create_table_if_not_exists(
                identifier, schema=schema, location=location, properties=_PROPERTIES
            )
            table = self._settle(table)
            if partition and table.spec().is_unpartitioned():
                # Another first writer may do the same at the same time; then its spec stands.
                with suppress(CommitFailedException), table.update_spec() as spec:
                    spec.add_identity(partition)
                table = self._catalog.load_table(identifier)
        return table

    def trial_table(self, name: str, schema: pa.Schema, properties: Mapping[str, str]) -> Table:
        """A table as the catalogue makes it, or as it is already; for `catalog_trial`."""
        self.ensure_database()
        location = self._place(name) if self._places_tables else None
        return self._catalog.create_table_if_not_exists(
            (self._database, name), schema=schema, location=location, properties={**properties}
        )

    def _settle(self, table: Table) -> Table:
        """Set what a catalogue dropped of the properties that the table was created with.

        Before any data: without them the first commit would be tried again on its own.
        """
        wanted = {name: value for name, value in _PROPERTIES.items() if name != "format-version"}
        if any(table.properties.get(name) != value for name, value in wanted.items()):
            # Another first writer does the same at the same time.
            with suppress(CommitFailedException), table.transaction() as transaction:
                transaction.set_properties(wanted)
            table = self._catalog.load_table(table.name())
        left = [name for name in wanted if name not in table.properties]
        if left:
            raise LakeError(
                f"table {'.'.join(table.name())}: the catalogue does not keep the table property "
                f"{left[0]}, and the lake's watermarks are such properties",
                fix="use a catalogue that keeps to Iceberg's rules (docs/catalogues.md)",
            )
        return table

    def _place(self, name: str) -> str:
        return self._store.uri(f"iceberg/{self._database}/{name}")

    def is_placed(self, table: Table) -> bool:
        """Whether the table's files lie in the lake, where we remove what nothing refers to."""
        found = table.location().removeprefix("file://").removeprefix("file:")
        return f"{found.rstrip('/')}/".startswith(f"{self._place(table.name()[-1])}/")

    def ensure_database(self) -> None:
        """Create the database unless it is there."""
        try:
            self._catalog.create_namespace_if_not_exists(self._database)
        except NamespaceAlreadyExistsError:
            return


def _cast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """Cast, or raise `pa.ArrowInvalid` when a value would change."""
    if pa.types.is_integer(column.type) and pa.types.is_decimal(kind):
        # Arrow asks for room for any integer of that width first, whatever the values are.
        column = column.cast(pa.decimal128(38, kind.scale))
    return column.cast(kind)


def _listed(days: Collection[date]) -> str:
    return "(" + ", ".join(f"'{day.isoformat()}'" for day in sorted(days)) + ")"


def _other_days(table: Table, days: Collection[date], schema: pa.Schema) -> pa.Table | None:
    """The rows of all other days in `schema` if it changes the type of a column, else None."""
    have = table.schema().as_arrow()
    kept = [field for field in have if field.name in schema.names]
    if not _has_rows(table) or all(_same(f, schema.field(f.name)) for f in kept):
        return None
    rows = table.scan(row_filter=f"day NOT IN {_listed(days)}").to_arrow()
    if not rows.num_rows:
        return None
    columns = []
    for field in schema:
        if field.name not in rows.column_names:
            columns.append(pa.nulls(rows.num_rows, field.type))
            continue
        try:
            columns.append(_cast(rows.column(field.name), field.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            was = rows.column(field.name).type
            raise LakeError(
                f"table {'.'.join(table.name())}: column {field.name} of {min(days)} is "
                f"{field.type}, which cannot hold the {was} of other days",
                fix="cast it in the SQL to a type that holds both",
            ) from error
    return pa.Table.from_arrays(columns, schema=schema)


def _conflict(table: Table) -> CommitConflictError:
    return CommitConflictError(
        f"table {'.'.join(table.name())}: another writer committed first",
        fix="run it again; the next run decides on what stands now",
    )


def _records(metadata: TableMetadata, branch: str) -> int:
    snapshot = metadata.snapshot_by_name(branch)
    summary = snapshot.summary if snapshot else None
    return int(summary["total-records"] or 0) if summary else 0


def referenced_files(table: Table) -> set[str]:
    """Every file that a snapshot of the table, or its metadata's history, names."""
    found = {table.metadata_location}
    found.update(earlier.metadata_file for earlier in table.metadata.metadata_log)
    manifests: set[str] = set()
    if PROPERTY + _DESCRIPTION in table.properties:
        found.add(table.properties[PROPERTY + _DESCRIPTION])
    for snapshot in table.metadata.snapshots:
        found.add(snapshot.manifest_list)
        summary = snapshot.summary.additional_properties if snapshot.summary else {}
        if PROPERTY + _DESCRIPTION in summary:
            found.add(summary[PROPERTY + _DESCRIPTION])
        for manifest in snapshot.manifests(table.io):
            if manifest.manifest_path in manifests:
                continue
            manifests.add(manifest.manifest_path)
            entries = manifest.fetch_manifest_entry(table.io, discard_deleted=False)
            found.update(entry.data_file.file_path for entry in entries)
    return {path.removeprefix("file://") for path in found | manifests}


def _has_rows(table: Table) -> bool:
    snapshot = table.current_snapshot()
    summary = snapshot.summary if snapshot else None
    return summary is not None and summary["total-data-files"] != "0"


@contextmanager
def _storage_errors(location: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LakeError(
            f"lake: writing below {location}: {error}",
            fix="check that the place exists, is writable and has room",
        ) from error


def _ours(properties: Mapping[str, str]) -> dict[str, str]:
    return {PROPERTY + name: value for name, value in properties.items()}


def table_property(table: Table, name: str) -> str | None:
    """One of our properties, as the last commit set it."""
    return table.properties.get(PROPERTY + name)


@dataclasses.dataclass(frozen=True)
class _File:
    path: str
    io: FileIO = dataclasses.field(compare=False, repr=False)


@lru_cache(maxsize=32)
def _read_once(file: _File) -> str:
    with _storage_errors(file.path), file.io.new_input(file.path).open() as stream:
        return stream.read().decode()


def description(table: Table) -> str | None:
    """The text that goes with a table's rows; its file never changes. None: it has none."""
    file = table_property(table, _DESCRIPTION)
    return _read_once(_File(file, table.io)) if file else None


def described_in(database: str, name: str) -> str:
    """The folder of a table's descriptions, relative to the lake's root.

    Not below the table itself: there other engines remove what Iceberg's metadata do not name.
    """
    return f"_cdc/{database}/table-descriptions/{name}/"


def _forget_schemas(table: Table) -> None:
    """Drop the schemas of no snapshot: each new attribute makes one, and Iceberg keeps them all."""
    metadata = table.metadata
    used = {s.schema_id for s in metadata.snapshots} | {metadata.current_schema_id}
    unused = sorted({schema.schema_id for schema in metadata.schemas} - used)
    if unused:
        with table.transaction() as transaction:
            # Who adds a snapshot meanwhile adds it on another state of the table.
            same = AssertRefSnapshotId(ref=MAIN_BRANCH, snapshot_id=metadata.current_snapshot_id)  # type: ignore[call-arg]
            schema = AssertCurrentSchemaId(current_schema_id=metadata.current_schema_id)  # type: ignore[call-arg]
            removed = RemoveSchemasUpdate(schema_ids=unused)  # type: ignore[call-arg]
            transaction._stage((removed,), (same, schema))


def _evolve(transaction: Transaction, schema: pa.Schema) -> None:
    """Give the table the schema of rows that replace all it holds.

    A column keeps its field id where its type stays or Iceberg has a promotion for the change.
    Where not, it is dropped and added anew; older snapshots keep reading with their own schema.
    """
    have = transaction.table_metadata.schema().as_arrow()
    changed = [f for f in have if f.name in schema.names and not _same(f, schema.field(f.name))]
    anew = [f.name for f in changed if not _promotes(f.type, schema.field(f.name).type)]
    gone = [f.name for f in have if f.name not in schema.names]
    if anew or gone:
        with transaction.update_schema(allow_incompatible_changes=True) as update:
            for column in anew + gone:
                update.delete_column((column,))
    if changed or any(name not in have.names for name in schema.names):
        with transaction.update_schema() as update:
            update.union_by_name(schema)


def _bound(transaction: Transaction, key: str | None) -> None:
    """Have whole bounds of keys in the manifests, so that engines find the files of one by them.

    Iceberg keeps 16 characters of a text, and all keys of a table may begin with the same.
    """
    if key and transaction.table_metadata.properties.get(_METRICS + key) != "full":
        transaction.set_properties({_METRICS + key: "full"})


def _promotes(old: pa.DataType, new: pa.DataType) -> bool:
    """Whether Iceberg lets readers of the new type read the old one's values."""
    if _is_list(old) and _is_list(new):
        return _promotes(old.value_type, new.value_type)
    if isinstance(old, pa.Decimal128Type) and isinstance(new, pa.Decimal128Type):
        return old.scale == new.scale and old.precision < new.precision
    return pa.types.is_int32(old) and pa.types.is_int64(new)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def _same(one: pa.Field, other: pa.Field) -> bool:
    return _plain(one.type) == _plain(other.type)


def _plain(kind: pa.DataType) -> Any:
    """Iceberg hands strings, binaries and lists back in their `large_` Arrow variants."""
    if _is_list(kind):
        return ("list", _plain(kind.value_type))
    return str(kind).removeprefix("large_")


def data_files(table: Table, snapshot_id: int | None = None) -> list[str]:
    """Paths of the data files of a snapshot; we write no delete files and accept none.

    Raises `LakeError` for a snapshot that is gone: to PyIceberg it is one without files.
    """
    if snapshot_id is not None and table.snapshot_by_id(snapshot_id) is None:
        name = table.name()[-1]
        label = name.removesuffix("_snapshot")
        raise LakeError(
            f"table {name} has no snapshot {snapshot_id} any more, which a baseline of the capture "
            "log is: another engine has expired it",
            fix=f"materialise {label}/pitr_export for a fresh baseline, then `cdc-pipeline "
            f"reconcile {label} --full --repair`, which forgets the lost one",
        )
    paths = []
    for task in table.scan(snapshot_id=snapshot_id).plan_files():
        if task.delete_files:
            raise LakeError(
                f"table {'.'.join(table.name())} has row-level delete files, which are not ours",
                fix="compact it with the engine that wrote them",
            )
        paths.append(task.file.file_path.removeprefix("file://"))
    return sorted(paths)
