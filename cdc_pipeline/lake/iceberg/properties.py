"""Properties of ours on Iceberg tables, and the description: a file beside the metadata."""

import dataclasses
from collections.abc import Iterator, Mapping
from functools import lru_cache

from pyiceberg.io import FileIO
from pyiceberg.table import Table

from cdc_pipeline.lake.iceberg.metadata_file import PROPERTY
from cdc_pipeline.lake.storage.errors import storage_errors

DESCRIPTION = "description"


def with_prefix(properties: Mapping[str, str]) -> dict[str, str]:
    """Return the properties with their names as they are stored."""
    return {PROPERTY + name: value for name, value in properties.items()}


def table_property(table: Table, name: str) -> str | None:
    """Return a `cdc_pipeline.` property of the table; None: not set."""
    return table.properties.get(PROPERTY + name)


@dataclasses.dataclass(frozen=True)
class _File:
    path: str
    io: FileIO = dataclasses.field(compare=False, repr=False)


@lru_cache(maxsize=32)
def _read_once(file: _File) -> str:
    with storage_errors(file.path), file.io.new_input(file.path).open() as stream:
        return stream.read().decode()


def description(table: Table) -> str | None:
    """Return the text stored with a table's rows; None: there is none. Its file never changes."""
    file = table_property(table, DESCRIPTION)
    return _read_once(_File(file, table.io)) if file else None


def description_files(table: Table) -> Iterator[str]:
    """Yield the files of the descriptions of all versions."""
    if PROPERTY + DESCRIPTION in table.properties:
        yield table.properties[PROPERTY + DESCRIPTION]
    for snapshot in table.metadata.snapshots:
        summary = snapshot.summary.additional_properties if snapshot.summary else {}
        if PROPERTY + DESCRIPTION in summary:
            yield summary[PROPERTY + DESCRIPTION]


def description_folder(database: str, name: str) -> str:
    """Return the folder of a table's descriptions, relative to the lake's root.

    It is not below the table's folder, where other engines remove files that Iceberg's metadata do
    not name.
    """
    return f"_cdc/{database}/table-descriptions/{name}/"
