"""Properties of an Iceberg table without PyIceberg, whose import takes most of a CPU second.

For the two default catalogues: Glue's, and the SQLite file of a local lake. Everything else, and
everything unusual, is left to PyIceberg.
"""

from __future__ import annotations

import gzip
import json
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cdc_pipeline.aws.client.session import AwsSession
    from cdc_pipeline.lake.storage.store import Store
    from cdc_pipeline.settings.model import Settings

PROPERTY = "cdc_pipeline."
"""Prefix of the properties that this package sets."""
CATALOG_FILE = "_cdc/catalog.db"
"""The catalogue of a local lake, a SQLite file."""
CATALOG_NAME = "local"
"""Catalogue name in a SQL database, which can hold several catalogues."""

_GZIP = b"\x1f\x8b"


class NeedsPyIcebergError(Exception):
    """The properties of a table cannot be read here; PyIceberg reads them, or explains why not."""


def read_properties(
    settings: Settings, store: Store, name: str, session: Callable[[], AwsSession]
) -> Mapping[str, str] | None:
    """Return a table's properties as of its newest commit; None: no table, or no commit.

    `session`: opens the lake's AWS session. Raises `NeedsPyIcebergError`, `LakeError`.
    """
    if settings.catalog is not None:
        raise NeedsPyIcebergError
    if settings.is_s3:
        from cdc_pipeline.aws.glue import Glue

        parameters = Glue(session(), settings.database).table_parameters(name)
        location = None if parameters is None else parameters.get("metadata_location", "")
    else:
        location = _local_location(settings.database, store, name)
    return None if location is None else _properties_at(store, location)


def _local_location(database: str, store: Store, name: str) -> str | None:
    """Return the address of the table's metadata in the local catalogue; None: no such table."""
    path = Path(store.uri(CATALOG_FILE))
    if not path.exists():
        return None
    query = (
        "SELECT metadata_location FROM iceberg_tables "
        "WHERE catalog_name = ? AND table_namespace = ? AND table_name = ?"
    )
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
            row = connection.execute(query, (CATALOG_NAME, database, name)).fetchone()
    except sqlite3.Error as error:
        raise NeedsPyIcebergError from error
    return None if row is None else row[0] or ""


def _properties_at(store: Store, location: str) -> Mapping[str, str] | None:
    """Return the properties in a metadata file of the lake; None: it has no snapshot."""
    root = store.uri("").rstrip("/") + "/"
    data = store.read(location.removeprefix(root)) if location.startswith(root) else None
    if data is None:
        raise NeedsPyIcebergError
    metadata = json.loads(gzip.decompress(data) if data.startswith(_GZIP) else data)
    if metadata.get("current-snapshot-id") in (None, -1):
        return None
    return metadata.get("properties", {})
