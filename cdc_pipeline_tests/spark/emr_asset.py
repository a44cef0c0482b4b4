"""An asset whose work is a job run of EMR Serverless, by Dagster's own client and protocol.

`python -m cdc_pipeline_tests.spark.emr_asset ENDPOINT APPLICATION ENTRY_POINT BUCKET` materialises
it, until an interrupt.
"""

import sys
from typing import Any

import boto3
import dagster as dg
from dagster_aws.pipes import PipesEMRServerlessClient, PipesS3MessageReader

ROLE = "arn:aws:iam::000000000000:role/job"

# The job: `what` is `count`, `fail` or `hang`. It begins to work when the object `go` is there.
DRIVER = """
import signal
import boto3
from dagster_pipes import PipesS3MessageWriter, open_dagster_pipes

s3 = boto3.client("s3")
with open_dagster_pipes(message_writer=PipesS3MessageWriter(client=s3, interval=0.2)) as pipes:
    pipes.log.info("the job has begun")
    bucket, what = pipes.get_extra("bucket"), pipes.get_extra("what")
    if what == "hang":
        signal.pause()
    if what == "fail":
        raise ValueError("no such table: orders")
    s3.get_waiter("object_exists").wait(
        Bucket=bucket, Key="go", WaiterConfig={"Delay": 0.2, "MaxAttempts": 500}
    )
    from pyspark.sql import SparkSession

    rows = SparkSession.builder.getOrCreate().range(1000).count()
    pipes.report_custom_message({"rows": rows})
    pipes.report_asset_materialization(metadata={"rows": rows}, data_version="v1")
"""


def orders_asset(
    endpoint_url: str, application: str, entry_point: str, bucket: str, what: str
) -> dg.AssetsDefinition:
    """Return the asset `orders`, which logs the custom messages of its job."""
    session = boto3.Session("sandbox", "sandbox", region_name="us-east-1")
    emr, s3 = (session.client(n, endpoint_url=endpoint_url) for n in ("emr-serverless", "s3"))
    pipes = PipesEMRServerlessClient(
        client=emr,
        message_reader=PipesS3MessageReader(interval=0, bucket=bucket, client=s3),
        poll_interval=0.2,
    )

    @dg.asset
    def orders(context: dg.AssetExecutionContext) -> dg.MaterializeResult[Any]:
        params: Any = {
            "applicationId": application,
            "executionRoleArn": ROLE,
            "clientToken": context.run.run_id,
            "jobDriver": {
                "sparkSubmit": {
                    "entryPoint": entry_point,
                    "sparkSubmitParameters": "--conf spark.executor.memory=4g",
                }
            },
        }
        extras = {"bucket": bucket, "what": what}
        done = pipes.run(context=context, start_job_run_params=params, extras=extras)
        context.log.info(f"reported: {done.get_custom_messages()}")
        return done.get_materialize_result()

    return orders


if __name__ == "__main__":
    with dg.DagsterInstance.ephemeral() as instance:
        endpoint_url, application, entry_point, bucket = sys.argv[1:]
        asset = orders_asset(endpoint_url, application, entry_point, bucket, "hang")
        dg.materialize([asset], instance=instance)
