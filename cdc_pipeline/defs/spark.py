"""Spark jobs of a run: how Dagster starts them, with the clients of dagster-aws.

The log of a job is in the run's log. Clients that read messages from S3 choose prefixes at random;
here the prefix is that of the work, so that a retry makes the same request to AWS and gets the job
that is running already.
"""

import hashlib
import importlib.util
import json
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
from dagster_aws.pipes import PipesEMRServerlessClient, PipesGlueClient, PipesS3MessageReader

from cdc_pipeline.core.errors import SettingsError
from cdc_pipeline.core.names import split_s3
from cdc_pipeline.core.run_context import RunContext
from cdc_pipeline.core.workers import StartWorkers, Workers
from cdc_pipeline.lake.lake import Lake, TableLake
from cdc_pipeline.settings.sections import Spark
from cdc_pipeline.spark.exchange import Exchange, setup_of
from cdc_pipeline.spark.package import ARCHIVE, ENTRY, ENTRY_FILE, ENVIRONMENT, package_folder
from cdc_pipeline.spark.session import open_workers

Context = dg.OpExecutionContext | dg.AssetExecutionContext


# Printed for each job, of a method of Dagster's own that it calls itself (1.13).
warnings.filterwarnings("ignore", "Function `PipesMessageReader.expected_writer_count`")


def workers_of(context: Context) -> Callable[[TableLake], StartWorkers]:
    """Return how a run starts workers for a table (`lake.lake.Lake.workers_of`)."""
    if isinstance(context, dg.AssetExecutionContext):
        # Pipes asks it for what an asset's context warns of.
        context = context.op_execution_context

    def of_table(table: TableLake) -> StartWorkers:
        def start(prefix: str) -> AbstractContextManager[Workers]:
            run_job = partial(_RUN[table.lake.settings.spark.start], context, table, prefix)
            exchange = Exchange(table.lake.store, prefix)
            return open_workers(exchange, setup_of(table), run_job, RunContext(context.log.info))

        return start

    return of_table


def _arguments(lake: Lake, prefix: str) -> list[str]:
    """Return the arguments of the job, see `spark.job.main`."""
    settings = lake.settings
    where = settings.lake if settings.is_s3 else str(settings.lake_folder)
    chosen = {
        "lake": where,
        "exchange": prefix,
        "timeout-minutes": str(settings.spark.timeout_minutes),
        "region": settings.region,
        "endpoint-url": settings.endpoint_url,
    }
    return [part for name, value in chosen.items() if value for part in (f"--{name}", value)]


def _submit(context: Context, table: TableLake, prefix: str, _: int) -> None:
    """Run the job as a process of this machine, which uses `spark.master`."""
    options = table.lake.settings.spark
    defaults = {"spark.log.level": "WARN", "spark.ui.showConsoleProgress": "false"}
    if options.master.startswith("local"):
        # Machines without a name of their own in DNS have a Spark, too.
        defaults |= {
            "spark.driver.host": "127.0.0.1",
            "spark.driver.bindAddress": "127.0.0.1",
            "spark.ui.enabled": "false",
        }
    command = [spark_submit(), "--master", options.master, "--name", _name(table)]
    command += [part for pair in _conf(defaults, options) for part in ("--conf", pair)]
    python = os.environ.get("PYSPARK_PYTHON", sys.executable)
    dg.PipesSubprocessClient(env={"PYSPARK_PYTHON": python}).run(
        context=context, command=[*command, str(ENTRY_FILE), *_arguments(table.lake, prefix)]
    )


def spark_submit() -> str:
    """Return the path of `spark-submit` on this machine; raises `SettingsError`."""
    home = os.environ.get("SPARK_HOME")
    package = importlib.util.find_spec("pyspark")
    folders = [Path(home)] if home else []
    folders += [Path(package.origin).parent] if package and package.origin else []
    for folder in folders:
        if (program := folder / "bin" / "spark-submit").exists():
            return str(program)
    program = shutil.which("spark-submit")
    if program is None:
        raise SettingsError(
            "spark: there is no spark-submit on this machine",
            fix="install Java 17 and `pip install pyspark`, or set SPARK_HOME, or use "
            "`engine: local`",
        )
    return program


def _run_emr(context: Context, table: TableLake, prefix: str, ended: int) -> None:
    """Run the job on EMR Serverless."""
    lake, options = table.lake, table.lake.settings.spark
    package = package_folder(lake.settings)
    python = f"./{ENVIRONMENT}/bin/python"
    defaults = {
        "spark.archives": f"{package}{ARCHIVE}#{ENVIRONMENT}",
        "spark.emr-serverless.driverEnv.PYSPARK_DRIVER_PYTHON": python,
        "spark.emr-serverless.driverEnv.PYSPARK_PYTHON": python,
        "spark.executorEnv.PYSPARK_PYTHON": python,
    }
    client: Any = lake.aws.client("emr-serverless")
    messages = f"{prefix}pipes-{ended}/"
    _EmrServerless(
        client=_WithoutDashboards(client),
        context_injector=_Context(lake, messages),
        message_reader=_Messages(lake, messages),
    ).run(
        context=context,
        start_job_run_params={
            "applicationId": options.application_id or "",
            "executionRoleArn": options.role_arn or "",
            "clientToken": _token(lake, prefix, ended),
            "name": _name(table),
            "executionTimeoutMinutes": options.timeout_minutes,
            "jobDriver": {
                "sparkSubmit": {
                    "entryPoint": f"{package}{ENTRY}",
                    "entryPointArguments": _arguments(lake, prefix),
                    "sparkSubmitParameters": " ".join(
                        f"--conf {pair}" for pair in _conf(defaults, options)
                    ),
                }
            },
        },
    )


def _run_glue(context: Context, table: TableLake, prefix: str, ended: int) -> None:
    """Run the job as a run of a Glue job, which has the package."""
    lake, options = table.lake, table.lake.settings.spark
    client: Any = lake.aws.client("glue")
    messages = f"{prefix}pipes-{ended}/"
    arguments = _arguments(lake, prefix)
    PipesGlueClient(
        client=client,
        context_injector=_Context(lake, messages),
        message_reader=_Messages(lake, messages),
    ).run(
        context=context,
        start_job_run_params={
            "JobName": options.glue_job or "",
            "Arguments": dict(zip(arguments[::2], arguments[1::2], strict=True)),
            "Timeout": options.timeout_minutes,
        },
    )


_RUN = {"spark_submit": _submit, "emr_serverless": _run_emr, "glue": _run_glue}


def _conf(defaults: dict[str, str], options: Spark) -> list[str]:
    return [f"{name}={value}" for name, value in (defaults | options.conf).items()]


def _name(table: TableLake) -> str:
    return f"cdc_pipeline {table.safe_name}"


def _token(lake: Lake, prefix: str, ended: int) -> str:
    """Return the same token for the same work, until a job of it has ended."""
    parts = (lake.settings.lake, prefix, str(ended))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


class _EmrServerless(PipesEMRServerlessClient):
    """The client, with the same request for each attempt at the same job.

    Its tags have the id of the run, and AWS refuses a token with other parameters. Its warning that
    messages in S3 are not read is not true (dagster-aws 0.29.27).
    """

    def _enrich_start_params(self, context: Any, session: Any, params: Any) -> Any:
        enriched = super()._enrich_start_params(context, session, params)
        del enriched["tags"]
        return enriched

    def _read_messages(self, context: Any, session: Any, response: Any) -> None:
        pass


class _WithoutDashboards:
    """A client of EMR Serverless that hands out no dashboards: their addresses let anyone in."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def get_dashboard_for_job_run(self, **run: str) -> str:
        """Return the command that gives the caller an address, in place of one for the log."""
        return (
            "aws emr-serverless get-dashboard-for-job-run "
            f"--application-id {run['applicationId']} --job-run-id {run['jobRunId']}"
        )


class _Messages(PipesS3MessageReader):
    """Messages of a job under a prefix of the lake."""

    def __init__(self, lake: Lake, prefix: str) -> None:
        bucket, folder = split_s3(lake.settings.lake)
        super().__init__(bucket=bucket, client=lake.aws.client("s3"), interval=2.0)
        self._prefix = "/".join(part for part in (folder.strip("/"), prefix.strip("/")) if part)

    @contextmanager
    def get_params(self) -> Iterator[Any]:
        """Yield the parameters that the job gets, the same for each attempt at the same job."""
        with super().get_params() as params:
            yield {**params, "key_prefix": self._prefix}


class _Context(dg.PipesContextInjector):
    """The context of a job in an object of the lake, so that it is no part of the request."""

    def __init__(self, lake: Lake, prefix: str) -> None:
        self._lake = lake
        self._key = f"{prefix}context.json"

    @contextmanager
    def inject_context(self, context_data: Any) -> Iterator[Any]:
        """Store the context; yield where it is."""
        self._lake.store.write(self._key, json.dumps(context_data).encode())
        bucket, key = split_s3(self._lake.store.uri(self._key))
        yield {"bucket": bucket, "key": key}

    def no_messages_debug_text(self) -> str:
        """Return a text for a job that sent no messages."""
        return "The context is an object of the lake."
