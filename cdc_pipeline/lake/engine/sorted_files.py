"""Rows of a table whose files are sorted by key, in the order of all keys, without a sort.

A published table has large files one after the other, and smaller ones over the same keys. Their
rows are merged with other sorted rows, as Arrow columns: nothing is parsed. Memory: a row group of
each chain of files.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyiceberg.manifest import DataFile
from pyiceberg.table import Table as IcebergTable

from cdc_pipeline.core.errors import LakeError, UnsortedFilesError
from cdc_pipeline.lake.iceberg.files import LiveFiles
from cdc_pipeline.lake.iceberg.row_delta import DeadRows
from cdc_pipeline.lake.storage.sorted_parts import KeyRange

_KEY = "_key"
_MOST_CHAINS = 40
"""Chains of files above which the rows are sorted instead: each holds a row group in memory."""

_UNSORTED = "files of a published state are not sorted by key"


@dataclass
class _Group:
    """Sorted rows in memory: those of `batch` at `rows`, ascending, with their keys.

    `next`: number of `rows` that are taken.
    """

    batch: pa.RecordBatch
    rows: np.ndarray
    keys: pa.Array
    next: int = 0

    @property
    def last(self) -> str:
        """The greatest key."""
        return self.keys[-1].as_py()


class SortedFiles:
    """Data files of a version of a table, and which of their rows are gone.

    Raises `UnsortedFilesError`; if rows within a file are not sorted, only when they are read.
    """

    def __init__(
        self,
        table: IcebergTable,
        live: LiveFiles,
        gone: Iterable[DeadRows],
        keys: KeyRange | None = None,
    ) -> None:
        """`keys`: range of the rows; None: all of them."""
        self._io, self._name = table.io, ".".join(table.name())
        self._range = keys
        files = [entry.data_file for entry in live.data if entry.data_file.record_count]
        self._chains = _chains(files, table.schema().find_field(_KEY).field_id)
        self._gone = _bits(files, gone)

    def merged(
        self, schema: pa.Schema, beside: Iterable[pa.RecordBatch]
    ) -> Iterator[pa.RecordBatch]:
        """Yield the rows that are not gone and those of `beside`, in the order of keys.

        `schema`: columns by name, of which `_key` is one; a column that a file lacks is NULL, and
        values are cast if that is exact. `beside`: rows of `schema` with other keys, sorted by key.
        Raises `LakeError` if two rows have the same key.
        """
        streams = [self._groups(chain, schema) for chain in self._chains]
        streams.append(_whole_groups(beside))
        return _with_own_keys(_merge([_in_order(stream) for stream in streams]), self._name)

    def items(self, *, gone: bool) -> Iterator[pa.RecordBatch]:
        """Yield column `item` of the rows that are gone, or of those that are not."""
        names = ("_item",) if self._range is None else ("_item", _KEY)
        schema = pa.schema([pa.field(name, pa.string(), nullable=False) for name in names])
        for file in (file for chain in self._chains for file in chain):
            for batch, is_gone in self._batches(file, schema, gone=gone):
                rows = (is_gone if gone else ~is_gone) & self._in_range(batch)
                if rows.any():
                    kept = batch if rows.all() else batch.filter(pa.array(rows))
                    yield kept.select(["_item"]).rename_columns(["item"])

    def _groups(self, chain: Sequence[DataFile], schema: pa.Schema) -> Iterator[_Group]:
        key = schema.get_field_index(_KEY)
        for file in chain:
            for batch, is_gone in self._batches(file, schema):
                rows = np.flatnonzero(~is_gone & self._in_range(batch))
                if len(rows):
                    keys = batch.column(key)
                    is_whole = len(rows) == len(keys)
                    yield _Group(batch, rows, keys if is_whole else keys.take(pa.array(rows)))

    def _in_range(self, batch: pa.RecordBatch) -> np.ndarray:
        """Return which rows of a row group are in the range."""
        rows = np.ones(len(batch), bool)
        if self._range is not None:
            start, stop = self._range.within(batch.column(_KEY))
            rows[:start] = rows[stop:] = False
        return rows

    def _may_have_rows(self, metadata: pq.FileMetaData, number: int) -> bool:
        """Whether a row group may have rows in the range, by its statistics."""
        if self._range is None:
            return True
        column = metadata.row_group(number).column(metadata.schema.names.index(_KEY))
        bounds = column.statistics
        if bounds is None or not bounds.has_min_max:
            return True
        return self._range.overlaps(bounds.min.encode(), bounds.max.encode())

    def _batches(
        self, file: DataFile, schema: pa.Schema, *, gone: bool = False
    ) -> Iterator[tuple[pa.RecordBatch, np.ndarray]]:
        """Yield each row group with which of its rows are gone; `gone`: only those with some."""
        bits = self._gone.get(file.file_path)
        first = 0
        with self._io.new_input(file.file_path).open() as source:
            metadata = pq.read_metadata(source)
            for number in range(metadata.num_row_groups):
                count = metadata.row_group(number).num_rows
                is_gone = _unpacked(bits, first, count)
                first += count
                if (not gone or is_gone.any()) and self._may_have_rows(metadata, number):
                    # Opened anew, or the file's buffers would stay until its last row group.
                    with pq.ParquetFile(source, metadata=metadata, pre_buffer=True) as parquet:
                        yield _read(parquet, number, schema), is_gone


def _chains(files: Sequence[DataFile], key_id: int) -> list[list[DataFile]]:
    """Arrange files in as few sequences as possible, the keys of each ascending.

    Bounds of keys may be shortened: then files overlap by them that do not, in more chains.
    """
    bounds = []
    for file in files:
        least, most = ((of or {}).get(key_id) for of in (file.lower_bounds, file.upper_bounds))
        if least is None or most is None:
            raise UnsortedFilesError(_UNSORTED)
        bounds.append((least, most, file))
    chains: list[tuple[bytes, list[DataFile]]] = []
    for least, most, file in sorted(bounds, key=lambda bound: bound[:2]):
        # The chain that ends last before the file, so that the others stay free for earlier ends.
        fitting = [n for n, (end, _) in enumerate(chains) if end <= least]
        if fitting:
            best = max(fitting, key=lambda n: chains[n][0])
            chains[best] = (most, [*chains[best][1], file])
        else:
            chains.append((most, [file]))
    if len(chains) > _MOST_CHAINS:
        raise UnsortedFilesError(_UNSORTED)
    return [chain for _, chain in chains]


def _bits(files: Iterable[DataFile], gone: Iterable[DeadRows]) -> Mapping[str, np.ndarray]:
    """Return one bit for each row of the files with such rows: whether it is gone."""
    rows = {file.file_path: file.record_count for file in files}
    bits: dict[str, np.ndarray] = {}
    for part in gone:
        is_gone = np.zeros(rows[part.path], bool)
        is_gone[part.positions.to_numpy()] = True
        bits[part.path] = np.packbits(is_gone)
    return bits


def _unpacked(bits: np.ndarray | None, first: int, count: int) -> np.ndarray:
    if bits is None:
        return np.zeros(count, bool)
    start = first // 8
    part = bits[start : (first + count + 7) // 8]
    return np.unpackbits(part).astype(bool)[first - start * 8 :][:count]


def _read(parquet: pq.ParquetFile, number: int, schema: pa.Schema) -> pa.RecordBatch:
    stored = [name for name in schema.names if name in parquet.schema_arrow.names]
    table = parquet.read_row_group(number, columns=stored)
    columns: list[Any] = []
    for field in schema:
        if field.name not in stored:
            columns.append(pa.nulls(table.num_rows, field.type))
            continue
        column = table.column(field.name)
        if isinstance(field.type, pa.Decimal128Type) and pa.types.is_int64(column.type):
            # Arrow requires a precision for any integer of the type, regardless of the values.
            column = column.cast(pa.decimal128(38, field.type.scale))
        columns.append(pa.concat_arrays(column.cast(field.type).chunks))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _whole_groups(batches: Iterable[pa.RecordBatch]) -> Iterator[_Group]:
    for batch in batches:
        if len(batch):
            yield _Group(batch, np.arange(len(batch)), batch.column(_KEY))


def _in_order(groups: Iterable[_Group]) -> Iterator[_Group]:
    """Yield the same groups; raise `UnsortedFilesError` at a key less than the one before it."""
    last = ""
    for group in groups:
        keys = group.keys
        ascends = pc.call_function("less_equal", [keys[:-1], keys[1:]])
        if (
            pc.call_function("all", [ascends]).as_py() is False
            or keys[0].as_py().encode() < last.encode()
        ):
            raise UnsortedFilesError(_UNSORTED)
        last = group.last
        yield group


def _merge(streams: Iterable[Iterator[_Group]]) -> Iterator[pa.RecordBatch]:
    """Yield the rows of sorted streams in the order of keys.

    Up to the least of the greatest keys in memory, no stream can have another row.
    """
    heads = [(group, stream) for stream in streams if (group := next(stream, None))]
    while heads:
        end = min(group.last for group, _ in heads)
        parts, ahead = [], []
        for group, stream in heads:
            stop = bisect_right(group.keys, end, group.next, key=lambda key: key.as_py())
            if stop > group.next:
                parts.append((group, group.next, stop))
            group.next = stop
            if stop < len(group.keys):
                ahead.append((group, stream))
            elif following := next(stream, None):
                ahead.append((following, stream))
        heads = ahead
        yield _joined(parts)


def _with_own_keys(batches: Iterable[pa.RecordBatch], table: str) -> Iterator[pa.RecordBatch]:
    last = None
    for batch in batches:
        keys = batch.column(_KEY)
        differ = pc.call_function("not_equal", [keys[1:], keys[:-1]])
        if differ.true_count < len(keys) - 1 or keys[0].as_py() == last:
            safe_name = (
                table.rpartition(".")[2].removesuffix("_current_state").removesuffix("_snapshot")
            )
            raise LakeError(
                f"table {table}: an item has two rows, which no publication of ours leaves",
                fix=f"cdc-pipeline reconcile {safe_name} --full --repair",
            )
        last = keys[-1].as_py()
        yield batch


def _joined(parts: Sequence[tuple[_Group, int, int]]) -> pa.RecordBatch:
    """Return some rows of groups, the numbers from and to of each, in the order of keys."""
    slices, places, offset = [], [], 0
    for group, start, stop in parts:
        rows = group.rows[start:stop]
        slices.append(group.batch.slice(rows[0], rows[-1] - rows[0] + 1))
        places.append(rows - rows[0] + offset)
        offset += len(slices[-1])
    if len(parts) == 1:
        is_whole = len(places[0]) == offset
        return slices[0] if is_whole else slices[0].take(pa.array(places[0]))
    keys = pa.concat_arrays([group.keys[start:stop] for group, start, stop in parts])
    order = pc.sort_indices(keys).to_numpy()  # type: ignore[attr-defined]
    return pa.concat_batches(slices).take(pa.array(np.concatenate(places)[order]))
