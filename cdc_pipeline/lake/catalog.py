"""Opening the catalogue of the lake's Iceberg tables, and the files that PyIceberg works with."""

from pathlib import Path
from typing import Any

from pyarrow.fs import FileSystem
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.catalog.glue import GlueCatalog
from pyiceberg.io import FileIO
from pyiceberg.io.pyarrow import PyArrowFileIO
from pyiceberg.typedef import EMPTY_DICT, Properties

from cdc_pipeline.aws.s3_filesystem import s3_filesystem
from cdc_pipeline.aws.s3_output import sse_parameters
from cdc_pipeline.aws.session import AwsSession
from cdc_pipeline.core.errors import LakeError
from cdc_pipeline.lake.store import Store
from cdc_pipeline.settings import Settings


def open_catalog(settings: Settings, aws: AwsSession, store: Store) -> Catalog:
    """Glue for a lake in S3, a SQLite file inside the folder for a local lake."""
    if not settings.is_s3:
        return _local_catalog(settings, store)
    return _Glue("glue", client=aws.client("glue"), files=_files(settings, aws))


def open_files(settings: Settings, aws: AwsSession) -> FileIO:
    """The files of the lake's Iceberg tables, without a catalogue."""
    return LakeFileIO(_files(settings, aws)) if settings.is_s3 else PyArrowFileIO()


def _files(settings: Settings, aws: AwsSession) -> FileSystem:
    return s3_filesystem(aws, sse_parameters(settings.kms_key))


def _local_catalog(settings: Settings, store: Store) -> Catalog:
    state = Path(store.uri("_cdc"))
    try:
        state.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LakeError(
            f"lake {settings.lake_folder}: {error.strerror}",
            fix="check that the folder can be written",
        ) from error
    return load_catalog("local", type="sql", uri=f"sqlite:///{state / 'catalog.db'}")


class LakeFileIO(PyArrowFileIO):
    """PyIceberg's files in S3 by a file system of ours.

    PyIceberg would make its own from properties: its keys are copied once and end in the middle of
    a run, and there are no properties for authorities and encryption.
    """

    def __init__(self, files: FileSystem, properties: Properties = EMPTY_DICT) -> None:
        super().__init__(properties)
        self._files = files

    def _initialize_s3_fs(self, netloc: str | None) -> FileSystem:
        return self._files


class _Glue(GlueCatalog):
    """PyIceberg's Glue catalogue with our client and files."""

    def __init__(self, name: str, *, client: Any, files: FileSystem) -> None:
        super().__init__(name, client=client)
        self._files = files

    def _load_file_io(
        self, properties: Properties = EMPTY_DICT, location: str | None = None
    ) -> FileIO:
        return LakeFileIO(self._files, {**self.properties, **properties})
