"""The Glue data catalogue: Hive tables and their partitions (docs/aws_facts.md, Glue)."""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from botocore.exceptions import ClientError

from cdc_pipeline.aws.client.session import AwsSession, aws_errors, error_code
from cdc_pipeline.core.errors import LakeError

_BATCH = 100  # BatchCreatePartition and BatchUpdatePartition take 100 partitions (botocore model)
_ATTEMPTS = 5
_PAUSE_SECONDS = 0.2  # doubled with each attempt
_TRANSIENT = {
    "ConcurrentModificationException",
    "InternalServiceException",
    "OperationTimeoutException",
    "ThrottlingException",
}
_STORAGE = {
    "InputFormat": "org.apache.hadoop.hive.ql.io.parquet.MapredParquetInputFormat",
    "OutputFormat": "org.apache.hadoop.hive.ql.io.parquet.MapredParquetOutputFormat",
    "SerdeInfo": {
        "SerializationLibrary": "org.apache.hadoop.hive.ql.io.parquet.serde.ParquetHiveSerDe"
    },
    "NumberOfBuckets": -1,  # none, as in Athena's own DDL; Trino's client fails without it
}
_PARAMETERS = {"classification": "parquet", "EXTERNAL": "TRUE"}
_PROJECTION = ("projection.", "storage.location.template")
_COLUMNS = "cdc_pipeline.columns"
"""A partition's parameter with a hash of its columns, which listings leave out."""
Columns = Sequence[tuple[str, str]]
Values = tuple[str, ...]
_T = TypeVar("_T")


@dataclass(frozen=True)
class HiveTable:
    """The wanted state of an external Parquet table.

    `projection`: parameters of Athena's partition projection; empty if partitions are registered.
    """

    name: str
    location: str
    columns: Columns
    partition_keys: Columns
    projection: Mapping[str, str]


@dataclass(frozen=True)
class Partition:
    """A registered partition. `is_current`: it has the wanted columns."""

    location: str
    is_current: bool


@dataclass(frozen=True)
class WriteResult:
    """Result of writing partitions. `failed`: AWS's error by the partition's values."""

    done: list[Values]
    failed: dict[Values, str]


class Glue:
    """Tables and partitions of one Glue database; every method raises `LakeError`."""

    def __init__(self, aws: AwsSession, database: str) -> None:
        self._client = aws.client("glue")
        self._database = database

    def table_parameters(self, name: str) -> dict[str, str] | None:
        """Return the parameters of a table; None: no such table."""
        table = self._table(name)
        return None if table is None else table.get("Parameters", {})

    def is_as_wanted(self, wanted: HiveTable) -> bool:
        """Whether the table exists with the wanted columns, location and projection."""
        table = self._table(wanted.name)
        return table is not None and not _differs(table, wanted)

    def ensure_table(self, wanted: HiveTable) -> bool:
        """Create the table and its database, or update the table; False: nothing to do.

        Columns, location and projection are set; foreign parameters and descriptions stay. Of two
        concurrent writers the later one reads the earlier one's result and retries.
        """
        what = f"Glue table {self._database}.{wanted.name}"
        with aws_errors(what, LakeError):
            return _retry_conflicts(lambda: self._ensure_table(wanted))

    def partitions(self, name: str, columns: Columns) -> dict[Values, Partition]:
        """List all partitions of a table by their values; none without the table."""
        pages = self._client.get_paginator("get_partitions")
        partitions: dict[Values, Partition] = {}
        with aws_errors(f"partitions of Glue table {self._database}.{name}", LakeError):
            try:
                for page in pages.paginate(
                    DatabaseName=self._database, TableName=name, ExcludeColumnSchema=True
                ):
                    for raw in page["Partitions"]:
                        digest = raw.get("Parameters", {}).get(_COLUMNS)
                        location = raw["StorageDescriptor"].get("Location", "")
                        is_current = digest == _digest(columns)
                        partitions[tuple(raw["Values"])] = Partition(location, is_current)
            except ClientError as error:
                if error_code(error) != "EntityNotFoundException":
                    raise
        return partitions

    def add_partitions(
        self, name: str, columns: Columns, locations: Mapping[Values, str]
    ) -> WriteResult:
        """Add partitions; `done`: the new ones. Existing ones are no failure.

        The call answers 200 with an error per partition; a failure does not stop the others.
        """

        def create(batch: Sequence[Values]) -> dict[Values, tuple[str, str]]:
            answer = self._client.batch_create_partition(
                DatabaseName=self._database,
                TableName=name,
                PartitionInputList=[_partition(v, locations[v], columns) for v in batch],
            )
            return _item_errors(answer, "PartitionValues")

        return self._in_batches(name, list(locations), create, "AlreadyExistsException")

    def update_partitions(
        self, name: str, columns: Columns, locations: Mapping[Values, str]
    ) -> WriteResult:
        """Update columns and locations of partitions; errors as in `add_partitions`."""

        def update(batch: Sequence[Values]) -> dict[Values, tuple[str, str]]:
            entries = [
                {
                    "PartitionValueList": list(values),
                    "PartitionInput": _partition(values, locations[values], columns),
                }
                for values in batch
            ]
            answer = self._client.batch_update_partition(
                DatabaseName=self._database, TableName=name, Entries=entries
            )
            return _item_errors(answer, "PartitionValueList")

        return self._in_batches(name, list(locations), update)

    def remove_partition(self, name: str, values: Values) -> None:
        """Remove a partition from the catalogue, not its files; a missing one is no error."""
        what = f"partition {'/'.join(values)} of Glue table {self._database}.{name}"
        with aws_errors(what, LakeError):
            try:
                self._client.delete_partition(
                    DatabaseName=self._database, TableName=name, PartitionValues=list(values)
                )
            except ClientError as error:
                if error_code(error) != "EntityNotFoundException":
                    raise

    def _table(self, name: str) -> dict[str, Any] | None:
        with aws_errors(f"Glue table {self._database}.{name}", LakeError):
            try:
                return self._client.get_table(DatabaseName=self._database, Name=name)["Table"]
            except ClientError as error:
                if error_code(error) != "EntityNotFoundException":
                    raise
                return None

    def _ensure_table(self, wanted: HiveTable) -> bool:
        table = self._table(wanted.name)
        if table is None:
            _ignore_existing(
                lambda: self._client.create_database(DatabaseInput={"Name": self._database})
            )
            _ignore_existing(
                lambda: self._client.create_table(
                    DatabaseName=self._database, TableInput=self._table_input({}, wanted)
                )
            )
            return True
        if not _differs(table, wanted):
            return False
        version = {"VersionId": table["VersionId"]} if "VersionId" in table else {}
        self._client.update_table(
            DatabaseName=self._database,
            TableInput=self._table_input(table, wanted),
            SkipArchive=True,  # otherwise each update keeps the former version
            **version,
        )
        return True

    def _table_input(self, table: Mapping[str, Any], wanted: HiveTable) -> dict[str, Any]:
        """Merge the wanted parts into a table's present definition.

        GetTable returns more than UpdateTable accepts, for example empty texts.
        """
        known = self._client.meta.service_model.shape_for("TableInput").members
        foreign = {
            name: value
            for name, value in table.get("Parameters", {}).items()
            if not name.startswith(_PROJECTION)
        }
        storage = table.get("StorageDescriptor", {})
        return {
            "TableType": "EXTERNAL_TABLE",
            "PartitionKeys": _columns(wanted.partition_keys),
            **{name: value for name, value in table.items() if name in known and value},
            "Name": wanted.name,
            "Parameters": {**foreign, **_PARAMETERS, **wanted.projection},
            "StorageDescriptor": {**storage, **_storage(wanted.location, wanted.columns)},
        }

    def _in_batches(
        self,
        name: str,
        todo: Sequence[Values],
        write: Callable[[Sequence[Values]], dict[Values, tuple[str, str]]],
        harmless: str = "",
    ) -> WriteResult:
        """Write partitions in batches; `write` returns code and message of each failed one."""
        written = WriteResult([], {})
        for start in range(0, len(todo), _BATCH):
            batch = todo[start : start + _BATCH]
            pause = _PAUSE_SECONDS
            for attempt in range(_ATTEMPTS):
                with aws_errors(f"partitions of Glue table {self._database}.{name}", LakeError):
                    errors = _retry_conflicts(lambda batch=batch: write(batch))
                written.done.extend(values for values in batch if values not in errors)
                batch = [values for values, (code, _) in errors.items() if code in _TRANSIENT]
                is_last = not batch or attempt == _ATTEMPTS - 1
                written.failed.update(
                    (values, f"{code}: {message}")
                    for values, (code, message) in errors.items()
                    if code != harmless and (is_last or code not in _TRANSIENT)
                )
                if is_last:
                    break
                time.sleep(pause)
                pause *= 2
        return written


def _retry_conflicts(call: Callable[[], _T]) -> _T:
    """Repeat a call after a conflict with another writer; botocore repeats throttled calls."""
    for attempt in range(_ATTEMPTS - 1):
        try:
            return call()
        except ClientError as error:
            if error_code(error) != "ConcurrentModificationException":
                raise
            time.sleep(_PAUSE_SECONDS * 2**attempt)
    return call()


def _item_errors(answer: Mapping[str, Any], key: str) -> dict[Values, tuple[str, str]]:
    return {
        tuple(error[key]): (
            error["ErrorDetail"]["ErrorCode"],
            error["ErrorDetail"].get("ErrorMessage", ""),
        )
        for error in answer.get("Errors", ())
    }


def _ignore_existing(create: Any) -> None:
    try:
        create()
    except ClientError as error:
        if error_code(error) != "AlreadyExistsException":
            raise


def _differs(table: Mapping[str, Any], wanted: HiveTable) -> bool:
    storage, parameters = table.get("StorageDescriptor", {}), table.get("Parameters", {})
    columns = [(column["Name"], column.get("Type")) for column in storage.get("Columns", ())]
    projection = {n: value for n, value in parameters.items() if n.startswith(_PROJECTION)}
    return (
        columns != list(wanted.columns)
        or not is_same_location(storage.get("Location", ""), wanted.location)
        or projection != dict(wanted.projection)
    )


def is_same_location(one: str, other: str) -> bool:
    """Whether two locations are the same folder."""
    return one.rstrip("/") == other.rstrip("/")


def _partition(values: Values, location: str, columns: Columns) -> dict[str, Any]:
    return {
        "Values": list(values),
        "StorageDescriptor": _storage(location, columns),
        "Parameters": {_COLUMNS: _digest(columns)},
    }


def _digest(columns: Columns) -> str:
    return hashlib.sha256(repr([*columns]).encode()).hexdigest()[:16]


def _columns(columns: Columns) -> list[dict[str, str]]:
    return [{"Name": name, "Type": kind} for name, kind in columns]


def _storage(location: str, columns: Columns) -> dict[str, Any]:
    return {"Location": location, "Columns": _columns(columns), **_STORAGE}
