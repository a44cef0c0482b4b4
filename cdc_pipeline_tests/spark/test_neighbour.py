"""Another engine at work on our tables, between our commits: a real Spark over the same catalogue.

Whatever it does, what we show is right, or refused with what helps. Stories are random and tell
their seed.
"""

import json
import random
import warnings
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cdc_pipeline.core.errors import CdcPipelineError, LakeError
from cdc_pipeline.lake.iceberg.files import live_files
from cdc_pipeline.lake.publish.baselines import TAG, tag_baselines
from cdc_pipeline.lake.publish.cdc import build_cdc_day
from cdc_pipeline.lake.publish.current_state import publish_current_state
from cdc_pipeline.lake.publish.staleness import Staleness
from cdc_pipeline.lake.query.connection import connect_lake
from cdc_pipeline.lake.query.query import connect_for
from cdc_pipeline.lake.upkeep.maintenance import maintain_table
from cdc_pipeline_tests.lake.builder import START_US, LakeBuilder, change
from cdc_pipeline_tests.spark.engines import Spark

pytestmark = [
    pytest.mark.spark,
    # py4j leaves sockets of a session to the garbage collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

SEEDS = (1, 2, 3)
STEPS = 14
_TABLES = ("snapshot", "snapshot", "current_state", "tombstones", "cdc")
_LATER = f"{datetime.fromtimestamp(START_US / 1e6 + 10**7, UTC):%F %T}"
_FIRST = {f"k{n}": {"n": {"N": str(n)}} for n in range(5)}
_SCANNED = ("resultDataFiles", "skippedDataFiles")
_STATE = "SELECT _key, _item FROM orders.current_state"


@pytest.fixture
def neighbour(iceberg: Spark, tmp_path: Path) -> "Neighbour":
    lake = LakeBuilder.at(tmp_path, current_state={"fold_percent": 1000})
    lake.start()
    return Neighbour(lake, iceberg.session, tmp_path / "lake" / "_cdc" / "catalog.db")


class Neighbour:
    """A lake, and a Spark whose catalogue `local` is the lake's."""

    def __init__(self, built: LakeBuilder, session: Any, catalogue: Path) -> None:
        self.built = built
        self.seconds = 0
        self.truth: dict[int, dict[str, str]] = {}
        self.generation = 0
        self.untagged = False
        self.refused = 0
        self.row_deltas = 0
        self.session = session.newSession()  # with catalogues of its own
        settings = {
            "": "org.apache.iceberg.spark.SparkCatalog",
            ".catalog-impl": "org.apache.iceberg.jdbc.JdbcCatalog",
            ".uri": f"jdbc:sqlite:{catalogue}",
            ".warehouse": str(catalogue.parent),
            ".cache-enabled": "false",
        }
        for key, value in settings.items():
            self.session.conf.set(f"spark.sql.catalog.local{key}", value)

    def sql(self, statement: str) -> list[Any]:
        return self.session.sql(statement).collect()

    # ------------------------------------------------------------------------------- our steps

    def stage(self, chance: random.Random) -> None:
        """A new baseline, of what the table holds by now."""
        built, self.seconds = self.built, self.seconds + 10
        self.generation += 1
        if self.generation > 1:
            assert built.state.stream
            built.append(stream=replace(built.state.stream, generation=self.generation))
        held = map(json.loads, built.items().values())
        items = {item["pk"]["S"]: item for item in held} if self.generation > 1 else _FIRST
        baseline = built.stage(items, generation=self.generation)
        built.append(baseline=replace(baseline, export_time_us=self._us()))
        if chance.random() < 0.5:
            tag_baselines(built.table_lake)
        else:
            self.untagged = True  # as by a version that knew no tags
        self._complete()

    def land(self, chance: random.Random) -> None:
        changes = []
        for _ in range(chance.randint(1, 6)):
            self.seconds += 1
            item = None if chance.random() < 0.3 else {"v": {"N": str(self.seconds)}}
            changes.append(change(f"k{chance.randint(0, 9)}", self.seconds, item))
        self.built.land(changes, generation=max(self.generation, 1))
        self._complete()

    def publish(self, _: random.Random) -> None:
        published = publish_current_state(self.built.lake.table(self.built.table))
        self.row_deltas += bool(live_files(published.table).deletes)
        rows = self.sql("SELECT _key, _item FROM local.cdc.orders_current_state")
        assert sorted((row["_key"], row["_item"]) for row in rows) == sorted(
            self.built.items().items()
        )

    def build(self, _: random.Random) -> None:
        built, staleness = self.built, Staleness(self.built.lake)
        staleness.load(built.table)
        for stale in staleness.of_table(built.table):
            for day in stale.days if stale.asset == "cdc" else ():
                build_cdc_day(built.table_lake, day)

    def maintain(self, _: random.Random) -> None:
        maintain_table(self.built.lake.table(self.built.table))

    # ----------------------------------------------------------------------------- Spark's steps

    def compact(self, chance: random.Random) -> None:
        self._call(chance, "rewrite_data_files", "options => map('rewrite-all', 'true')")

    def expire(self, chance: random.Random) -> None:
        self._call(chance, "expire_snapshots", f"older_than => TIMESTAMP '{_LATER}'")

    def rewrite_manifests(self, chance: random.Random) -> None:
        self._call(chance, "rewrite_manifests")

    def remove_orphans(self, chance: random.Random) -> None:
        self._call(chance, "remove_orphan_files")

    def _call(self, chance: random.Random, procedure: str, more: str = "") -> None:
        self.call(chance.choice(_TABLES), procedure, more)

    def call(self, kind: str, procedure: str, more: str = "") -> None:
        table = f"orders_{kind}"
        if self.built.lake.iceberg.load(table) is None:
            return
        arguments = ", ".join(filter(None, [f"table => 'cdc.{table}'", more]))
        self.sql(f"CALL local.system.{procedure}({arguments})")

    # --------------------------------------------------------------------------------- is it right

    def _us(self) -> int:
        return START_US + self.seconds * 1_000_000

    def _complete(self) -> None:
        self.truth[self.seconds] = self.built.items()
        self.seconds += 10  # past every margin
        self.built.read_to(self._us() + 2_000_000)

    def compare(self, chance: random.Random) -> None:
        with connect_for(self.built.lake, _STATE) as connection:
            try:
                found = dict(connection.execute(_STATE).fetchall())
            except Exception as error:
                if "does not exist" not in str(error):
                    raise
            else:
                assert found == self.built.items()
        self.compare_past(chance.choice(list(self.truth)))

    def compare_past(self, seconds: int) -> None:
        """The state at a time is what it was, or refused because its baseline is gone."""
        at = datetime.fromtimestamp(START_US / 1e6 + seconds, UTC)
        try:
            with warnings.catch_warnings(action="ignore"):  # close to the first export
                connection = connect_lake(self.built.lake, as_of=at)
            with connection:
                found = dict(connection.execute(_STATE).fetchall())
        except LakeError as error:
            self.refuse(error)
        else:
            assert found == self.truth[seconds]

    def refuse(self, error: CdcPipelineError) -> None:
        """Count a refusal, if it is one of a baseline that no tag kept."""
        if not (self.untagged and "another engine has expired it" in str(error)):
            raise error
        self.refused += 1


@pytest.fixture
def row_deltas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Publications of few items are row deltas, too."""
    monkeypatch.setattr("cdc_pipeline.lake.state.row_delta.SMALL_ITEMS", -1)


@pytest.mark.usefixtures("row_deltas")
def test_spark_reads_row_deltas_and_compacts_them(neighbour: Neighbour) -> None:
    chance = random.Random(0)
    neighbour.stage(chance)
    neighbour.publish(chance)
    for number in range(8):
        neighbour.land(chance)
        neighbour.publish(chance)
        neighbour.compare(chance)
        if number % 3 == 1:
            neighbour.call("current_state", "rewrite_data_files")
        if number % 3 == 2:
            neighbour.call("current_state", "rewrite_position_delete_files")
        neighbour.compare(chance)
    assert neighbour.row_deltas > 4


@pytest.mark.usefixtures("row_deltas")
@pytest.mark.parametrize("seed", SEEDS)
def test_beside_spark_all_is_right_or_refused(neighbour: Neighbour, seed: int) -> None:
    print(f"seed {seed}")
    chance = random.Random(seed)
    ours = [neighbour.land, neighbour.land, neighbour.publish, neighbour.build, neighbour.maintain]
    ours.append(neighbour.stage)
    sparks = [neighbour.compact, neighbour.expire, neighbour.expire, neighbour.rewrite_manifests]
    sparks.append(neighbour.remove_orphans)
    neighbour.stage(chance)
    for number in range(STEPS):
        step = chance.choice(sparks if number % 2 else ours)
        try:
            step(chance)
        except CdcPipelineError as error:
            neighbour.refuse(error)
        neighbour.compare(chance)
    for seconds in neighbour.truth:
        neighbour.compare_past(seconds)


@pytest.mark.parametrize("tagged", [True, False])
def test_spark_expires_all_but_tagged_baselines(neighbour: Neighbour, tagged: bool) -> None:
    chance = random.Random(0)
    for _ in range(2):
        neighbour.stage(chance)
        neighbour.publish(chance)
        neighbour.land(chance)
    neighbour.untagged = not tagged
    if tagged:
        tag_baselines(neighbour.built.lake.table(neighbour.built.table))
    else:
        snapshots = neighbour.built.lake.iceberg.load("orders_snapshot")
        assert snapshots is not None
        neighbour.built.lake.iceberg.tag(snapshots, TAG, {})
    neighbour.call("snapshot", "expire_snapshots", f"older_than => TIMESTAMP '{_LATER}'")
    for seconds in neighbour.truth:
        neighbour.compare_past(seconds)
    assert bool(neighbour.refused) == (not tagged)


def test_rows_that_spark_deletes_are_not_built_upon(neighbour: Neighbour) -> None:
    chance = random.Random(0)
    neighbour.stage(chance)
    neighbour.publish(chance)
    key = sorted(neighbour.built.items())[0]
    neighbour.sql(f"DELETE FROM local.cdc.orders_current_state WHERE _key = '{key}'")
    neighbour.land(chance)
    with pytest.raises(LakeError, match=r"another engine has changed it(.|\n)*--full --repair"):
        neighbour.publish(chance)


def test_spark_opens_one_file_for_one_key(neighbour: Neighbour, monkeypatch: Any) -> None:
    """Keys that begin alike: only whole bounds tell files apart."""
    monkeypatch.setattr("cdc_pipeline.lake.iceberg.writer._FILE_BYTES", 1)
    monkeypatch.setattr("cdc_pipeline.lake.iceberg.writer.ROW_GROUP_ROWS", 10)
    built = neighbour.built
    built.stage({f"order-{n:04d}": {} for n in range(200)})
    built.read_to(START_US + 60_000_000)
    publish_current_state(built.table_lake)
    table = "local.cdc.orders_current_state"
    assert len(neighbour.sql(f"SELECT * FROM {table}.files")) == 20
    key = sorted(built.items())[77]
    found = neighbour.session.sql(f"SELECT * FROM {table} WHERE _key = '{key}'")
    assert len(found.collect()) == 1
    scan = found._jdf.queryExecution().executedPlan().collectLeaves().head()
    files = {name: scan.metrics().apply(name).value() for name in _SCANNED}
    assert files == {"resultDataFiles": 1, "skippedDataFiles": 19}
