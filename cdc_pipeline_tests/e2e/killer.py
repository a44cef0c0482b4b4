"""Children that kill themselves, without warning, at a chosen durable operation of the pipeline.

Run as a module it imports everything once, opens the lake of one world, and then forks a child
per job, because importing takes longer than most steps. Nothing in the package knows of it: what
the package writes with is wrapped here, in the child.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdc_pipeline_tests.e2e.world import World, few_items_are_many, open_lake

BEFORE, AFTER = "before", "after"
_PAGE_RECORDS = 2


@dataclass(frozen=True)
class Outcome:
    """How a child ended: by which signal or exit code, having begun which durable operations."""

    signal: int | None
    code: int
    operations: list[str]
    error: str


class Killer:
    """The forking process, seen from the tests."""

    def __init__(self, world: World) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(world.settings_path), str(world.margin_seconds)],
            env=world.environment({}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self, step: str, table: str, *, kill_at: int | None = None, when: str = BEFORE
    ) -> Outcome:
        """Run one step in a child; without `kill_at` it may finish."""
        job = {"step": step, "table": table, "kill_at": kill_at, "when": when}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return Outcome(**json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        with self._process as process:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(10)


class _Points:
    """Counts durable operations and ends the process at the chosen one."""

    def __init__(self, kill_at: int | None, when: str, tell: Callable[[str], None]) -> None:
        self._kill_at = kill_at
        self._when = when
        self._tell = tell
        self._count = 0
        self._lock = threading.Lock()

    def around(self, label: str, operation: Callable[[], Any]) -> Any:
        with self._lock:
            self._count += 1
            here = self._count == self._kill_at
        self._tell(label)
        if here and self._when == BEFORE:
            _die()
        result = operation()
        if here and self._when == AFTER:
            _die()
        return result

    def wrap(self, owner: Any, name: str, label: str) -> None:
        """Let every call of `owner.name` be an operation that counts."""
        original = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            return self.around(label, lambda: original(*args, **kwargs))

        setattr(owner, name, counted)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


class _CountingStore:
    """A lake's store whose writes are operations that count."""

    def __init__(self, store: Any, points: _Points) -> None:
        self._store = store
        self._points = points

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def write(self, key: str, data: bytes) -> None:
        self._points.around(f"write {key}", lambda: self._store.write(key, data))

    def create(self, key: str, data: bytes) -> bool:
        return self._points.around(f"create {key}", lambda: self._store.create(key, data))

    def delete(self, keys: Any) -> None:
        for key in keys:
            self._points.around(f"delete {key}", lambda key=key: self._store.delete([key]))


def _count_writes(client: Any, points: _Points) -> None:
    """Let each call of an AWS client that changes something be an operation that counts."""
    call = client._make_api_call

    def counted(name: str, arguments: Any) -> Any:
        if name.startswith(("Get", "Describe", "List")):
            return call(name, arguments)
        return points.around(name, lambda: call(name, arguments))

    client._make_api_call = counted


def _serve_small_pages() -> None:
    """Let the stream answer with few records at a time, so that one capture lands several times."""
    from cdc_pipeline.aws.shards import Page
    from cdc_pipeline.aws.streams import DynamoDBStreams

    make_iterator, read_page = DynamoDBStreams.iterator, DynamoDBStreams.read
    places: dict[str, tuple[str, str]] = {}

    def iterator_behind(self: DynamoDBStreams, arn: str, shard_id: str, after: str | None) -> str:
        made = make_iterator(self, arn, shard_id, after)
        places[made] = (arn, shard_id)
        return made

    def read(self: DynamoDBStreams, iterator: str) -> Page:
        page = read_page(self, iterator)
        if len(page.records) <= _PAGE_RECORDS:
            if page.next_iterator is not None:
                places[page.next_iterator] = places[iterator]
            return page
        records = page.records[:_PAGE_RECORDS]
        last = json.loads(bytes(records[-1]))["dynamodb"]["SequenceNumber"]
        return Page(records, iterator_behind(self, *places[iterator], last), page.size)

    DynamoDBStreams.iterator = iterator_behind
    DynamoDBStreams.read = read


def _run_step(step: str, lake: Any, name: str) -> None:
    from cdc_pipeline.capture.run import Failed, capture_tables
    from cdc_pipeline.core.clock import day_of
    from cdc_pipeline.lake.publish.cdc import build_cdc_day
    from cdc_pipeline.lake.publish.current_state import publish_current_state
    from cdc_pipeline.snapshot.snapshot import take_snapshot

    table = lake.settings.table(name)
    if step == "snapshot":
        take_snapshot(lake.table(table))
    elif step == "capture":
        for event in capture_tables(lake, [table]):
            if isinstance(event, Failed):
                raise event.error
    elif step == "publish":
        publish_current_state(lake.table(table))
    elif step in ("row delta", "merge"):
        with few_items_are_many(merging=step == "merge"):
            publish_current_state(lake.table(table))
    elif step == "repair":
        from cdc_pipeline.reconcile.reconcile import reconcile_full

        reconcile_full(lake.table(table), repair=True)
    elif step == "cdc":
        objects = lake.table(table).log.load().objects.values()
        for day in sorted({day_of(landed.min_write_us) for landed in objects}):
            build_cdc_day(lake.table(table), day)
    else:
        raise ValueError(step)


def _child(lake: Any, job: dict[str, Any], tell: Callable[[str], None]) -> None:
    from cdc_pipeline.snapshot import snapshot

    points = _Points(job["kill_at"], job["when"], tell)
    points.wrap(snapshot, "request_export", "request export")
    _count_writes(lake.aws.client("glue"), points)
    catalog = lake.iceberg._catalog
    points.wrap(catalog, "create_namespace_if_not_exists", "create namespace")
    points.wrap(catalog, "create_table_if_not_exists", "create Iceberg table")
    points.wrap(catalog, "commit_table", "Iceberg commit")
    lake.store = _CountingStore(lake.store, points)
    _serve_small_pages()
    _run_step(job["step"], lake, job["table"])


def _fork(lake: Any, job: dict[str, Any]) -> Outcome:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        code = 1
        try:
            _child(lake, job, lambda label: _write_line(writing, f"+{label}"))
            code = 0
        except BaseException:  # noqa: BLE001 - told to the parent, which fails the test
            for line in traceback.format_exc().splitlines():
                _write_line(writing, f"!{line}")
        finally:
            # Neither exit handlers nor buffers of the process that it was forked from.
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as pipe:
        lines = pipe.read().splitlines()
    _, status = os.waitpid(pid, 0)
    killed = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
    return Outcome(
        signal=killed,
        code=os.WEXITSTATUS(status) if killed is None else 0,
        operations=[line[1:] for line in lines if line.startswith("+")],
        error="\n".join(line[1:] for line in lines if line.startswith("!")),
    )


def _write_line(to: int, text: str) -> None:
    os.write(to, f"{text}\n".encode())


def _jobs() -> Iterator[dict[str, Any]]:
    for line in sys.stdin:
        yield json.loads(line)


def serve(settings_path: Path, margin_seconds: float) -> None:
    """Fork a child for each line of standard input; one line of outcome each."""
    from cdc_pipeline.aws.streams import DynamoDBStreams

    with contextlib.suppress(ImportError):
        # What the steps import when they need it, imported before the forks.
        import pyiceberg.catalog.glue
        import pyiceberg.catalog.sql
        import pyiceberg.io.pyarrow  # noqa: F401

    lake = open_lake(settings_path, margin_seconds)
    DynamoDBStreams(lake.aws)
    for service in ("dynamodb", "s3", "glue"):
        lake.aws.client(service)
    if lake.settings.is_s3:
        # A local lake's catalogue holds a connection to a file, which no two processes may share.
        _ = lake.iceberg
    for job in _jobs():
        print(json.dumps(vars(_fork(lake, job))), flush=True)


if __name__ == "__main__":
    serve(Path(sys.argv[1]), float(sys.argv[2]))
