"""Data files of an export: verified, converted, and kept between runs.

A data file becomes some narrow Parquet files (`transform.shred.NARROW_SCHEMA`) in a scratch
folder. Large ones are also kept in the lake, in `_cdc/<database>/<table>/staging/<export id>/`, so
that a run after a kill converts only the missing files. A data file's name there is a digest of its
key and MD5 in the manifest; a JSON object, written last, marks it as complete.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from cdc_pipeline.aws.export import DataFile, whole_lines
from cdc_pipeline.core.errors import ExportError
from cdc_pipeline.core.items.columns import Stats
from cdc_pipeline.lake.storage.store import Store
from cdc_pipeline.transform.export_lines import LineConverter, Rows
from cdc_pipeline.transform.ranges import write_narrow
from cdc_pipeline.transform.shred import NARROW_SCHEMA, stats_from_json, stats_to_json

_FORMAT = 1
_FLUSH_BYTES = 8 << 20
_PART_BYTES = 64 << 20  # a part is kept in one piece, by each worker
KEEP_BYTES = 32 << 20
"""Data files with less text are converted again: that is faster than keeping them."""


@dataclass(frozen=True)
class ConvertedFile:
    """One data file: narrow Parquet files, items, bytes of text, statistics of the attributes."""

    paths: list[Path]
    items: int
    bytes: int
    stats: Stats


class _Done(msgspec.Struct):
    """The JSON object of a kept data file."""

    parts: int
    items: int
    bytes: int
    stats: str


class Staging:
    """The converted files of one export, for rows of one order key and write time."""

    def __init__(
        self,
        store: Store,
        prefix: str,
        scratch: Path,
        key_names: tuple[str, ...],
        order_key: str,
        write_time_us: int,
        *,
        items: int = 0,
    ) -> None:
        """`items`: of the whole export, if known."""
        self._store = store
        self._prefix = prefix
        self._scratch = scratch
        self._key_names = key_names
        self._order_key = order_key
        self._write_time_us = write_time_us
        self._items = items
        self._kept: set[str] = set()

    def open(self, root: str) -> None:
        """List the kept files of earlier runs; remove those of other exports under `root`."""
        keys = list(self._store.list(root))
        self._kept = {key for key in keys if key.startswith(self._prefix)}
        self._store.delete(key for key in keys if key not in self._kept)

    def kept(self, file: DataFile) -> ConvertedFile | None:
        """Load a data file that an earlier run converted, None if it must be converted."""
        name = self._name(file)
        key = f"{self._prefix}{name}.json"
        text = self._store.read(key) if key in self._kept else None
        if text is None:
            return None
        done = msgspec.json.decode(text, type=_Done)
        paths = []
        for number in range(done.parts):
            data = self._store.read(f"{self._prefix}{name}-{number:04d}.parquet")
            if data is None:
                return None
            paths.append(self._scratch / f"{name}-{number:04d}.parquet")
            paths[-1].write_bytes(data)
        if done.items != file.items:
            return None
        return ConvertedFile(paths, done.items, done.bytes, stats_from_json(done.stats))

    def convert(self, file: DataFile, pieces: Iterator[bytes], where: str) -> ConvertedFile:
        """Convert and verify a data file, and keep it if it is large; raises `ExportError`."""
        name, size = self._name(file), 0
        converter = LineConverter(self._key_names, where, items=self._items)
        writer = _PartWriter(self._scratch / name, self._order_key, self._write_time_us)
        with writer:
            for lines in whole_lines(pieces, where):
                size += len(lines)
                writer.write(converter.convert(lines))
        if converter.lines != file.items:
            raise ExportError(
                f"{where} holds {converter.lines} items, its manifest promises {file.items}"
            )
        converted = ConvertedFile(writer.paths, converter.lines, size, converter.stats())
        if size >= KEEP_BYTES:
            self._keep(name, converted)
        return converted

    def _keep(self, name: str, converted: ConvertedFile) -> None:
        for path in converted.paths:
            self._store.write(f"{self._prefix}{path.name}", path.read_bytes())
        stats = stats_to_json(converted.stats)
        done = _Done(len(converted.paths), converted.items, converted.bytes, stats)
        self._store.write(f"{self._prefix}{name}.json", msgspec.json.encode(done))

    def _name(self, file: DataFile) -> str:
        inputs = (
            _FORMAT,
            file.key,
            file.md5,
            self._key_names,
            self._order_key,
            self._write_time_us,
        )
        return hashlib.sha256(repr(inputs).encode()).hexdigest()[:32]


class _PartWriter:
    """Narrow Parquet files of bounded size, one after the other."""

    def __init__(self, base: Path, order_key: str, write_time_us: int) -> None:
        self._base = base
        self._order_key = pa.scalar(order_key, pa.string())
        self._write_time_us = pa.scalar(write_time_us, pa.int64())
        self._writer: pq.ParquetWriter | None = None
        self._rows: list[pa.RecordBatch] = []
        self._pending = self._written = 0
        self.paths: list[Path] = []

    def __enter__(self) -> "_PartWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()
        self._close()

    def write(self, rows: Rows) -> None:
        """Add rows."""
        count = len(rows.items)
        columns = [
            rows.keys,
            pa.repeat(self._order_key, count),
            rows.items,
            pa.repeat(self._write_time_us, count),
        ]
        self._rows.append(pa.RecordBatch.from_arrays(columns, schema=NARROW_SCHEMA))
        self._pending += self._rows[-1].nbytes
        if self._pending >= _FLUSH_BYTES:
            self._flush()

    def _flush(self) -> None:
        if not self._rows:
            return
        if self._writer is None:
            path = self._base.with_name(f"{self._base.name}-{len(self.paths):04d}.parquet")
            self._writer = write_narrow(path)
            self.paths.append(path)
        self._writer.write_table(pa.Table.from_batches(self._rows))
        self._written += self._pending
        self._rows, self._pending = [], 0
        if self._written >= _PART_BYTES:
            self._close()

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer, self._written = None, 0
