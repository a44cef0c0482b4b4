"""Verification of a table's files: each is there, and holds what was written to it."""

import io
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

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
from cdc_pipeline.lake.iceberg.foreign_files import NamedFiles
from cdc_pipeline.lake.iceberg.tables import PROPERTY
from cdc_pipeline.lake.iceberg.writer import CHECKSUMS
from cdc_pipeline.lake.lake import Lake, TableLake
from cdc_pipeline.lake.publish.baselines import kept_baselines
from cdc_pipeline.lake.publish.cdc import ROWS
from cdc_pipeline.lake.publish.current_state import published_base
from cdc_pipeline.lake.storage.store import Store
from cdc_pipeline.settings.model import Table

_AT_ONCE = 8
LANDING, BASELINE, TOMBSTONES, CDC = "landing object", "snapshot", "tombstones", "cdc"
_ICEBERG = (BASELINE, "current_state", TOMBSTONES, CDC)


@dataclass(frozen=True)
class Damage:
    """A file, or a day of cdc, that is not what was written.

    `kind`: what it is part of. `day`: of cdc, to be built again. `generation`: of a baseline.
    """

    kind: str
    name: str
    found: str
    fix: str
    day: str | None = None
    generation: int | None = None

    def __str__(self) -> str:
        """One line for people."""
        return f"{self.kind} {self.name} {self.found}. Fix: {self.fix}"


@dataclass
class Verified:
    """What was looked at. `bytes`: of the files whose content was read."""

    files: int = 0
    bytes: int = 0
    damages: list[Damage] = field(default_factory=list)


@dataclass(frozen=True)
class _File:
    """What a file must be; `crc32` and `rows` are None where nobody wrote them down."""

    kind: str
    key: str
    bytes: int
    crc32: int | None
    rows: int | None
    fix: str
    day: str | None = None
    generation: int | None = None


def verify_files(table: TableLake, *, content: bool) -> Verified:
    """Check every file that the present state of a table is made of, and the days of cdc.

    Looked at are the baselines, earlier ones too, landing objects, current_state with its
    tombstones, and cdc.
    Sizes are compared with what the log and the Iceberg manifests say; with `content` every file
    is read, and its checksum compared, or its rows where it was written without one.
    """
    state = table.log.load()
    done = Verified()
    expected = [*_landed(table.settings, state), *_iceberg_files(table, state, done)]
    sizes: dict[str, int] = {}
    stores: dict[str, Store] = {}
    for store, folder in _stores(table):
        for there in store.files(folder):
            sizes[there.key], stores[there.key] = there.bytes, store
    sound = []
    for file in expected:
        done.files += 1
        if file.key not in sizes:
            _note(done, file, "is missing")
        elif sizes[file.key] != file.bytes:
            _note(done, file, f"has {sizes[file.key]} bytes and was written with {file.bytes}")
        else:
            sound.append(file)
    if content:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for file, found in zip(
                sound, pool.map(lambda f: _content(stores, f), sound), strict=True
            ):
                done.bytes += file.bytes
                if found:
                    _note(done, file, found)
    return done


def _note(done: Verified, file: _File, found: str) -> None:
    damage = Damage(file.kind, file.key, found, file.fix, file.day, file.generation)
    done.damages.append(damage)


def repair_command(table: Table) -> str:
    """What makes the present state of a table sound again."""
    return f"cdc-pipeline reconcile {table.safe_name} --full --repair"


def _landed(table: Table, state: LogState) -> Iterator[_File]:
    fix = repair_command(table)
    for landed in state.objects.values():
        yield _File(LANDING, landed.key, landed.bytes, landed.crc32, landed.rows, fix)


def _iceberg_files(table: TableLake, state: LogState, done: Verified) -> Iterator[_File]:
    base = published_base(table)
    live = state.baselines.get(base.generation) if base else state.staged
    baselines = {b.generation: b for b in (*kept_baselines(state), live) if b}
    for kind in _ICEBERG:
        name = f"{table.safe_name}_{kind}"
        found = table.lake.iceberg.load(name)
        if found is None:
            continue
        try:
            if kind == CDC:
                yield from _cdc_files(table, found, done)
            elif kind == BASELINE:
                for baseline in baselines.values():
                    yield from _baseline_files(table, found, baseline, done)
            else:
                yield from _typed_files(table, kind, found, found.current_snapshot())
        except OSError as error:
            damage = Damage(
                kind, name, f"has unreadable metadata ({error})", repair_command(table.settings)
            )
            done.damages.append(damage)


def _baseline_files(
    table: TableLake, found: IcebergTable, baseline: Baseline, done: Verified
) -> Iterator[_File]:
    snapshot = found.snapshot_by_id(baseline.snapshot_id or 0)
    if snapshot is not None:
        for file in _typed_files(table, BASELINE, found, snapshot):
            yield replace(file, generation=baseline.generation)
        return
    lost, fix = (
        f"of {time_text(baseline.export_time_us)} UTC has expired",
        repair_command(table.settings),
    )
    name, generation = f"{table.safe_name}_{BASELINE}", baseline.generation
    done.damages.append(Damage(BASELINE, name, lost, fix, generation=generation))


def _typed_files(
    table: TableLake, kind: str, found: IcebergTable, chosen: Snapshot | None
) -> Iterator[_File]:
    assert chosen is not None  # `Tables.load` gives no table without a snapshot
    said = chosen.summary.additional_properties.get(CHECKSUMS) if chosen.summary else None
    tasks = found.scan(snapshot_id=chosen.snapshot_id).plan_files()
    files = sorted((task.file for task in tasks), key=lambda file: file.file_path)
    sums = [int(text, 16) for text in said.split(",")] if said else [None] * len(files)
    for file, crc32 in zip(files, sums, strict=True):
        key, fix = _key(table.lake, file.file_path), repair_command(table.settings)
        yield _File(kind, key, file.file_size_in_bytes, crc32, file.record_count, fix)


def _cdc_files(table: TableLake, found: IcebergTable, done: Verified) -> Iterator[_File]:
    """The files of cdc; days that lack rows are noted at once."""
    rows: dict[str, int] = {}
    for task in found.scan().plan_files():
        day = str(table.lake.iceberg.day_of_file(task.file))
        rows[day] = rows.get(day, 0) + task.file.record_count
        key, fix, file = (
            _key(table.lake, task.file.file_path),
            _cdc_fix(table.settings, day),
            task.file,
        )
        yield _File(CDC, key, file.file_size_in_bytes, None, file.record_count, fix, day)
    start = f"{PROPERTY}{ROWS}."
    for name, built in sorted(found.properties.items()):
        day = name.removeprefix(start)
        if name.startswith(start) and rows.get(day, 0) != int(built):
            held = f"holds {rows.get(day, 0)} rows and was built with {built}"
            done.damages.append(Damage(CDC, day, held, _cdc_fix(table.settings, day), day))


def _cdc_fix(table: Table, day: str) -> str:
    return f"materialise {table.safe_name}/cdc of {day}"


def _key(lake: Lake, path: str) -> str:
    """The key in the lake's store; the whole address of a file that is not in it."""
    return path.removeprefix("file://").removeprefix(f"{lake.store.uri('').rstrip('/')}/")


def _stores(table: TableLake) -> list[tuple[Store, str]]:
    """Where the files are, and in which folder."""
    found: list[tuple[Store, str]] = [(table.lake.store, table.paths.landing)]
    for kind in _ICEBERG:
        name = f"{table.safe_name}_{kind}"
        found.append((table.lake.store, f"iceberg/{table.lake.database}/{name}/data/"))
        built = table.lake.iceberg.load(name)
        if built is not None and not table.lake.iceberg.is_placed(built):
            found.append((NamedFiles(table.lake.iceberg, name), ""))
    return found


def _content(stores: dict[str, Store], file: _File) -> str | None:
    """What is wrong with a file's content."""
    data = stores[file.key].read(file.key)
    if data is None:
        return "is missing"
    if file.crc32 is not None:
        return None if zlib.crc32(data) == file.crc32 else "was altered: its checksum differs"
    try:
        rows = pq.read_metadata(io.BytesIO(data)).num_rows
    except pa.ArrowInvalid:
        return "is no Parquet file"
    return None if rows == file.rows else f"holds {rows} rows and was written with {file.rows}"


@contextmanager
def readable_files(table: Table) -> Iterator[None]:
    """Raise `LakeError` for files that a comparison needs and that cannot be read."""
    try:
        yield
    except (duckdb.Error, OSError, pa.ArrowException) as error:
        raise LakeError(
            f"{table.safe_name}: the lake cannot be read: {explain(error)}",
            fix=repair_command(table),
        ) from error
