"""A lake put aside and put back: objects, and in S3 what Glue says of them."""

import shutil
from dataclasses import dataclass
from typing import Any

from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.lake.storage.log_memory import MEMORY
from cdc_pipeline_tests.e2e.world import World

_TABLE_INPUT = ("Name", "TableType", "Parameters", "StorageDescriptor", "PartitionKeys")
_PARTITION_INPUT = ("Values", "StorageDescriptor", "Parameters")
_DATABASE = "cdc"


@dataclass(frozen=True)
class Checkpoint:
    """Everything in a lake at one moment."""

    world: World
    objects: dict[str, bytes]
    tables: dict[str, dict[str, Any]]
    partitions: dict[str, list[dict[str, Any]]]

    @staticmethod
    def take(world: World) -> "Checkpoint":
        if world.kind == "local":
            root = world.folder / "lake"
            files = {key: (root / key).read_bytes() for key in world.stored()}
            return Checkpoint(world, files, {}, {})
        s3 = world.client("s3")
        objects = {
            key: s3.get_object(Bucket=world.bucket, Key=f"lake/{key}")["Body"].read()
            for key in world.stored()
        }
        tables = {t["Name"]: _only(t, _TABLE_INPUT) for t in _tables(world)}
        partitions = {
            name: [_only(p, _PARTITION_INPUT) for p in _partitions(world, name)] for name in tables
        }
        return Checkpoint(world, objects, tables, partitions)

    def restore(self) -> None:
        """Make the lake what it was; the source and its stream stay as they are."""
        MEMORY.clear()  # a run that begins within seconds would take the log as it is no more
        if self.world.kind == "local":
            # Its catalogue is a file that is about to be replaced.
            name = Lake.iceberg.attrname
            assert name is not None
            vars(self.world.lake()).pop(name, None)
            root = self.world.folder / "lake"
            shutil.rmtree(root, ignore_errors=True)
            for key, data in self.objects.items():
                (root / key).parent.mkdir(parents=True, exist_ok=True)
                (root / key).write_bytes(data)
            return
        s3, glue = self.world.client("s3"), self.world.client("glue")
        for key in self.world.stored() - self.objects.keys():
            s3.delete_object(Bucket=self.world.bucket, Key=f"lake/{key}")
        for key, data in self.objects.items():
            # Log entries have the same names in every course of events.
            s3.put_object(Bucket=self.world.bucket, Key=f"lake/{key}", Body=data)
        for table in _tables(self.world):
            glue.delete_table(DatabaseName=_DATABASE, Name=table["Name"])
        for name, table in self.tables.items():
            glue.create_table(DatabaseName=_DATABASE, TableInput=table)
            if self.partitions[name]:
                glue.batch_create_partition(
                    DatabaseName=_DATABASE,
                    TableName=name,
                    PartitionInputList=self.partitions[name],
                )


def _tables(world: World) -> list[dict[str, Any]]:
    glue = world.client("glue")
    try:
        pages = glue.get_paginator("get_tables").paginate(DatabaseName=_DATABASE)
        return [table for page in pages for table in page["TableList"]]
    except glue.exceptions.EntityNotFoundException:
        return []


def _partitions(world: World, table: str) -> list[dict[str, Any]]:
    pages = world.client("glue").get_paginator("get_partitions")
    found = pages.paginate(DatabaseName=_DATABASE, TableName=table)
    return [partition for page in found for partition in page["Partitions"]]


def _only(found: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: found[name] for name in names if name in found}
