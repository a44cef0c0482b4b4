"""Conversion of full exports' lines to canonical keys and items, with attribute statistics."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import pyarrow as pa

from cdc_pipeline.core.changes.change import export_item
from cdc_pipeline.core.errors import ExportError, UnreadableError
from cdc_pipeline.core.items.attributes import TOO_DEEP
from cdc_pipeline.core.items.columns import Stats, observe
from cdc_pipeline.transform import compilation
from cdc_pipeline.transform.fast import line_reader
from cdc_pipeline.transform.shred import merge_stats

if TYPE_CHECKING:
    from cdc_pipeline.transform.fast.batches import LineReader

_decode = msgspec.json.decode


class Rows(NamedTuple):
    """Canonical keys and items, row by row."""

    keys: pa.Array
    items: pa.Array


class LineConverter:
    """Converter of one data file; compiled where that pays, with the same results otherwise.

    `where`: the file's name in errors. `items`: those of the whole export, if known; their size is
    estimated from the first block. Not thread-safe.
    """

    def __init__(self, key_names: Sequence[str], where: str, *, items: int = 0) -> None:
        self._key_names = tuple(key_names)
        self._where = where
        self._items = items
        self._reader: LineReader | None = None
        self._stats: Stats = {}
        self.lines = 0

    def convert(self, lines: bytes) -> Rows:
        """Convert whole lines, each with its newline; raises `ExportError` with the line number."""
        if self._reader is None and compilation.pays(compilation.LINES, self._export_bytes(lines)):
            self._reader = line_reader(self._key_names)
        read = self._reader.read(lines) if self._reader else None
        if read is None:
            rows = self._exactly(enumerate(lines.split(b"\n")[:-1], 1))
            compilation.note_exact(compilation.LINES, len(lines))
        else:
            rows = Rows(read.keys, read.items)
            if read.others:
                others = ((n, lines[start:end]) for n, start, end in read.others)
                exact = self._exactly(others)
                rows = Rows(*(read.weave(*pair) for pair in zip(rows, exact, strict=True)))
        self.lines += len(rows.items)
        return rows

    def stats(self) -> Stats:
        """Return the statistics of all lines so far."""
        return merge_stats(self._stats, self._reader.stats() if self._reader else {})

    def _export_bytes(self, block: bytes) -> int:
        return len(block) * max(1, self._items // max(1, block.count(b"\n")))

    def _exactly(self, lines: Iterable[tuple[int, bytes]]) -> Rows:
        """Convert single lines; their numbers count within the present block."""
        keys, items = [], []
        for number, line in lines:
            key, item = self._convert_line(self.lines + number, line)
            keys.append(key)
            items.append(item)
            observe(self._stats, _decode(item))
        return Rows(pa.array(keys, pa.string()), pa.array(items, pa.string()))

    def _convert_line(self, number: int, line: bytes) -> tuple[str, str]:
        try:
            return export_item(_decode(line), self._key_names)
        except (msgspec.DecodeError, UnicodeDecodeError):
            reason = "not JSON"
        except UnreadableError as error:
            reason = error.reason
        except RecursionError:
            reason = TOO_DEEP
        raise ExportError(f"{self._where}, line {number}: {reason}")
