"""Places of keys in large data files, kept beside the worker instead of read from the lake.

A row delta needs the places of the rows that it replaces. Up to some ten million items it reads the
keys of the whole base for that; beyond, each large data file has an index on the worker's disk, 20
bytes a row, because data files never change. An index is removed when its file leaves the table.

Keys are compared by 128 bits of a hash with a secret prefix, so that nobody can make two keys that
have the same one. An index that is damaged, by its checksum, is made anew.
"""

import hashlib
import os
import secrets
import shutil
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
from pyiceberg.table import Table as IcebergTable

from cdc_pipeline.lake.engine.duckdb_session import FILE_ROWS, arrow_table, literal
from cdc_pipeline.lake.iceberg.files import LiveFiles

MANY_ROWS = 10_000_000
"""Rows of a base from which indexes pay: reading the keys takes 1 CPU s, using an index 0.1."""
LARGE_FILE = 500_000
"""Rows of a file from which it has an index."""

_UNUSED_SECONDS = 7 * 24 * 3600
_SALT = "salt"


@dataclass(frozen=True)
class PlaceIndex:
    """Indexes of the large data files of a table.

    `files`: by number of the data file in `LiveFiles`, the path of its index and its own.
    """

    salt: str
    files: Mapping[int, tuple[Path, str]]

    def create_found(self, connection: duckdb.DuckDBPyConnection, keys_sql: str) -> None:
        """Create table `found`: `item_key` and `place` of keys that the files have, dead rows too.

        `keys_sql`: a query of keys, in one column `item_key`.
        """
        hashed = _hashed("item_key", self.salt)
        keys = arrow_table(connection, f"SELECT item_key, {hashed} FROM ({keys_sql})")
        upper, lower = (keys[name].to_numpy() for name in ("upper", "lower"))
        numbers, places = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for number, (path, data_file) in self.files.items():
            index = _load(path) or _make(connection, path, data_file, self.salt)
            for needles, at in _matches(index, upper, lower):
                numbers.append(needles)
                places.append(index.rows[at].astype(np.int64) + number * FILE_ROWS)
        taken = keys["item_key"].take(pa.array(np.concatenate(numbers)))
        found = pa.table({"item_key": taken, "place": np.concatenate(places)})
        connection.register("found_places", found)
        connection.execute("CREATE OR REPLACE TEMP TABLE found AS SELECT * FROM found_places")
        connection.unregister("found_places")


@dataclass(frozen=True)
class _Index:
    """Rows of a file by the hashes of their keys, in order of `upper`, its first 64 bits."""

    upper: np.ndarray
    lower: np.ndarray
    rows: np.ndarray


def place_index(table: IcebergTable, live: LiveFiles) -> PlaceIndex | None:
    """Return the indexes of a table's large files, which are made when they are first used.

    None if keys are read faster without, and where this worker's disk is new or not writable:
    making an index costs what some twenty publications save (ten million items, measured).
    """
    large = [n for n, e in enumerate(live.data) if e.data_file.record_count >= LARGE_FILE]
    if not large or live.rows < MANY_ROWS:
        return None
    with suppress(OSError, RuntimeError):  # no home, no space, read only
        folder = _folder(table)
        salt = _salt(folder)
        if salt is None:
            return None
        files = {n: (folder / _name(live.paths[n]), live.paths[n]) for n in large}
        _remove_others(folder, {path.name for path, _ in files.values()})
        return PlaceIndex(salt, files)
    return None


def forget_places(table: IcebergTable) -> None:
    """Remove this worker's indexes of a table: they hold hashes of keys of erased items."""
    with suppress(OSError, RuntimeError):
        shutil.rmtree(_folder(table))


def _matches(
    index: _Index, upper: np.ndarray, lower: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield numbers of hashes with the rows of the index that have the same; some have several."""
    at = np.searchsorted(index.upper, upper)
    numbers = np.arange(len(upper))
    while len(numbers):
        inside = at < len(index.upper)
        numbers, at = numbers[inside], at[inside]
        same = index.upper[at] == upper[numbers]
        numbers, at = numbers[same], at[same]
        equal = index.lower[at] == lower[numbers]
        yield numbers[equal], at[equal]
        at = at + 1


def _hashed(column: str, salt: str) -> str:
    text = f"{literal(salt)} || {column}"
    return f"md5_number_upper({text}) AS upper, md5_number_lower({text}) AS lower"


def _make(connection: duckdb.DuckDBPyConnection, path: Path, data_file: str, salt: str) -> _Index:
    """Return the index of a data file, and keep it unless the disk is full."""
    hashes = arrow_table(
        connection,
        f"SELECT {_hashed('_key', salt)}, CAST(file_row_number AS UINTEGER) AS place "
        f"FROM read_parquet({literal(data_file)}, hive_partitioning = false)",
    )
    upper, lower, rows = (hashes[name].to_numpy() for name in ("upper", "lower", "place"))
    order = np.argsort(upper)
    index = _Index(upper[order], lower[order], rows[order])
    data = index.upper.tobytes() + index.lower.tobytes() + index.rows.tobytes()
    new = path.with_suffix(f".{os.getpid()}-{secrets.token_hex(4)}")
    with suppress(OSError):
        try:
            new.write_bytes(zlib.crc32(data).to_bytes(8, "little") + data)
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)
    return index


def _load(path: Path) -> _Index | None:
    """Return an index; None if it is missing or damaged."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    rows, rest = divmod(len(data) - 8, 20)
    if rest or zlib.crc32(memoryview(data)[8:]).to_bytes(8, "little") != data[:8]:
        return None
    return _Index(
        np.frombuffer(data, "<u8", rows, 8),
        np.frombuffer(data, "<u8", rows, 8 + 8 * rows),
        np.frombuffer(data, "<u4", rows, 8 + 16 * rows),
    )


def _folder(table: IcebergTable) -> Path:
    user = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(user) / "cdc_pipeline" / "places" / str(table.metadata.table_uuid)


def _salt(folder: Path) -> str | None:
    """Return the table's secret prefix; None if it is new, as on a disk that is."""
    path = folder / _SALT
    if path.exists():
        os.utime(path)
        return path.read_text()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for other in folder.parent.iterdir():
        used = (other / _SALT).stat().st_mtime if (other / _SALT).exists() else time.time()
        if used < time.time() - _UNUSED_SECONDS:
            shutil.rmtree(other, ignore_errors=True)
    path.write_text(secrets.token_hex(16))
    return None


def _name(data_file: str) -> str:
    return f"{hashlib.sha256(data_file.encode()).hexdigest()[:32]}.places"


def _remove_others(folder: Path, used: set[str]) -> None:
    for path in folder.glob("*.places"):
        if path.name not in used:
            path.unlink(missing_ok=True)
