"""Files of tables that a catalogue keeps outside of the lake: read by name, never removed here.

In S3 Tables they cannot be listed or deleted; the service removes files that no snapshot names.
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress

from pyiceberg.table import Table

from cdc_pipeline.aws.s3.objects import StoredFile
from cdc_pipeline.core.errors import LakeError
from cdc_pipeline.lake.iceberg.files import referenced_files
from cdc_pipeline.lake.iceberg.tables import Tables


class NamedFiles:
    """Store of the files that a table's snapshots name now; keys are whole addresses."""

    def __init__(self, tables: Tables, name: str) -> None:
        self._tables = tables
        self._name = name

    def _table(self) -> Table:
        table = self._tables.load(self._name)
        if table is None:
            raise LakeError(f"table {self._name} is missing in the catalogue; it existed before")
        return table

    def uri(self, key: str) -> str:
        """See `Store`."""
        return key

    def files(self, prefix: str) -> Iterator[StoredFile]:
        """See `Store`; the files' times are unknown and 0."""
        table = self._table()
        for path in sorted(referenced_files(table)):
            if path.startswith(prefix):
                with suppress(FileNotFoundError):
                    yield StoredFile(path, len(table.io.new_input(path)), 0.0)

    def list(self, prefix: str, after: str = "") -> Iterator[str]:
        """See `Store`."""
        return (file.key for file in self.files(prefix) if file.key > after)

    def read(self, key: str) -> bytes | None:
        """See `Store`."""
        try:
            with self._table().io.new_input(key).open() as stream:
                return stream.read()
        except FileNotFoundError:
            return None

    def read_part(self, key: str, start: int, size: int) -> bytes | None:
        """See `Store`."""
        data = self.read(key)
        return None if data is None else data[start : start + size]

    def write(self, key: str, data: bytes) -> None:
        """Raise `LakeError`: not supported."""
        raise LakeError(f"{key} belongs to the catalogue: only commits write it")

    def create(self, key: str, data: bytes) -> bool:
        """Raise `LakeError`: not supported."""
        raise LakeError(f"{key} belongs to the catalogue: only commits write it")

    def delete(self, keys: Iterable[str]) -> None:
        """Do nothing: the catalogue's service removes files that no snapshot names."""
