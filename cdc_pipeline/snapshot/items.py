"""The items of an export, converted and waiting in spools, as a typed table sorted by key."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.table import Table

from cdc_pipeline.core.errors import ExportError
from cdc_pipeline.core.plans.erasure import Suppressions
from cdc_pipeline.lake.engine.item_table import NarrowStats, TypedResult, commit_typed
from cdc_pipeline.lake.iceberg.tables import Tables
from cdc_pipeline.snapshot.staging import ConvertedFile
from cdc_pipeline.transform.ranges import sorted_at_once, sorted_items
from cdc_pipeline.transform.shred import NARROW_SCHEMA, merge_stats
from cdc_pipeline.transform.spool import Spooled


class ExportedItems:
    """All items of an export's data files, which have one order key and write time.

    `where`: the export's name in errors. `erased`: items to leave out.
    """

    def __init__(
        self,
        files: Sequence[ConvertedFile],
        order_key: str,
        write_time_us: int,
        scratch: Path,
        where: str,
        erased: Suppressions,
    ) -> None:
        self._stats = merge_stats(*(file.stats for file in files))
        self._spooled = Spooled(
            [(path, None) for file in files for path in file.paths],
            sum(file.items for file in files),
            sum(file.bytes for file in files),
            any(file.compressed for file in files),
        )
        self._order_key = pa.scalar(order_key, pa.string())
        self._write_time_us = pa.scalar(write_time_us, pa.int64())
        self._scratch = scratch
        self._where = where
        self._erased = erased

    def count(self) -> int:
        """Return the number of items that are not erased."""
        if not self._erased:
            return self._spooled.rows
        return sum(map(len, map(self._kept, self._spooled.read(only_keys=True))))

    def rows(self) -> Iterator[pa.RecordBatch]:
        """Yield the items as rows of `NARROW_SCHEMA`, in no order."""
        return self._narrow(self._spooled.read())

    def commit(
        self,
        tables: Tables,
        name: str,
        properties: dict[str, str],
        *,
        over: Table | None,
        memory_mb: int,
        limit: int | None = None,
        names: Mapping[str, str] | None = None,
    ) -> TypedResult:
        """Make the items the whole table, as `commit_typed`; the spools are gone after that.

        Raises `ExportError` if two items have the same key.
        """
        return commit_typed(
            tables,
            name,
            lambda: self.ordered(memory_mb),  # called once: exports have no pinned columns
            NarrowStats(self.count(), self._stats),
            properties,
            over=over,
            limit=limit,
            names=names,
        )

    def ordered(self, memory_mb: int) -> Iterator[pa.RecordBatch]:
        """Yield the items as rows of `NARROW_SCHEMA`, sorted by key; then the spools are gone.

        Raises `ExportError` if two items have the same key.
        """
        at_once = sorted_at_once(memory_mb)
        items = sorted_items(self._spooled, self._scratch, at_once, remove=True)
        return self._narrow(self._with_own_keys(items))

    def _kept(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        if not self._erased:
            return batch
        keys = batch.column("item_key").to_pylist()
        return batch.filter(pa.array([not self._erased.is_suppressed(key, 0) for key in keys]))

    def _narrow(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield rows of `NARROW_SCHEMA`, without the erased ones."""
        for batch in map(self._kept, batches):
            constants = (pa.repeat(c, len(batch)) for c in (self._order_key, self._write_time_us))
            order_keys, times = constants
            keys, items = batch.columns
            yield pa.RecordBatch.from_arrays([keys, order_keys, items, times], schema=NARROW_SCHEMA)

    def _with_own_keys(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the same sorted rows; raises `ExportError` at the end if a key repeats."""
        count, last = 0, None
        for batch in batches:
            keys = batch.column("item_key")
            differ = pc.call_function("not_equal", [keys[1:], keys[:-1]])
            count += (keys[0].as_py() != last) + differ.true_count
            last = keys[-1].as_py()
            yield batch
        if count != self._spooled.rows:
            raise ExportError(f"{self._where} holds {self._spooled.rows} items but {count} keys")
