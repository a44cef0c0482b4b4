"""Entry point of the command line: registers the commands, prints errors as messages."""

import os
import sys
from typing import Any

import click

from cdc_pipeline.commands.deploy import iam_policy, spark
from cdc_pipeline.commands.erase import erase
from cdc_pipeline.commands.heal import heal
from cdc_pipeline.commands.move_sensors import move_sensors
from cdc_pipeline.commands.preflight import preflight
from cdc_pipeline.commands.query import athena_sql, query, views
from cdc_pipeline.commands.reconcile import reconcile
from cdc_pipeline.commands.sandbox import demo, dev, sandbox
from cdc_pipeline.commands.serve import serve
from cdc_pipeline.commands.settings import settings_schema, tables
from cdc_pipeline.commands.status import status
from cdc_pipeline.core.errors import CdcPipelineError


class _Commands(click.Group):
    """A group that prints `CdcPipelineError` as one message instead of a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except CdcPipelineError as error:
            raise click.ClickException(str(error)) from None
        except BrokenPipeError:
            # The reader of the output, such as `head`, has closed it.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="cdc-pipeline")
def main() -> None:
    """Keep a provably complete analytical copy of DynamoDB tables in a data lake.

    The settings file cdc_pipeline.yaml (or the path in CDC_PIPELINE_CONFIG) names tables and lake.
    """


for _command in (
    athena_sql,
    demo,
    dev,
    erase,
    heal,
    iam_policy,
    move_sensors,
    preflight,
    query,
    reconcile,
    sandbox,
    serve,
    settings_schema,
    spark,
    status,
    tables,
    views,
):
    main.add_command(_command)
