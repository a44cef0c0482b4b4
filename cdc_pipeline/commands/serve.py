"""`cdc-pipeline serve`: keep tables fresh in one process, pass by pass."""

import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from cdc_pipeline.commands.common import open_lake

if TYPE_CHECKING:
    from cdc_pipeline.service.news import News
    from cdc_pipeline.service.server import Server, ServerEvent, ServerStatus

_LEAST_SECONDS = 0.2
_WIDTH = 80


@click.command()
@click.argument("tables", nargs=-1)
@click.option(
    "--every",
    type=click.FloatRange(_LEAST_SECONDS),
    help="Seconds between two passes of a table. Default: capture.interval_seconds.",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    default=4,
    show_default=True,
    help="Tables captured at the same time.",
)
@click.option("--once", is_flag=True, help="One pass over each table, then end.")
@click.option("--json", "as_json", is_flag=True, help="Print lines of JSON.")
def serve(
    tables: tuple[str, ...], every: float | None, workers: int, once: bool, as_json: bool
) -> None:
    """Capture and publish TABLES (default: all) until stopped, in this one process.

    With DAGSTER_HOME set, Dagster is told what landed, was published and failed, and its sensors
    leave these tables alone. SIGTERM and Ctrl-C end it after the passes at hand, within seconds; it
    may be killed at any moment. Prints a line per minute, and a line per error.
    """
    from cdc_pipeline.service.news import News
    from cdc_pipeline.service.server import Server

    lake = open_lake()
    chosen = [lake.settings.table(name) for name in tables] or lake.settings.tables
    pace = every or float(lake.settings.capture.interval_seconds)
    lines = _Lines(as_json, News())
    server = Server(lake, chosen, pace, lines.event, workers=workers)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: server.stop())
    if os.environ.get("DAGSTER_HOME"):
        from cdc_pipeline.defs.tables.server_reports import dagster_reports

        with dagster_reports(lake, chosen, lines.say) as reports:
            lines.also = reports.add
            has_ended = _run(server, lines, once=once)
    else:
        has_ended = _run(server, lines, once=once)
    if not has_ended:
        # A long publication is left to the next server: nothing of it counts before its commit.
        sys.stdout.flush()
        os._exit(0)
    if once and server.status().failing:
        sys.exit(1)


def _run(server: "Server", lines: "_Lines", *, once: bool) -> bool:
    has_ended = server.run(once=once, tick=lambda: lines.status(server.status()))
    lines.status(server.status())
    return has_ended


class _Lines:
    """What is printed. `also`: gets each event, too."""

    def __init__(self, as_json: bool, news: "News") -> None:
        self._as_json = as_json
        self._news = news
        self._before: tuple[int, int] = (0, 0)
        self.also: Callable[[ServerEvent], object] = lambda _: None

    def event(self, event: "ServerEvent") -> None:
        """Print what is new for people in an event."""
        self.also(event)
        for text in self._news.of(event):
            self._line({"table": event.table.label, "error": text})

    def say(self, text: str) -> None:
        """Print a message that is about no table."""
        self._line({"message": text})

    def status(self, status: "ServerStatus") -> None:
        """Print how it stands, and what came since the last time."""
        changes, publications = self._before
        self._before = (status.changes, status.publications)
        if self._as_json:
            self._line({"status": asdict(status)})
            return
        behind = "unknown" if status.behind_seconds is None else f"{status.behind_seconds:.0f} s"
        text = (
            f"{status.tables} tables, {status.changes - changes} changes, "
            f"{status.publications - publications} published; complete to {behind} ago"
        )
        if status.failing:
            text += f"; {len(status.failing)} failing"
        if status.late_seconds >= 1:
            text += f"; late {status.late_seconds:.0f} s"
        click.echo(f"{_now():%H:%M:%S} {text}"[:_WIDTH])

    def _line(self, parts: dict[str, object]) -> None:
        if self._as_json:
            click.echo(json.dumps({"at": f"{_now():%Y-%m-%dT%H:%M:%SZ}", **parts}))
        else:
            click.echo(f"{_now():%H:%M:%S} " + ": ".join(map(str, parts.values())))


def _now() -> datetime:
    return datetime.now(UTC)
