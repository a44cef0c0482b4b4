"""The loop of the Spark job: it answers the requests of one run until that has ended.

It commits nothing. If the run is killed, the job ends by itself after some minutes, and what it has
written is not named by any commit.
"""

import argparse
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cdc_pipeline.aws.client.session import AwsSession
from cdc_pipeline.aws.s3.objects import S3Store
from cdc_pipeline.core.errors import CdcPipelineError, WorkersError
from cdc_pipeline.core.names import split_s3
from cdc_pipeline.lake.lake import Lake
from cdc_pipeline.lake.storage.store import LocalStore, Store
from cdc_pipeline.settings.load import parse_settings
from cdc_pipeline.spark.exchange import (
    FORMAT,
    JOB,
    RUN,
    Answer,
    Exchange,
    Failure,
    Watch,
    code_version,
)
from cdc_pipeline.spark.job.tasks import Distribute, Log, Work
from cdc_pipeline.spark.session import note_end

_LIFE_SECONDS = 10.0
_PATIENCE_SECONDS = 600.0
"""Silence of the run after which the job ends."""


def main(argv: Sequence[str]) -> int:
    """Run the job; returns the exit code. Arguments are followed by those of the launcher."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lake", required=True, help="s3://bucket/prefix or a local folder")
    parser.add_argument("--exchange", required=True, help="prefix of the exchange in the lake")
    parser.add_argument("--region", help="AWS region of the lake")
    parser.add_argument("--endpoint-url", help="another endpoint of AWS")
    parser.add_argument("--timeout-minutes", type=float, default=720, help="ends the job then")
    chosen, _ = parser.parse_known_args(argv)
    store = _store(chosen.lake, chosen.region, chosen.endpoint_url)
    exchange = Exchange(store, chosen.exchange)
    with _pipes_log() as log:
        try:
            from cdc_pipeline.spark.job.distribution import open_spark

            # With the lake's own encryption, which its settings name.
            settings = parse_settings(exchange.setup().settings, Path("settings.yaml"))
            exchange = Exchange(Lake.open(settings).store, chosen.exchange)
            with open_spark() as distribute:
                serve(exchange, distribute, log, timeout_seconds=chosen.timeout_minutes * 60)
        except CdcPipelineError as error:
            log(str(error))
            with suppress(CdcPipelineError):
                note_end(exchange)
            return 1
    return 0


def _store(lake: str, region: str | None, endpoint_url: str | None) -> Store:
    if not lake.startswith("s3://"):
        return LocalStore(Path(lake))
    bucket, prefix = split_s3(lake)
    return S3Store(AwsSession(region=region, endpoint_url=endpoint_url), bucket, prefix, {})


def serve(
    exchange: Exchange,
    distribute: Distribute,
    log: Log,
    *,
    patience_seconds: float = _PATIENCE_SECONDS,
    timeout_seconds: float = float("inf"),
    poll_seconds: float = 1.0,
) -> None:
    """Answer requests until the run has ended, or was silent for `patience_seconds`.

    At most for `timeout_seconds`.
    Raises `WorkersError` for a run of another version.
    """
    setup = exchange.setup()
    if (setup.format, setup.version) != (FORMAT, code_version()):
        raise WorkersError(
            f"the run is of cdc_pipeline {setup.version}, the Spark job of {code_version()}",
            fix="package the present version for Spark: cdc-pipeline spark package",
        )
    lines = [""]
    over = threading.Event()

    def told(line: str) -> None:
        lines[0] = line
        log(line)

    def live() -> None:
        while True:
            with suppress(CdcPipelineError):  # the next sign may succeed
                exchange.live(JOB, lines[0])
            if over.wait(_LIFE_SECONDS):
                return

    thread = threading.Thread(target=live, name="life", daemon=True)
    thread.start()
    watch = Watch(exchange, RUN)
    end = time.monotonic() + timeout_seconds

    def is_over() -> bool:
        life = watch.look()
        is_wanted = life is not None and not life.ended
        return not is_wanted or watch.silent_seconds() > patience_seconds or time.monotonic() > end

    try:
        while not is_over():
            for name in exchange.requests():
                request = exchange.read_request(name)
                answer = _answered(distribute, Work(setup, request), told, is_over)
                if is_over():
                    break
                exchange.answer(name, answer)
            time.sleep(poll_seconds)
    finally:
        over.set()
        thread.join()
        with suppress(CdcPipelineError):
            note_end(exchange)
            # The last object: a run that has joined removes them all after it.
            exchange.live(JOB, lines[0], ended=True)


def _answered(distribute: Distribute, work: Work, log: Log, is_over: Callable[[], bool]) -> Answer:
    results: list[Any] = []
    for result in distribute(work, log, is_over):
        if "failure" in result:
            return Answer(failure=Failure(**result["failure"]))
        results.append(result["result"])
    return Answer(results)


@contextmanager
def _pipes_log() -> Iterator[Log]:
    """Yield a function that writes a line to the run in Dagster that started this job, or here."""
    import dagster_pipes as pipes

    loader = next(
        (
            loader
            for loader in (pipes.PipesEnvVarParamsLoader(), pipes.PipesCliArgsParamsLoader())
            if loader.is_dagster_pipes_process()
        ),
        None,
    )
    if loader is None:
        yield lambda line: print(line, file=sys.stderr, flush=True)
        return
    in_s3 = "bucket" in loader.load_messages_params()
    context_in_s3 = "bucket" in loader.load_context_params()
    client = AwsSession(region=None, endpoint_url=None).client("s3")
    with pipes.open_dagster_pipes(
        params_loader=loader,
        context_loader=pipes.PipesS3ContextLoader(client) if context_in_s3 else None,
        message_writer=pipes.PipesS3MessageWriter(client, interval=1.0) if in_s3 else None,
    ) as opened:
        yield opened.log.info
