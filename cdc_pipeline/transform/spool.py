"""Temporary Arrow files of items that are not typed yet, each row written and read a few times.

Small ones are not compressed: writing and reading them takes a quarter of the CPU time then, and
about five times the disk.
"""

import errno
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from cdc_pipeline.core.errors import LakeError
from cdc_pipeline.transform.shred import NARROW_SCHEMA

ITEMS_SCHEMA = pa.schema([NARROW_SCHEMA.field("item_key"), NARROW_SCHEMA.field("item")])
"""What differs between the items of an export: canonical keys and canonical typed JSON."""

PLAIN_BYTES = 2 << 30
"""More text is compressed: without the page cache, a disk is slower than lz4."""

_ROOM = 3
"""Uncompressed text is there up to twice, while it is split into ranges."""


def is_compressed(size: int, folder: Path) -> bool:
    """Whether spools of `size` bytes of text in all should be compressed in that folder."""
    return size > PLAIN_BYTES or shutil.disk_usage(folder).free < _ROOM * size


class SpoolWriter:
    """A file of batches of `ITEMS_SCHEMA`; readable only after its block ended without an error.

    Raises `LakeError` if the disk is full.
    """

    def __init__(self, path: Path, *, compressed: bool) -> None:
        self.path = path
        self.batches = 0
        self._options = pa.ipc.IpcWriteOptions(
            compression="lz4" if compressed else None, use_threads=False
        )
        self._stack = ExitStack()

    def __enter__(self) -> "SpoolWriter":
        """Create the file."""
        file = self._stack.enter_context(pa.OSFile(str(self.path), "wb"))
        self._writer = pa.ipc.new_file(file, ITEMS_SCHEMA, options=self._options)
        return self

    def write(self, batch: pa.RecordBatch) -> int:
        """Add a batch; return its number in the file."""
        try:
            self._writer.write_batch(batch)
        except OSError as error:
            raise _explained(error, self.path) from error
        self.batches += 1
        return self.batches - 1

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Complete the file; after an error it stays unreadable."""
        with self._stack:
            if kind is not None:
                return
            try:
                self._writer.close()
            except OSError as error:
                raise _explained(error, self.path) from error


def _explained(error: OSError, path: Path) -> Exception:
    if error.errno != errno.ENOSPC:
        return error
    folder = path.parent.parent  # a run's own folder is named at random
    return LakeError(
        f"the disk with temporary files is full, after {path.name}",
        fix=f"free disk space below {folder}, or point TMPDIR to another disk",
    )


@dataclass(frozen=True)
class Spooled:
    """Items in closed spools. `bytes`: of their text.

    `places`: the files and, in each, the numbers of the batches; None: all of them. `compressed`:
    reading a file again costs CPU time, and so does reading few of its rows.
    """

    places: Sequence[tuple[Path, Sequence[int] | None]]
    rows: int
    bytes: int
    compressed: bool

    def read(
        self, *, only_keys: bool = False, mapped: bool = False, remove: bool = False
    ) -> Iterator[pa.RecordBatch]:
        """Yield the batches.

        `mapped`: without reading what is not used; a mapped file counts as memory of the process.
        `remove`: remove each file after its last batch.
        """
        options = pa.ipc.IpcReadOptions(
            use_threads=False, included_fields=[0] if only_keys else None
        )
        for path, numbers in self.places:
            with (
                pa.memory_map(str(path)) if mapped else pa.OSFile(str(path)) as file,
                pa.ipc.open_file(file, options=options) as reader,
            ):
                every = range(reader.num_record_batches)
                for number in every if numbers is None else numbers:
                    yield reader.get_batch(number)
            if remove:
                path.unlink()

    def remove(self) -> None:
        """Remove the files."""
        for path, _ in self.places:
            path.unlink()
