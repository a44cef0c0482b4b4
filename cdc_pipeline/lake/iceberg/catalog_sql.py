"""Catalogues in a SQL database: PostgreSQL, or a SQLite file at a place of one's own."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pyiceberg.catalog import Catalog
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.io import FileIO
from pyiceberg.typedef import EMPTY_DICT, Properties
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from cdc_pipeline.core.errors import LakeError
from cdc_pipeline.lake.iceberg.catalog import NAME, Files


def open_sql(said: Properties, files: Files) -> Catalog:
    """The catalogue in the database that `uri` names; its tables are made. Raises `LakeError`."""
    with _sql_errors():
        return _Sql(files, **_sql_properties(said))


def _sql_properties(said: Properties) -> dict[str, str]:
    """SQLAlchemy's address with the driver that we install, and connections that are alive."""
    address = said["uri"]
    for short in ("postgresql://", "postgres://"):
        if address.startswith(short):
            address = "postgresql+psycopg://" + address.removeprefix(short)
    return {"pool_pre_ping": "true", **said, "uri": address}


class _Sql(SqlCatalog):
    """PyIceberg's catalogue in a SQL database with our files, and errors that say what to do."""

    def __init__(self, files: Files, **properties: str) -> None:
        self._files = files
        super().__init__(NAME, **properties)

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
    """Raise `LakeError` for what the database refuses; its address may hold a password."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise LakeError(
            f"catalog: the database's driver {error.name} is not installed",
            fix="for PostgreSQL: pip install 'cdc-pipeline[postgres]'",
        ) from None
    except (ArgumentError, NoSuchModuleError):
        raise LakeError(
            "catalog: `uri` is no database's address that SQLAlchemy knows",
            fix="such as postgresql://user@host:5432/database, the password in PGPASSWORD or the "
            "whole address in `secrets: {uri: NAME}`",
        ) from None
    except SQLAlchemyError as error:
        cause = getattr(error, "orig", None)
        told = str(cause or type(error).__name__).strip().splitlines()
        raise LakeError(
            f"catalog: the database says: {told[0] if told else type(error).__name__}",
            fix="check that it runs, that the role may create and write tables, and the address",
        ) from None
