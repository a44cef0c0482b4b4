"""Round trip of a small Iceberg table: written and read by all clients of the lake, removed."""

import secrets

import duckdb
import pyarrow as pa
from pyiceberg.catalog.noop import NoopCatalog
from pyiceberg.partitioning import UNPARTITIONED_PARTITION_SPEC
from pyiceberg.schema import Schema
from pyiceberg.serializers import FromInputFile, ToOutputFile
from pyiceberg.table import Table
from pyiceberg.table.metadata import new_table_metadata
from pyiceberg.table.sorting import UNSORTED_SORT_ORDER
from pyiceberg.types import NestedField, StringType

from cdc_pipeline.core.errors import LakeError
from cdc_pipeline.lake.engine.duckdb_session import (
    arrow_table,
    connect_duckdb,
    explain,
    files_relation,
)
from cdc_pipeline.lake.iceberg.catalog import open_files
from cdc_pipeline.lake.iceberg.checksums import ChecksumFolder
from cdc_pipeline.lake.iceberg.writer import append_stream
from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.lake.storage.store import TEMPORARY

_SCHEMA = Schema(NestedField(1, "_key", StringType()), NestedField(2, "_item", StringType()))
_ROWS = pa.table({"_key": ["a", "b"], "_item": ["{}", "{}"]})


def round_trip(lake: Lake) -> int:
    """Write, read by PyIceberg and DuckDB, and remove; return the bytes. Raises `LakeError`.

    Uses no catalogue: the pipeline's role may not drop tables from one.
    """
    prefix = f"{TEMPORARY}preflight-{secrets.token_hex(8)}"
    where = lake.store.uri(prefix)
    try:
        _compare(lake, _write(lake, where), where)
        return sum(file.bytes for file in lake.store.files(f"{prefix}/"))
    except OSError as error:
        raise LakeError(f"lake {where}: {error}") from error
    except duckdb.Error as error:
        raise LakeError(f"lake {where}: DuckDB: {explain(error)}") from error
    finally:
        lake.store.delete([*lake.store.list(f"{prefix}/")])


def _write(lake: Lake, where: str) -> Table:
    """Write the table and return it as read back from its metadata file."""
    io = open_files(lake.settings, lake.aws)
    location = f"{where}/metadata/1.metadata.json"
    catalog, name = NoopCatalog("preflight"), ("preflight", "files")
    metadata = new_table_metadata(
        _SCHEMA, UNPARTITIONED_PARTITION_SPEC, UNSORTED_SORT_ORDER, where, {"format-version": "2"}
    )
    transaction = Table(name, metadata, location, io, catalog).transaction()
    checksums = ChecksumFolder(lake.store, f"{where}/")
    append_stream(transaction, _ROWS.to_reader(), {}, checksums)
    ToOutputFile.table_metadata(transaction.table_metadata, io.new_output(location))
    return Table(name, FromInputFile.table_metadata(io.new_input(location)), location, io, catalog)


def _compare(lake: Lake, table: Table, where: str) -> None:
    paths = [task.file.file_path for task in table.scan().plan_files()]
    with connect_duckdb(lake) as connection:
        rows = files_relation(connection, paths, _ROWS.schema)
        by_duckdb = arrow_table(connection, f"SELECT * FROM {rows} ORDER BY _key")
    for rows_read in (table.scan().to_arrow(), by_duckdb):
        if rows_read.to_pylist() != _ROWS.to_pylist():
            raise LakeError(f"lake {where}: rows read back differ from the rows written")
