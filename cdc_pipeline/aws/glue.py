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
_PASSING = {
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
    "NumberOfBuckets": -1,  # none, as Athena's own DDL says it; Trino's client fails without
}
_PARAMETERS = {"classification": "parquet", "EXTERNAL": "TRUE"}
_PROJECTION = ("projection.", "storage.location.template")
_COLUMNS = "cdc_pipeline.columns"
"""A partition's parameter that tells its columns: listings leave the columns themselves out."""
Columns = Sequence[tuple[str, str]]
Values = tuple[str, ...]
_T = TypeVar("_T")


@dataclass(frozen=True)
class HiveTable:
    """An external Parquet table as it should be.

    `projection`: parameters of Athena's partition projection, none where partitions are registered.
    """

    name: str
    location: str
    columns: Columns
    partition_keys: Columns
    projection: Mapping[str, str]


@dataclass(frozen=True)
class Partition:
    """A registered partition. `is_current`: it has the columns that were asked for."""

    location: str
    is_current: bool


@dataclass(frozen=True)
class Written:
    """What became of partitions. `failed`: AWS's words by the partition's values."""

    done: list[Values]
    failed: dict[Values, str]


class Glue:
    """Tables and partitions of one Glue database; every method raises `LakeError`."""

    def __init__(self, aws: AwsSession, database: str) -> None:
        self._client = aws.client("glue")
        self._database = database

    def table_parameters(self, name: str) -> dict[str, str] | None:
        """Parameters of a table, None for a table that does not exist."""
        found = self._table(name)
        return None if found is None else found.get("Parameters", {})

    def is_as_wanted(self, wanted: HiveTable) -> bool:
        """Whether the table exists with the columns, place and projection that it should have."""
        found = self._table(wanted.name)
        return found is not None and not _differs(found, wanted)

    def ensure_table(self, wanted: HiveTable) -> bool:
        """Create the table, and its database before it, or update it; False if it is as wanted.

        Columns, place and projection are ours; parameters and descriptions of others stay. Of two
        writers at once the later one reads again what the earlier one made.
        """
        what = f"Glue table {self._database}.{wanted.name}"
        with aws_errors(what, LakeError):
            return _persistently(lambda: self._ensure_table(wanted))

    def partitions(self, name: str, columns: Columns) -> dict[Values, Partition]:
        """All partitions of a table by their values; none for a table that does not exist."""
        pages = self._client.get_paginator("get_partitions")
        found: dict[Values, Partition] = {}
        with aws_errors(f"partitions of Glue table {self._database}.{name}", LakeError):
            try:
                for page in pages.paginate(
                    DatabaseName=self._database, TableName=name, ExcludeColumnSchema=True
                ):
                    for told in page["Partitions"]:
                        has = told.get("Parameters", {}).get(_COLUMNS)
                        place = told["StorageDescriptor"].get("Location", "")
                        found[tuple(told["Values"])] = Partition(place, has == _digest(columns))
            except ClientError as error:
                if error_code(error) != "EntityNotFoundException":
                    raise
        return found

    def add_partitions(
        self, name: str, columns: Columns, locations: Mapping[Values, str]
    ) -> Written:
        """Add partitions; `done` are those that are new, and ones that were there are no failure.

        The call answers 200 with an error per partition; one that fails stops no other.
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
    ) -> Written:
        """Give partitions these columns and places; errors are those of each, as when adding."""

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
        """Remove a partition from the catalogue, not its files; one that is gone is fine."""
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
        found = self._table(wanted.name)
        if found is None:
            _unless_there(
                lambda: self._client.create_database(DatabaseInput={"Name": self._database})
            )
            _unless_there(
                lambda: self._client.create_table(
                    DatabaseName=self._database, TableInput=self._table_input({}, wanted)
                )
            )
            return True
        if not _differs(found, wanted):
            return False
        version = {"VersionId": found["VersionId"]} if "VersionId" in found else {}
        self._client.update_table(
            DatabaseName=self._database,
            TableInput=self._table_input(found, wanted),
            SkipArchive=True,  # or each update would keep the version before it
            **version,
        )
        return True

    def _table_input(self, found: Mapping[str, Any], wanted: HiveTable) -> dict[str, Any]:
        """`found` with what is ours as wanted.

        GetTable tells more than UpdateTable takes, empty texts for example.
        """
        known = self._client.meta.service_model.shape_for("TableInput").members
        theirs = {
            name: value
            for name, value in found.get("Parameters", {}).items()
            if not name.startswith(_PROJECTION)
        }
        storage = found.get("StorageDescriptor", {})
        return {
            "TableType": "EXTERNAL_TABLE",
            "PartitionKeys": _columns(wanted.partition_keys),
            **{name: value for name, value in found.items() if name in known and value},
            "Name": wanted.name,
            "Parameters": {**theirs, **_PARAMETERS, **wanted.projection},
            "StorageDescriptor": {**storage, **_storage(wanted.location, wanted.columns)},
        }

    def _in_batches(
        self,
        name: str,
        todo: Sequence[Values],
        write: Callable[[Sequence[Values]], dict[Values, tuple[str, str]]],
        harmless: str = "",
    ) -> Written:
        """`write` returns code and message by the values of partitions that it did not write."""
        written = Written([], {})
        for start in range(0, len(todo), _BATCH):
            batch = todo[start : start + _BATCH]
            pause = _PAUSE_SECONDS
            for attempt in range(_ATTEMPTS):
                with aws_errors(f"partitions of Glue table {self._database}.{name}", LakeError):
                    errors = _persistently(lambda batch=batch: write(batch))
                written.done.extend(values for values in batch if values not in errors)
                batch = [values for values, (code, _) in errors.items() if code in _PASSING]
                is_last = not batch or attempt == _ATTEMPTS - 1
                written.failed.update(
                    (values, f"{code}: {message}")
                    for values, (code, message) in errors.items()
                    if code != harmless and (is_last or code not in _PASSING)
                )
                if is_last:
                    break
                time.sleep(pause)
                pause *= 2
        return written


def _persistently(call: Callable[[], _T]) -> _T:
    """Repeat a call that another writer came in between of; botocore repeats the throttled ones."""
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


def _unless_there(create: Any) -> None:
    try:
        create()
    except ClientError as error:
        if error_code(error) != "AlreadyExistsException":
            raise


def _differs(found: Mapping[str, Any], wanted: HiveTable) -> bool:
    storage, parameters = found.get("StorageDescriptor", {}), found.get("Parameters", {})
    columns = [(column["Name"], column.get("Type")) for column in storage.get("Columns", ())]
    projection = {n: value for n, value in parameters.items() if n.startswith(_PROJECTION)}
    return (
        columns != list(wanted.columns)
        or not same_place(storage.get("Location", ""), wanted.location)
        or projection != dict(wanted.projection)
    )


def same_place(one: str, other: str) -> bool:
    """Whether two locations are one folder."""
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
