"""`cdc-pipeline demo`: the whole pipeline once, through Dagster, compared with its source."""

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from datetime import date
from pathlib import Path
from typing import Any, Literal

import dagster as dg
from rich.console import Console
from rich.table import Table as Grid

from cdc_pipeline.core.errors import CdcPipelineError
from cdc_pipeline.core.transports import DYNAMODB_STREAMS
from cdc_pipeline.sandbox.demo.spark import local_cluster, quiet_jobs
from cdc_pipeline.sandbox.demo.traffic import Traffic, seed
from cdc_pipeline.sandbox.demo.transports import create_source
from cdc_pipeline.sandbox.demo.workspace import BUCKET, write_settings
from cdc_pipeline.sandbox.export_options import QUICK_EXPORTS
from cdc_pipeline.sandbox.process import SandboxProcess, local_client

_QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
_SOURCES = {
    DYNAMODB_STREAMS: "two tables with DynamoDB streams",
    "kinesis": "two tables, each with its changes in a Kinesis stream",
    "kinesis_channel": "two tables, each with a Kinesis stream and a channel that writes it to S3",
    "firehose": "two stacks of infra/cdc_pipeline.yaml: table, Kinesis stream, Firehose, Lambda",
}
_PUBLISH_SECONDS = 60
_TTL_SECONDS = 15


class DemoError(CdcPipelineError):
    """A step of the demo failed."""


def run_demo(
    *,
    orders: int,
    changes: int,
    kind: str,
    transport: str = DYNAMODB_STREAMS,
    engine: Literal["local", "spark"] = "local",
) -> bool:
    """Seed, export under traffic, capture, fold, aggregate, compare; True: no differences.

    `transport`, `engine`: as in the settings; for `spark` a cluster is started on this machine.
    """
    with (
        tempfile.TemporaryDirectory(prefix="cdc-demo-") as folder,
        SandboxProcess(exports=QUICK_EXPORTS) as sandbox,
        dg.DagsterInstance.ephemeral() as instance,
    ):
        sandbox.apply_environment(os.environ)
        on_spark = engine == "spark"
        with (
            local_cluster(Path(folder)) if on_spark else nullcontext() as master,
            quiet_jobs(Path(folder)) if on_spark else nullcontext(),
        ):
            path = write_settings(
                Path(folder), kind=kind, running=False, transport=transport, master=master
            )
            demo = _Demo(path, instance, transport, sandbox.endpoint_url)
            return demo.run(orders, changes)


class _Demo:
    """The steps of the demo, each printed with its result and the time elapsed."""

    def __init__(
        self,
        path: Path,
        instance: dg.DagsterInstance,
        transport: str,
        endpoint_url: str,
    ) -> None:
        from cdc_pipeline.defs.build import build_definitions
        from cdc_pipeline.lake.lake import Lake
        from cdc_pipeline.settings.load import load_settings

        self.settings = load_settings(path)
        self.lake = Lake.open(self.settings)
        self.defs = build_definitions(self.settings, path)
        self.instance = instance
        self.transport = transport
        self.endpoint_url = endpoint_url
        self.console = Console(highlight=False)
        self.started = time.monotonic()

    def run(self, orders: int, changes: int) -> bool:
        self.console.print(
            f"[bold]cdc_pipeline demo[/]: a local AWS at {self.endpoint_url}, lake "
            f"{self.settings.lake}, everything fresh"
        )
        if self.settings.engine == "spark":
            self.console.print(f"exports and full folds by Spark at {self.settings.spark.master}")
        local: Any = local_client
        local("s3").create_bucket(Bucket=BUCKET)
        dynamodb = local("dynamodb")
        customers = orders // 10
        with self.console.status("creating tables and streams"):
            create_source(self.transport)
        self._done(_SOURCES[self.transport])
        with self.console.status("seeding") as status:
            items = seed(
                dynamodb,
                orders=orders,
                customers=customers,
                progress=lambda n: status.update(f"seeding: {n:,} items"),
            )
        self._done(f"seeded {items:,} items: {orders:,} orders, {customers:,} customers")
        traffic = Traffic(dynamodb, orders=orders, customers=customers, rate=250)
        traffic.start()
        try:
            self._build(traffic)
            self._wait_for_traffic(traffic, changes)
        finally:
            counts = traffic.stop()
        self._done(f"traffic stopped after {counts.changes:,} changes: {counts}")
        self._wait_for_ttl(dynamodb)
        self._catch_up()
        self._show_results()
        return self._compare()

    def _build(self, traffic: Traffic) -> None:
        """Snapshot, capture and publish while the source keeps changing."""
        for table in self.settings.tables:
            key = dg.AssetKey([table.safe_name, "pitr_export"])
            with self.console.status(f"exporting {table.name}"):
                result = self._materialize([key])
            rows = self._number(result, key, "dagster/row_count")
            files = self._number(result, key, "files")
            self._done(
                f"{key.to_user_string()}: {rows:,} items in {files} verified files, "
                f"taken under traffic ({traffic.changes:,} changes so far)"
            )
        self._capture_until(self._is_publishable, "the export time")
        self._fold()

    def _is_publishable(self) -> bool:
        from cdc_pipeline.lake.state.base import handover_us

        states = [self.lake.table(table).log.load() for table in self.settings.tables]
        return all(s.staged and s.watermark_us >= handover_us(self.lake, s.staged) for s in states)

    def _watermark_us(self) -> int:
        return min(self.lake.table(table).log.load().watermark_us for table in self.settings.tables)

    def _capture_until(self, has_passed: Callable[[], bool], what: str) -> None:
        """Capture until all tables are complete up to a time: Firehose delivers with a delay."""
        deadline = time.monotonic() + _PUBLISH_SECONDS
        self._capture()
        while not has_passed():
            if time.monotonic() > deadline:
                raise DemoError(f"capture never passed {what}")
            time.sleep(0.5)
            self._capture()

    def _capture(self) -> None:
        with self.console.status("capturing"):
            job = self.defs.resolve_job_def("capture")
            result = job.execute_in_process(
                instance=self.instance, run_config=_QUIET, raise_on_error=False
            )
            self._check(result, "capture")
        landed = [
            e.step_materialization_data.materialization
            for e in result.all_events
            if e.is_step_materialization
        ]
        rows = sum(int(m.metadata["rows_landed"].value) for m in landed)  # type: ignore[arg-type]
        if rows:
            self._done(f"job capture: {rows:,} changes landed for {len(landed)} table days")

    def _fold(self) -> None:
        for table in self.settings.tables:
            key = dg.AssetKey([table.safe_name, "current_state"])
            with self.console.status(f"folding {table.name}"):
                result = self._materialize([key])
            rows = self._number(result, key, "dagster/row_count")
            folded = self._number(result, key, "changes_folded")
            self._done(f"{key.to_user_string()}: {rows:,} items after {folded:,} changes")

    def _wait_for_traffic(self, traffic: Traffic, changes: int) -> None:
        with self.console.status("waiting for live changes") as status:
            while traffic.changes < changes:
                status.update(f"live traffic: {traffic.changes:,} of {changes:,} changes")
                time.sleep(0.2)

    def _wait_for_ttl(self, dynamodb: Any) -> None:
        """Wait until TTL has deleted all expiring items: the comparison needs a quiet source."""
        deadline = time.monotonic() + _TTL_SECONDS
        with self.console.status("waiting for TTL to delete expired items"):
            while self._expiring(dynamodb):
                if time.monotonic() > deadline:
                    raise DemoError("TTL left expired items in the source")
                time.sleep(0.5)
        self._done("TTL has deleted every expired item")

    def _expiring(self, dynamodb: Any) -> bool:
        soon = int(time.time()) + _TTL_SECONDS
        pages = dynamodb.get_paginator("scan").paginate(
            TableName="orders",
            FilterExpression="expires_at <= :soon",
            ExpressionAttributeValues={":soon": {"N": str(soon)}},
            Select="COUNT",
        )
        return any(page["Count"] for page in pages)

    def _catch_up(self) -> None:
        ended_us = time.time_ns() // 1000
        self._capture_until(lambda: self._watermark_us() >= ended_us, "the end of traffic")
        self._fold()
        for day in self._days():
            for table in self.settings.tables:
                key = dg.AssetKey([table.safe_name, "cdc"])
                with self.console.status(f"building {key.to_user_string()}"):
                    result = self._materialize([key], day)
                rows = self._number(result, key, "dagster/partition_row_count")
                repeats = self._number(result, key, "duplicates_removed")
                self._done(f"{key.to_user_string()} {day}: {rows:,} changes, {repeats} duplicates")
        for key in sorted(self._aggregates()):
            daily = self._asset(key).partitions_def is not None
            for day in self._days() if daily else [None]:
                with self.console.status(f"building {key.to_user_string()}"):
                    result = self._materialize([key], day)
                rows = self._number(result, key, "dagster/row_count")
                self._done(f"{key.to_user_string()}{f' {day}' if day else ''}: {rows} rows")

    def _days(self) -> list[date]:
        """Return the write days of this run: one, or two around midnight."""
        logs = [self.lake.table(table).log.load() for table in self.settings.tables]
        return sorted({date.fromisoformat(o.day) for log in logs for o in log.objects.values()})

    def _show_results(self) -> None:
        from cdc_pipeline.lake.glue_partitions import registered_days

        for table in self.settings.tables:
            for partition in registered_days(self.lake.table(table)):
                self.console.print(f"  Glue partition {table.safe_name}_raw_stream {partition}")
        self._show_counts()
        self._query(
            "Revenue by customer segment (aggregates.customer_lifetime_value)",
            "SELECT * FROM aggregates.customer_lifetime_value ORDER BY revenue DESC",
        )

    def _show_counts(self) -> None:
        views = ("pitr_export", "raw_stream", "cdc", "history", "current_state")
        counts = []
        for table in self.settings.tables:
            name = table.safe_name
            columns = ", ".join(f"(SELECT count(*) FROM {name}.{view}) AS {view}" for view in views)
            counts.append(f"SELECT '{name}' AS \"table\", {columns}")
        self._query("Rows", " UNION ALL ".join(counts))

    def _query(self, title: str, sql: str) -> None:
        from cdc_pipeline.lake.query.query import connect_for

        with connect_for(self.lake, sql) as connection:
            result = connection.execute(sql)
            grid = Grid(title=title, title_justify="left")
            for column in result.description or ():
                grid.add_column(column[0], justify="right")
            for row in result.fetchall():
                grid.add_row(*(f"{v:,}" if isinstance(v, int) else str(v) for v in row))
        self.console.print(grid)

    def _compare(self) -> bool:
        """Compare every item of every table with the source, by exact typed values."""
        from cdc_pipeline.reconcile.compare import compare_with_source

        items = differences = 0
        for table in self.settings.tables:
            with self.console.status(f"comparing {table.name} with a consistent scan"):
                result = compare_with_source(self.lake.table(table))
            items, differences = items + result.items, differences + result.differences
            for key in result.examples:
                self.console.print(f"  differs: {table.name} {key}")
        style = "bold green" if not differences else "bold red"
        self.console.print(f"[{style}]{items} items compared, {differences} differences[/]")
        self.console.print(
            f"Done in {time.monotonic() - self.started:.0f} s. Next: [bold]make dev[/] opens the "
            "Dagster UI on live tables."
        )
        return differences == 0

    def _materialize(self, keys: Sequence[dg.AssetKey], day: date | None = None) -> Any:
        job = self.defs.resolve_implicit_global_asset_job_def()
        result = job.execute_in_process(
            asset_selection=list(keys),
            partition_key=day.isoformat() if day else None,
            instance=self.instance,
            run_config=_QUIET,
            raise_on_error=False,
        )
        self._check(result, ", ".join(key.to_user_string() for key in keys))
        return result

    def _check(self, result: Any, what: str) -> None:
        if result.success:
            return
        for event in result.all_events:
            if event.is_step_failure:
                data = event.step_failure_data
                failure = data.user_failure_data
                cause = (data.error.cause or data.error) if data.error else None
                reason = (failure and failure.description) or (cause and cause.to_string())
                raise DemoError(f"{what}: {reason or 'failed'}")
        raise DemoError(f"{what} failed")

    def _asset(self, key: dg.AssetKey) -> dg.AssetsDefinition:
        return self.defs.resolve_assets_def(key)

    def _all_keys(self) -> list[dg.AssetKey]:
        return [spec.key for spec in self.defs.resolve_all_asset_specs()]

    def _aggregates(self) -> list[dg.AssetKey]:
        return [key for key in self._all_keys() if key.path[0] == "aggregates"]

    def _number(self, result: Any, key: dg.AssetKey, name: str) -> int:
        """Return a number of the materialisation's metadata, of the asset or its partition."""
        for event in result.asset_materializations_for_node(key.to_python_identifier()):
            if name in event.metadata:
                return int(event.metadata[name].value)
        return 0

    def _done(self, what: str) -> None:
        elapsed = time.monotonic() - self.started
        self.console.print(f"[dim]{elapsed:6.1f} s[/]  {what}", soft_wrap=True)
