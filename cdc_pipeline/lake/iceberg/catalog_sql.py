"""Catalogues in a SQL database: PostgreSQL, or a SQLite file at a chosen path."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pyiceberg.catalog import Catalog
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.io import FileIO
from pyiceberg.typedef import EMPTY_DICT, Properties
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from cdc_pipeline.core.errors import LakeError
from cdc_pipeline.lake.iceberg.catalog import Files
from cdc_pipeline.lake.iceberg.metadata_file import CATALOG_NAME


def open_sql(properties: Properties, files: Files) -> Catalog:
    """Open the catalogue in the database at `uri`, creating its tables. Raises `LakeError`."""
    with _sql_errors():
        return _Sql(files, **_sql_properties(properties))


def _sql_properties(properties: Properties) -> dict[str, str]:
    """Return the properties with the installed driver in the URI and a check of connections."""
    uri = properties["uri"]
    for scheme in ("postgresql://", "postgres://"):
        if uri.startswith(scheme):
            uri = "postgresql+psycopg://" + uri.removeprefix(scheme)
    return {"pool_pre_ping": "true", **properties, "uri": uri}


class _Sql(SqlCatalog):
    """PyIceberg's catalogue in a SQL database with the lake's FileIO, and errors with a fix."""

    def __init__(self, files: Files, **properties: str) -> None:
        self._files = files
        super().__init__(CATALOG_NAME, **properties)

    def _load_file_io(
        self, properties: Properties = EMPTY_DICT, location: str | None = None
    ) -> FileIO:
        return self._files(properties)

    def load_table(self, *arguments: Any, **named: Any) -> Any:
        with _sql_errors():
            return super().load_table(*arguments, **named)

    def create_table(self, *arguments: Any, **named: Any) -> Any:
        with _sql_errors():
            return super().create_table(*arguments, **named)

    def create_namespace(self, *arguments: Any, **named: Any) -> Any:
        with _sql_errors():
            return super().create_namespace(*arguments, **named)

    def commit_table(self, *arguments: Any, **named: Any) -> Any:
        with _sql_errors():
            return super().commit_table(*arguments, **named)


@contextmanager
def _sql_errors() -> Iterator[None]:
    """Raise `LakeError` for errors of the database, without its URI, which may have a password."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise LakeError(
            f"catalog: the database's driver {error.name} is not installed",
            fix="for PostgreSQL: pip install 'cdc-pipeline[postgres]'",
        ) from None
    except (ArgumentError, NoSuchModuleError):
        raise LakeError(
            "catalog: `uri` is not a database URI of SQLAlchemy",
            fix="use one such as postgresql://user@host:5432/database, with the password in "
            "PGPASSWORD, or the whole URI in `secrets: {uri: NAME}`",
        ) from None
    except SQLAlchemyError as error:
        cause = getattr(error, "orig", None)
        lines = str(cause or type(error).__name__).strip().splitlines()
        raise LakeError(
            f"catalog: error of the database: {lines[0] if lines else type(error).__name__}",
            fix="check that it runs, that the role may create and write tables, and the URI",
        ) from None
