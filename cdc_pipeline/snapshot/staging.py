"""Data files of an export: verified, converted, and kept between runs.

A data file becomes some spools (`transform.spool`) in a scratch folder. Those of a large export are
also kept in the lake, in `_cdc/<database>/<table>/staging/<export id>/`, so that a run after a kill
converts only the missing files. A data file's name there is a digest of its key and MD5 in the
manifest; a JSON object, written last, marks it as complete.
"""

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from cdc_pipeline.aws.export import DataFile, whole_lines
from cdc_pipeline.core.errors import ExportError
from cdc_pipeline.core.items.columns import Stats
from cdc_pipeline.lake.storage.store import Store
from cdc_pipeline.transform.export_lines import LineConverter, Rows
from cdc_pipeline.transform.ranges import sorted_at_once, sorted_items
from cdc_pipeline.transform.shred import stats_from_json, stats_to_json
from cdc_pipeline.transform.spool import ITEMS_SCHEMA, Spooled, SpoolWriter, is_compressed

_FORMAT = 2
_PART_BYTES = 64 << 20  # a part is kept in one piece, by each worker
KEEP_BYTES = 32 << 20
"""Data files with less text, and those of exports small enough not to be compressed, are converted
again: that is faster than keeping them."""


@dataclass(frozen=True)
class ConvertedFile:
    """One data file: its spools, items, bytes of text, statistics of the attributes."""

    paths: list[Path]
    items: int
    bytes: int
    stats: Stats
    compressed: bool

    def sorted(self, scratch: Path, memory_mb: int) -> Iterator[pa.RecordBatch]:
        """Yield the items in order of key; the spools are gone after that."""
        spools = [(path, None) for path in self.paths]
        spooled = Spooled(spools, self.items, self.bytes, self.compressed)
        return sorted_items(spooled, scratch, sorted_at_once(memory_mb), remove=True)


class _Done(msgspec.Struct):
    """The JSON object of a kept data file."""

    parts: int
    items: int
    bytes: int
    stats: str


class Staging:
    """The converted files of one export."""

    def __init__(
        self,
        store: Store,
        prefix: str,
        scratch: Path,
        key_names: tuple[str, ...],
        *,
        items: int = 0,
    ) -> None:
        """`items`: of the whole export, if known; else it counts as a large one."""
        self._store = store
        self._prefix = prefix
        self._scratch = scratch
        self._key_names = key_names
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
            data = self._store.read(f"{self._prefix}{name}-{number:04d}.arrow")
            if data is None:
                return None
            paths.append(self._scratch / f"{name}-{number:04d}.arrow")
            paths[-1].write_bytes(data)
        if done.items != file.items:
            return None
        return ConvertedFile(
            paths, done.items, done.bytes, stats_from_json(done.stats), compressed=True
        )

    def convert(
        self, file: DataFile, pieces: Iterator[bytes], where: str, *, keep: bool = True
    ) -> ConvertedFile:
        """Convert and verify a data file; `keep` it if that pays. Raises `ExportError`."""
        name, size, compressed = self._name(file), 0, True
        converter = LineConverter(self._key_names, where, items=self._items)
        with _PartWriter(self._scratch / name) as writer:
            for lines in whole_lines(pieces, where):
                if not size:
                    compressed = self._is_compressed(lines)
                size += len(lines)
                writer.write(converter.convert(lines), compressed=compressed)
        if converter.lines != file.items:
            raise ExportError(
                f"{where} holds {converter.lines} items, its manifest promises {file.items}"
            )
        stats = converter.stats()
        converted = ConvertedFile(writer.paths, converter.lines, size, stats, compressed)
        if keep and compressed and size >= KEEP_BYTES:
            self._keep(name, converted)
        return converted

    def _is_compressed(self, block: bytes) -> bool:
        """Whether to compress spools, estimated from the first block of a file."""
        text = len(block) * self._items // max(1, block.count(b"\n"))
        return not self._items or is_compressed(text, self._scratch)

    def _keep(self, name: str, converted: ConvertedFile) -> None:
        for path in converted.paths:
            self._store.write(f"{self._prefix}{path.name}", path.read_bytes())
        stats = stats_to_json(converted.stats)
        done = _Done(len(converted.paths), converted.items, converted.bytes, stats)
        self._store.write(f"{self._prefix}{name}.json", msgspec.json.encode(done))

    def _name(self, file: DataFile) -> str:
        inputs = (_FORMAT, file.key, file.md5, self._key_names)
        return hashlib.sha256(repr(inputs).encode()).hexdigest()[:32]


class _PartWriter:
    """Spools of bounded size, one after the other."""

    def __init__(self, base: Path) -> None:
        self._base = base
        self._writer: SpoolWriter | None = None
        self._stack = ExitStack()
        self._written = 0
        self.paths: list[Path] = []

    def __enter__(self) -> "_PartWriter":
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def write(self, rows: Rows, *, compressed: bool) -> None:
        """Add rows."""
        batch = pa.RecordBatch.from_arrays([rows.keys, rows.items], schema=ITEMS_SCHEMA)
        if self._writer is None or self._written >= _PART_BYTES:
            self._stack.close()
            path = self._base.with_name(f"{self._base.name}-{len(self.paths):04d}.arrow")
            self._writer = self._stack.enter_context(SpoolWriter(path, compressed=compressed))
            self._written = 0
            self.paths.append(path)
        self._writer.write(batch)
        self._written += batch.nbytes
