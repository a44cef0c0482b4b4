"""Places of the lake that can hold an item, and the search for it."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from graphlib import TopologicalSorter

from cdc_pipeline.aws.s3.objects import S3Store, StoredFile
from cdc_pipeline.core.errors import SettingsError
from cdc_pipeline.core.plans.erasure import ItemTrace
from cdc_pipeline.erase.files import count_held
from cdc_pipeline.lake.engine.masking import sources_of
from cdc_pipeline.lake.iceberg.foreign_files import NamedFiles
from cdc_pipeline.lake.lake import Lake, TableLake
from cdc_pipeline.lake.publish.entity_tables import entity_tables
from cdc_pipeline.lake.storage.store import TEMPORARY, Store
from cdc_pipeline.transform.aggregates import Aggregate, broken_aggregates, load_aggregates

KEY_COLUMNS = {
    "current_state": "_key",
    "tombstones": "item_key",
    "cdc": "keys",
    "ttl_archive": "keys",
    "snapshot": "_key",
}
"""Iceberg tables of a DynamoDB table, each with its column of item keys.

`key_columns` adds the tables of entities.
"""

_READERS = 8


def key_columns(table: TableLake) -> dict[str, str]:
    """Return `KEY_COLUMNS` and the key columns of the tables of entities."""
    return KEY_COLUMNS | dict.fromkeys(entity_tables(table), "_key")


@dataclass(frozen=True)
class SearchedPrefix:
    """A prefix of a store whose files can hold an item. `name`: as in the log and in reports."""

    name: str
    store: Store
    prefix: str


@dataclass(frozen=True)
class FileWithItem:
    """A file that holds the item. `rows`: number of its rows, lines or entries with the item."""

    place: str
    key: str
    rows: int


def lake_prefixes(table: TableLake) -> list[SearchedPrefix]:
    """Return every prefix of the lake whose files can hold items of the table."""
    paths, store = table.paths, table.lake.store
    names = {kind: f"{table.safe_name}_{kind}" for kind in key_columns(table)}
    names |= {f"aggregates.{a.name}": a.table for a in aggregates_of(table)}
    iceberg = [
        place for kind, name in names.items() for place in _table_places(table.lake, kind, name)
    ]
    return [
        SearchedPrefix("landing", store, paths.landing),
        SearchedPrefix("quarantine", store, paths.quarantine),
        SearchedPrefix("backups", store, paths.backups),
        SearchedPrefix("state", store, paths.state),
        SearchedPrefix("temporary", store, TEMPORARY),
        *iceberg,
    ]


def _table_places(lake: Lake, place: str, name: str) -> Iterator[SearchedPrefix]:
    """Yield the Iceberg table's folder in the lake, and its files if they are elsewhere."""
    yield SearchedPrefix(place, lake.store, iceberg_folder(lake, name))
    table = lake.iceberg.load(name)
    if table is not None and not lake.iceberg.is_placed(table):
        yield SearchedPrefix(place, NamedFiles(lake.iceberg, name), "")


def find_item(places: Iterable[SearchedPrefix], trace: ItemTrace) -> list[FileWithItem]:
    """Read every file and return those that hold the item."""
    return [holding for place in places for holding in files_with_item(place, trace)]


def files_with_item(place: SearchedPrefix, trace: ItemTrace) -> Iterator[FileWithItem]:
    """Read every file of a place and yield those that hold the item."""
    files = list(place.store.files(place.prefix))

    def count(file: StoredFile) -> int:
        data = place.store.read(file.key)
        return count_held(data, trace) if data is not None else 0

    with ThreadPoolExecutor(_READERS) as pool:
        for file, rows in zip(files, pool.map(count, files), strict=True):
            if rows:
                yield FileWithItem(place.name, file.key, rows)


def aggregates_of(table: TableLake) -> list[Aggregate]:
    """Return the aggregates with rows from this table, each after its inputs.

    Raises `SettingsError` for a broken one that was built before: the source of its rows is
    unknown.
    """
    for broken in broken_aggregates(table.lake.settings.aggregates_folder):
        if table.lake.iceberg.load(broken.table) is not None:
            fix = "correct the file, so that its rows can be built again"
            raise SettingsError(broken.error, fix=fix)
    every = load_aggregates(table.lake.settings.aggregates_folder)
    by_name = {aggregate.name: aggregate for aggregate in every}
    order = TopologicalSorter({a.name: [name for _, name in a.inputs] for a in every})
    sorted_names = [name for name in order.static_order() if name in by_name]
    return [
        by_name[name]
        for name in sorted_names
        if table.settings in sources_of(table.lake, by_name[name], every)
    ]


def count_versions(places: Iterable[SearchedPrefix]) -> int:
    """Count the earlier versions and delete markers in S3; a local folder has none."""
    return sum(
        1
        for place in places
        if isinstance(place.store, S3Store)
        for _ in place.store.old_versions(place.prefix)
    )


def iceberg_folder(lake: Lake, name: str) -> str:
    """Return the prefix of an Iceberg table's files in the lake."""
    return f"iceberg/{lake.database}/{name}/"
