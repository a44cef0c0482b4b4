"""The Glue data catalogue: Hive tables and their partitions (DYNAMODB_CDC section 6)."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from botocore.exceptions import ClientError

from cdc_pipeline.aws.session import AwsSession, aws_errors, error_code
from cdc_pipeline.core.errors import LakeError

_BATCH = 100  # BatchCreatePartition takes 100 partitions (botocore model)
_STORAGE = {
    "InputFormat": "org.apache.hadoop.hive.ql.io.parquet.MapredParquetInputFormat",
    "OutputFormat": "org.apache.hadoop.hive.ql.io.parquet.MapredParquetOutputFormat",
    "SerdeInfo": {
        "SerializationLibrary": "org.apache.hadoop.hive.ql.io.parquet.serde.ParquetHiveSerDe"
    },
}

Columns = Sequence[tuple[str, str]]
Values = tuple[str, ...]


class Glue:
    """Tables and partitions of one Glue database; every method raises `LakeError`."""

    def __init__(self, aws: AwsSession, database: str) -> None:
        self._client = aws.client("glue")
        self._database = database

    def create_table(
        self, name: str, location: str, columns: Columns, partition_keys: Columns
    ) -> None:
        """Create an external Parquet table unless it is there, and its database before it."""
        table = {
            "Name": name,
            "TableType": "EXTERNAL_TABLE",
            "Parameters": {"classification": "parquet", "EXTERNAL": "TRUE"},
            "StorageDescriptor": _storage(location, columns),
            "PartitionKeys": _columns(partition_keys),
        }
        with aws_errors(f"Glue table {self._database}.{name}", LakeError):
            _unless_there(
                lambda: self._client.create_database(DatabaseInput={"Name": self._database})
            )
            _unless_there(
                lambda: self._client.create_table(DatabaseName=self._database, TableInput=table)
            )

    def partitions(self, name: str) -> set[Values]:
        """Values of all partitions of a table; none for a table that does not exist."""
        pages = self._client.get_paginator("get_partitions")
        found: set[Values] = set()
        with aws_errors(f"partitions of Glue table {self._database}.{name}", LakeError):
            try:
                for page in pages.paginate(
                    DatabaseName=self._database, TableName=name, ExcludeColumnSchema=True
                ):
                    found |= {tuple(p["Values"]) for p in page["Partitions"]}
            except ClientError as error:
                if error_code(error) != "EntityNotFoundException":
                    raise
        return found

    def add_partitions(
        self, name: str, columns: Columns, locations: Mapping[Values, str]
    ) -> list[Values]:
        """Add partitions by their values; those that are there already are fine.

        Returns the ones that are new. The call answers 200 with an error per partition.
        """
        inputs = [
            {"Values": list(values), "StorageDescriptor": _storage(location, columns)}
            for values, location in locations.items()
        ]
        existed: set[Values] = set()
        for start in range(0, len(inputs), _BATCH):
            batch = inputs[start : start + _BATCH]
            with aws_errors(f"partitions of Glue table {self._database}.{name}", LakeError):
                answer = self._client.batch_create_partition(
                    DatabaseName=self._database, TableName=name, PartitionInputList=batch
                )
            existed |= self._existing(name, answer.get("Errors", ()))
        return [values for values in locations if values not in existed]

    def has_table(self, name: str) -> bool:
        """Whether the database has this table."""
        with aws_errors(f"Glue table {self._database}.{name}", LakeError):
            try:
                self._client.get_table(DatabaseName=self._database, Name=name)
            except ClientError as error:
                if error_code(error) != "EntityNotFoundException":
                    raise
                return False
        return True

    def _existing(self, name: str, errors: Iterable[Mapping[str, Any]]) -> set[Values]:
        there: set[Values] = set()
        for error in errors:
            code = error["ErrorDetail"]["ErrorCode"]
            if code != "AlreadyExistsException":
                values = "/".join(error["PartitionValues"])
                message = error["ErrorDetail"].get("ErrorMessage", "")
                raise LakeError(
                    f"Glue table {self._database}.{name}, partition {values}: {code}: {message}"
                )
            there.add(tuple(error["PartitionValues"]))
        return there


def _unless_there(create: Any) -> None:
    try:
        create()
    except ClientError as error:
        if error_code(error) != "AlreadyExistsException":
            raise


def _columns(columns: Columns) -> list[dict[str, str]]:
    return [{"Name": name, "Type": kind} for name, kind in columns]


def _storage(location: str, columns: Columns) -> dict[str, Any]:
    return {"Location": location, "Columns": _columns(columns), **_STORAGE}
