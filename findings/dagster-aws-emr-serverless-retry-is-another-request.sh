#!/usr/bin/env bash
# dagster-aws 0.29.27: PipesEMRServerlessClient with one clientToken starts the same job differently in each run.
#
# Guess: the request is what the caller gives, so a second run of an asset with the same clientToken gets the job that is
# running already, which is what the token of StartJobRun is for.
# Seen: the client adds tags with the id of Dagster's run, and the run's context in the Spark parameters, so two runs send
# one token with different parameters. With messages in S3 it warns that it cannot receive them, and does receive them.
#
# Output: same token True, same tags False, same parameters False; warned True, message received True
#
# Needs Python 3.11. AWS is not asked: the two clients are stand-ins that keep what they are given. Exits 1 if that changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check 'dagster==1.13.27' 'dagster-aws==0.29.27'

cat >"$work/twice.py" <<'PYTHON'
import io
import json
import logging

import dagster as dg
from botocore.exceptions import ClientError
from dagster_aws.pipes import PipesEMRServerlessClient, PipesS3MessageReader

requests, lines = [], []


class Job:
    """Succeeds at once."""

    def start_job_run(self, **request):
        requests.append(json.loads(json.dumps(request)))
        return {"applicationId": "a", "jobRunId": "j"}

    def get_job_run(self, **_):
        return {"jobRun": {"applicationId": "a", "jobRunId": "j", "state": "SUCCESS"}}

    def get_application(self, **_):
        return {"application": {"type": "Spark"}}


class Messages:
    """Has the messages of a job that logs one line."""

    said = [("opened", {"extras": {}}), ("log", {"level": "INFO", "message": "from the job"}), ("closed", {})]

    def get_object(self, Bucket, Key):
        number = int(Key.rpartition("/")[2].partition(".")[0])
        if number > 1:
            raise ClientError({"Error": {"Code": "NoSuchKey"}}, "GetObject")
        text = "\n".join(
            json.dumps({"__dagster_pipes_version": "0.1", "method": m, "params": p}) for m, p in self.said
        )
        return {"Body": io.BytesIO(text.encode())}

    def head_object(self, **_):
        return {}


class Kept(logging.Handler):
    def emit(self, record):
        lines.append(record.getMessage())


@dg.logger
def kept(_):
    logger = logging.Logger("kept")
    logger.addHandler(Kept())
    return logger


@dg.op
def start(context):
    reader = PipesS3MessageReader(bucket="b", client=Messages(), interval=0.1)
    parameters = {"applicationId": "a", "clientToken": "one", "jobDriver": {"sparkSubmit": {"entryPoint": "s"}}}
    PipesEMRServerlessClient(client=Job(), message_reader=reader).run(
        context=context, start_job_run_params=parameters
    )


@dg.job(logger_defs={"kept": kept})
def starting():
    start()


for _ in range(2):
    starting.execute_in_process(run_config={"loggers": {"kept": {}}})
one, other = requests
spark = [request["jobDriver"]["sparkSubmit"]["sparkSubmitParameters"] for request in requests]
print(
    f"RESULT same token {one['clientToken'] == other['clientToken']}, same tags {one['tags'] == other['tags']}, "
    f"same parameters {spark[0] == spark[1]}; warned {any('able to receive' in line for line in lines)}, "
    f"message received {any('from the job' in line for line in lines)}"
)
PYTHON
told=$("$work/venv/bin/python" -W ignore "$work/twice.py" 2>/dev/null | sed -n 's/^RESULT //p')
echo "$told"
[ "$told" = "same token True, same tags False, same parameters False; warned True, message received True" ]
