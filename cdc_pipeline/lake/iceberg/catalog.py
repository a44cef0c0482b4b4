"""The catalogue of the lake's Iceberg tables, and the FileIO that PyIceberg uses."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyarrow.fs import FileSystem
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.catalog.glue import GlueCatalog
from pyiceberg.io import FileIO
from pyiceberg.io.pyarrow import PyArrowFileIO
from pyiceberg.typedef import EMPTY_DICT, Properties

from cdc_pipeline.aws.client.session import AwsSession
from cdc_pipeline.aws.s3.filesystem import s3_filesystem
from cdc_pipeline.aws.s3.output import sse_parameters
from cdc_pipeline.core.errors import LakeError, SettingsError
from cdc_pipeline.lake.iceberg.metadata_file import CATALOG_FILE, CATALOG_NAME
from cdc_pipeline.lake.storage.store import Store
from cdc_pipeline.settings.model import Settings

Files = Callable[[Properties], FileIO]
"""Makes PyIceberg's FileIO from the properties of a table."""


def open_catalog(settings: Settings, aws: AwsSession, store: Store) -> Catalog:
    """Open the catalogue of the settings; raises `LakeError`, `SettingsError`, `SourceError`.

    Default: Glue for a lake in S3, a SQLite file inside the folder for a local lake.
    """
    kind, chosen = settings.catalog_type, settings.catalog
    properties = {**chosen.properties, **_secrets(settings)} if chosen else {}
    files = _files_of(settings, aws)
    if kind == "glue":
        return _Glue("glue", client=aws.client("glue"), files=files, **properties)
    if kind != "sql":
        from cdc_pipeline.lake.iceberg.catalog_rest import open_rest

        return open_rest(kind, properties, aws, files)
    if "uri" not in properties:
        return _local_catalog(settings, store)
    from cdc_pipeline.lake.iceberg.catalog_sql import open_sql

    return open_sql(properties, files)


def open_files(settings: Settings, aws: AwsSession) -> FileIO:
    """Return the FileIO of the lake's Iceberg tables, without a catalogue."""
    return _files_of(settings, aws)(EMPTY_DICT)


def chooses_location(settings: Settings) -> bool:
    """Whether the catalogue chooses the location of tables and accepts no other."""
    return settings.catalog_type == "s3tables"


def _files_of(settings: Settings, aws: AwsSession) -> Files:
    if not settings.is_s3:
        return PyArrowFileIO
    # In a table bucket, encryption is a property of the tables and not of writes.
    sse = {} if chooses_location(settings) else sse_parameters(settings.kms_key)
    s3 = s3_filesystem(aws, sse)
    return lambda properties: LakeFileIO(s3, properties)


def _secrets(settings: Settings) -> dict[str, str]:
    """Return the properties whose values are in the environment."""
    secrets = {}
    for name, variable in (settings.catalog.secrets if settings.catalog else {}).items():
        value = os.environ.get(variable)
        if not value:
            raise SettingsError(
                f"catalog: the environment variable {variable} for the property {name!r} is not "
                "set",
                fix=f"export {variable}",
            )
        secrets[name] = value
    return secrets


def _local_catalog(settings: Settings, store: Store) -> Catalog:
    path = Path(store.uri(CATALOG_FILE))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LakeError(
            f"lake {settings.lake_folder}: {error.strerror}",
            fix="check that the folder is writable",
        ) from error
    return load_catalog(CATALOG_NAME, type="sql", uri=f"sqlite:///{path}")


class LakeFileIO(PyArrowFileIO):
    """PyIceberg's FileIO for S3 with the lake's own file system.

    PyIceberg would make one from properties: its credentials are copied once and expire during a
    run, and there are no properties for certificate authorities and encryption.
    """

    def __init__(self, files: FileSystem, properties: Properties = EMPTY_DICT) -> None:
        super().__init__(properties)
        self._files = files

    def _initialize_s3_fs(self, netloc: str | None) -> FileSystem:
        return self._files


class _Glue(GlueCatalog):
    """PyIceberg's Glue catalogue with the lake's client and FileIO."""

    def __init__(self, name: str, *, client: Any, files: Files, **properties: str) -> None:
        super().__init__(name, client=client, **properties)
        self._files = files

    def _load_file_io(
        self, properties: Properties = EMPTY_DICT, location: str | None = None
    ) -> FileIO:
        return self._files({**self.properties, **properties})
