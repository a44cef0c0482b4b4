"""Captures of idle tables by the build on PYTHONPATH, in a process of its own: `benchmarks.idle`.

It runs as a script, and finds the package's modules under their names of now and of f5fdea5.
"""

import json
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from botocore.httpsession import URLLib3Session

Found = dict[str, float]

_ENTRIES = 60
_ROUNDS = 3
_SERVED_EVERY = 60.0


def _named(*paths: str) -> Any:
    """The first of these modules that the build has."""
    for path in paths:
        try:
            return import_module(path)
        except ModuleNotFoundError:
            continue
    raise ModuleNotFoundError(paths)


class Requests:
    """Requests to S3 of this process by kind: the other services of the sandbox get POST alone."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        send = URLLib3Session.send

        def counting(session: Any, request: Any) -> Any:
            kind = "LIST" if "list-type" in request.url else request.method
            target = request.headers.get("X-Amz-Target", b"")
            if target.endswith(b".GetRecords"):
                self.counts["GetRecords"] += 1
            elif target.startswith(b"AWSGlue"):
                self.counts["Glue"] += 1
            if kind != "POST":
                self.counts[kind] += 1
            return send(session, request)

        URLLib3Session.send = counting  # type: ignore[method-assign]


def _log(lake: Any, table: Any) -> Any:
    return lake.table(table).log if hasattr(lake, "table") else lake.log(table)


def _lengthen(lake: Any, table: Any) -> None:
    """Add entries in which nothing but time passes, as the captures of an hour wrote them."""
    log = _log(lake, table)
    state = log.load()
    entry_of = _named("cdc_pipeline.core.log.state", "cdc_pipeline.core.capture_log").Entry
    for number in range(_ENTRIES):
        parts = {"shards": tuple(state.shards.values()), "discovered_us": state.discovered_us}
        assert log.append(state, entry_of(0, f"{number:016x}", "host:1:run", 0, **parts))


def _measured(requests: Requests, runs: int, work: Callable[[], object]) -> Found:
    requests.counts.clear()
    cpu = time.process_time()
    work()
    cpu = time.process_time() - cpu
    return {
        "cpu_ms": 1000 * cpu / runs,
        **{kind: count / runs for kind, count in requests.counts.items()},
    }


def _capture(lake: Any, tables: list[Any]) -> None:
    run = import_module("cdc_pipeline.capture.run")
    for event in run.capture_tables(lake, tables):
        assert not isinstance(event, run.Failed), event.error


def _best(found: list[Found]) -> Found:
    return min(found, key=lambda one: one["cpu_ms"])


def _without_dagster(settings: Any, requests: Requests) -> dict[str, Found]:
    """The first capture of a process, and the captures after it."""
    lake = import_module("cdc_pipeline.lake.lake").Lake.open(settings)
    tables = settings.tables
    _capture(lake, tables)
    for table in tables:
        _lengthen(lake, table)
    _capture(lake, tables)

    def capture() -> None:
        _capture(lake, tables)

    def capture_first() -> None:
        _forget()
        capture()

    return {
        "first": _best([_measured(requests, len(tables), capture_first) for _ in range(_ROUNDS)]),
        "later": _best([_measured(requests, len(tables), capture) for _ in range(_ROUNDS)]),
    }


def _forget() -> None:
    """As a new process begins."""
    try:
        import_module("cdc_pipeline.lake.storage.log_memory").MEMORY.clear()
    except ModuleNotFoundError:
        return


def _with_dagster(settings: Any, path: Path, requests: Requests) -> dict[str, Found]:
    """The job `capture` of all tables in a process that runs already."""
    import dagster as dg

    build = import_module("cdc_pipeline.defs.build").build_definitions
    with tempfile.TemporaryDirectory() as home:
        os.environ["DAGSTER_HOME"] = home
        with dg.DagsterInstance.local_temp(home) as instance:
            job = build(settings, path).resolve_job_def("capture")

            def run() -> None:
                _forget()
                assert job.execute_in_process(instance=instance).success

            run()
            runs = [_measured(requests, len(settings.tables), run) for _ in range(_ROUNDS)]
    return {"dagster": _best(runs)}


def _served(settings: Any, requests: Requests, seconds: float) -> dict[str, Found]:
    """`cdc-pipeline serve` for this time, a pass over each table a minute; found per minute."""
    try:
        server_type = import_module("cdc_pipeline.service.server").Server
    except ModuleNotFoundError:
        return {}
    lake = import_module("cdc_pipeline.lake.lake").Lake.open(settings)
    server_type(lake, settings.tables, _SERVED_EVERY).run(once=True)
    server = server_type(lake, settings.tables, _SERVED_EVERY)
    warm = threading.Timer(_SERVED_EVERY, lambda: (requests.counts.clear(), cpu.append(_cpu())))
    cpu: list[float] = []
    end = threading.Timer(_SERVED_EVERY + seconds, server.stop)
    warm.start()
    end.start()
    server.run()
    passes = len(settings.tables) * seconds / _SERVED_EVERY
    spent = 1000 * (_cpu() - cpu[0]) / passes
    return {
        "served": {"cpu_ms": spent, **{k: n / passes for k, n in requests.counts.items()}},
    }


def _cpu() -> float:
    return time.process_time()


def main(path: Path, served_seconds: float) -> None:
    """Print what was found, as JSON."""
    requests = Requests()
    load = _named("cdc_pipeline.settings.load", "cdc_pipeline.settings").load_settings
    settings = load(path)
    found = _without_dagster(settings, requests) | _with_dagster(settings, path, requests)
    found |= _served(settings, requests, served_seconds)
    print(json.dumps(found))


if __name__ == "__main__":
    import logging

    logging.disable(logging.CRITICAL)
    main(Path(sys.argv[1]), float(sys.argv[2]))
