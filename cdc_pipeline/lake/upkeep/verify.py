"""Verification of a table's files: presence, size, and with content checksum or rows."""

import io
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.table import Table as IcebergTable
from pyiceberg.table.snapshots import Snapshot

from cdc_pipeline.core.clock import time_text
from cdc_pipeline.core.errors import LakeError
from cdc_pipeline.core.log.entries import Baseline
from cdc_pipeline.core.log.state import LogState
from cdc_pipeline.lake.engine.duckdb_session import explain
from cdc_pipeline.lake.iceberg.checksums import (
    LostChecksumsError,
    known_checksums,
    no_checksums,
)
from cdc_pipeline.lake.iceberg.files import live_entries
from cdc_pipeline.lake.iceberg.foreign_files import NamedFiles
from cdc_pipeline.lake.iceberg.properties import PROPERTY
from cdc_pipeline.lake.lake import Lake, TableLake
from cdc_pipeline.lake.publish.baselines import kept_baselines
from cdc_pipeline.lake.publish.cdc import ROWS
from cdc_pipeline.lake.state.base import published_base
from cdc_pipeline.lake.storage.store import Store
from cdc_pipeline.settings.table import Table

_READERS = 8
LANDING, BASELINE, TOMBSTONES, CDC = "landing object", "snapshot", "tombstones", "cdc"
_ICEBERG = (BASELINE, "current_state", TOMBSTONES, CDC)


@dataclass(frozen=True)
class Damage:
    """A file, or a day of cdc, that differs from what was written.

    `kind`: the part of the table. `found`: the damage, as text. `day`: of cdc, to be built again.
    `generation`: of a baseline.
    """

    kind: str
    name: str
    found: str
    fix: str
    day: str | None = None
    generation: int | None = None

    def __str__(self) -> str:
        """Return one line for people."""
        return f"{self.kind} {self.name} {self.found}. Fix: {self.fix}"


@dataclass
class VerificationResult:
    """Result of a verification. `bytes`: of files whose content was read."""

    files: int = 0
    bytes: int = 0
    damages: list[Damage] = field(default_factory=list)


@dataclass(frozen=True)
class _ExpectedFile:
    """Expected size, checksum and rows of a file; `crc32`, `rows`: None if not recorded."""

    kind: str
    key: str
    bytes: int
    crc32: int | None
    rows: int | None
    fix: str
    day: str | None = None
    generation: int | None = None


def verify_files(table: TableLake, *, content: bool) -> VerificationResult:
    """Check every file of the present state of a table, and the days of cdc.

    Files: baselines including earlier ones, landing objects, current_state with its tombstones,
    and cdc. Sizes are compared with the log and the Iceberg manifests. With `content` every file is
    read, and its checksum compared, or its number of rows if it has no checksum.
    """
    state = table.log.load()
    result = VerificationResult()
    expected = [*_landed(table.settings, state), *_iceberg_files(table, state, result)]
    sizes: dict[str, int] = {}
    stores: dict[str, Store] = {}
    for store, folder in _stores(table):
        for stored in store.files(folder):
            sizes[stored.key], stores[stored.key] = stored.bytes, store
    sound = []
    for file in expected:
        result.files += 1
        if file.key not in sizes:
            _add_damage(result, file, "is missing")
        elif sizes[file.key] != file.bytes:
            text = f"has {sizes[file.key]} bytes and was written with {file.bytes}"
            _add_damage(result, file, text)
        else:
            sound.append(file)
    if content:
        with ThreadPoolExecutor(_READERS) as pool:
            damages = pool.map(lambda file: _content_damage(stores, file), sound)
            for file, damage in zip(sound, damages, strict=True):
                result.bytes += file.bytes
                if damage:
                    _add_damage(result, file, damage)
    return result


def _add_damage(result: VerificationResult, file: _ExpectedFile, text: str) -> None:
    damage = Damage(file.kind, file.key, text, file.fix, file.day, file.generation)
    result.damages.append(damage)


def repair_command(table: Table) -> str:
    """Return the command that repairs the present state of a table."""
    return f"cdc-pipeline reconcile {table.safe_name} --full --repair"


def _landed(table: Table, state: LogState) -> Iterator[_ExpectedFile]:
    fix = repair_command(table)
    for landed in state.objects.values():
        yield _ExpectedFile(LANDING, landed.key, landed.bytes, landed.crc32, landed.rows, fix)


def _iceberg_files(
    table: TableLake, state: LogState, result: VerificationResult
) -> Iterator[_ExpectedFile]:
    base = published_base(table)
    live = state.baselines.get(base.generation) if base else state.staged
    baselines = {b.generation: b for b in (*kept_baselines(state), live) if b}
    for kind in _ICEBERG:
        name = f"{table.safe_name}_{kind}"
        built = table.lake.iceberg.load(name)
        if built is None:
            continue
        try:
            if kind == CDC:
                yield from _cdc_files(table, built, result)
            elif kind == BASELINE:
                for baseline in baselines.values():
                    yield from _baseline_files(table, built, baseline, result)
            else:
                yield from _typed_files(table, kind, built, built.current_snapshot(), result)
        except OSError as error:
            damage = Damage(
                kind, name, f"has unreadable metadata ({error})", repair_command(table.settings)
            )
            result.damages.append(damage)


def _baseline_files(
    table: TableLake, staged: IcebergTable, baseline: Baseline, result: VerificationResult
) -> Iterator[_ExpectedFile]:
    snapshot = staged.snapshot_by_id(baseline.snapshot_id or 0)
    if snapshot is not None:
        generation = baseline.generation
        yield from _typed_files(table, BASELINE, staged, snapshot, result, generation)
        return
    text = f"of {time_text(baseline.export_time_us)} UTC has expired"
    name, fix = f"{table.safe_name}_{BASELINE}", repair_command(table.settings)
    result.damages.append(Damage(BASELINE, name, text, fix, generation=baseline.generation))


def _typed_files(
    table: TableLake,
    kind: str,
    built: IcebergTable,
    snapshot: Snapshot | None,
    result: VerificationResult,
    generation: int | None = None,
) -> Iterator[_ExpectedFile]:
    """Yield the files of a version, and add lost checksums to the damages."""
    assert snapshot is not None  # `Tables.load` returns no table without one
    files = [entry.data_file for entry in live_entries(built, snapshot)]
    fix = repair_command(table.settings)
    try:
        checksums = known_checksums(files, snapshot, built.io)
    except LostChecksumsError as error:
        name, found = f"{table.safe_name}_{kind}", f"has no checksums: {error.message}"
        result.damages.append(Damage(kind, name, found, fix, generation=generation))
        checksums = no_checksums(files)
    for file in files:
        yield _ExpectedFile(
            kind,
            _key(table.lake, file.file_path),
            file.file_size_in_bytes,
            checksums.sums[file.file_path],
            file.record_count,
            fix,
            generation=generation,
        )


def _cdc_files(
    table: TableLake, cdc: IcebergTable, result: VerificationResult
) -> Iterator[_ExpectedFile]:
    """Yield the files of cdc, and add days that lack rows to the damages."""
    rows: dict[str, int] = {}
    for task in cdc.scan().plan_files():
        file = task.file
        day = str(table.lake.iceberg.day_of_file(file))
        rows[day] = rows.get(day, 0) + file.record_count
        key, fix = _key(table.lake, file.file_path), _cdc_fix(table.settings, day)
        yield _ExpectedFile(CDC, key, file.file_size_in_bytes, None, file.record_count, fix, day)
    prefix = f"{PROPERTY}{ROWS}."
    for name, expected in sorted(cdc.properties.items()):
        day = name.removeprefix(prefix)
        if name.startswith(prefix) and rows.get(day, 0) != int(expected):
            text = f"holds {rows.get(day, 0)} rows and was built with {expected}"
            result.damages.append(Damage(CDC, day, text, _cdc_fix(table.settings, day), day))


def _cdc_fix(table: Table, day: str) -> str:
    return f"materialise {table.safe_name}/cdc of {day}"


def _key(lake: Lake, path: str) -> str:
    """Return the key in the lake's store; the whole address of a file outside of it."""
    return path.removeprefix("file://").removeprefix(f"{lake.store.uri('').rstrip('/')}/")


def _stores(table: TableLake) -> list[tuple[Store, str]]:
    """Return the stores and folders with the table's files."""
    folders: list[tuple[Store, str]] = [(table.lake.store, table.paths.landing)]
    for kind in _ICEBERG:
        name = f"{table.safe_name}_{kind}"
        folders.append((table.lake.store, f"iceberg/{table.lake.database}/{name}/data/"))
        built = table.lake.iceberg.load(name)
        if built is not None and not table.lake.iceberg.is_placed(built):
            folders.append((NamedFiles(table.lake.iceberg, name), ""))
    return folders


def _content_damage(stores: dict[str, Store], file: _ExpectedFile) -> str | None:
    """Return the damage of a file's content; None: there is none."""
    data = stores[file.key].read(file.key)
    if data is None:
        return "is missing"
    if file.crc32 is not None:
        return None if zlib.crc32(data) == file.crc32 else "was altered: its checksum differs"
    try:
        rows = pq.read_metadata(io.BytesIO(data)).num_rows
    except pa.ArrowInvalid:
        return "is not a Parquet file"
    return None if rows == file.rows else f"holds {rows} rows and was written with {file.rows}"


@contextmanager
def readable_files(table: Table) -> Iterator[None]:
    """Raise `LakeError` if files needed by a comparison cannot be read."""
    try:
        yield
    except (duckdb.Error, OSError, pa.ArrowException) as error:
        raise LakeError(
            f"{table.safe_name}: the lake cannot be read: {explain(error)}",
            fix=repair_command(table),
        ) from error
