"""`cdc-pipeline sandbox`, `demo` and `dev`: commands on a local AWS."""

import sys
from typing import Literal

import click

from cdc_pipeline.core.transports import DYNAMODB_STREAMS, TRANSPORTS

_transport = click.option(
    "--transport",
    type=click.Choice(TRANSPORTS),
    default=DYNAMODB_STREAMS,
    show_default=True,
    help="Transport of changes to the lake.",
)


@click.command()
@click.option("--port", default=4566, show_default=True, help="0: any free port.")
@click.option("--traffic", is_flag=True, help="Create and seed two tables and keep changing them.")
@click.option("--orders", default=2000, show_default=True, help="Orders to seed with --traffic.")
@click.option("--rate", default=5.0, show_default=True, help="Changes per second with --traffic.")
def sandbox(port: int, traffic: bool, orders: int, rate: float) -> None:
    """Run a local AWS on 127.0.0.1 (docs/sandbox.md documents its fidelity)."""
    from cdc_pipeline.sandbox.demo.serve import run_sandbox

    run_sandbox(port=port, traffic=traffic, orders=orders, rate=rate)


@click.command()
@click.option("--orders", default=20_000, show_default=True, help="Orders to seed.")
@click.option("--changes", default=5_000, show_default=True, help="Minimum of live changes.")
@click.option("--lake", "kind", type=click.Choice(["s3", "local"]), default="s3", show_default=True)
@click.option(
    "--engine",
    type=click.Choice(["local", "spark"]),
    default="local",
    show_default=True,
    help="spark: exports and full folds on a Spark cluster of this machine (Java 17, pyspark).",
)
@_transport
def demo(
    orders: int, changes: int, kind: str, engine: Literal["local", "spark"], transport: str
) -> None:
    """Run the whole pipeline once on a local AWS and prove that the lake equals its source."""
    from cdc_pipeline.sandbox.demo.demo import run_demo

    if not run_demo(orders=orders, changes=changes, kind=kind, transport=transport, engine=engine):
        sys.exit(1)


@click.command()
@click.option("--port", default=3000, show_default=True, help="Port of the Dagster UI.")
@click.option("--aws-port", default=4566, show_default=True, help="Port of the local AWS.")
@click.option("--orders", default=2000, show_default=True, help="Orders to seed.")
@click.option("--rate", default=5.0, show_default=True, help="Changes per second.")
@_transport
def dev(port: int, aws_port: int, orders: int, rate: float, transport: str) -> None:
    """Run a local AWS with live traffic and the Dagster UI, sensors and schedules enabled.

    Deletes source tables, lake and Dagster history of an earlier run.
    """
    from cdc_pipeline.sandbox.demo.dev import run_dev

    run_dev(port=port, aws_port=aws_port, orders=orders, rate=rate, transport=transport)
