"""What people should read of a server's events, in one line each, and only while it is new."""

from collections.abc import Iterator

from cdc_pipeline.capture.landing.result import CaptureResult
from cdc_pipeline.capture.run import Captured, Failed, Unregistered
from cdc_pipeline.core.clock import time_text
from cdc_pipeline.core.errors import CdcPipelineError
from cdc_pipeline.service.server import NotPublished, Published, ServerEvent


class News:
    """Errors, gaps and warnings of tables; the same text is not repeated until it is over."""

    def __init__(self) -> None:
        self._told: dict[tuple[str, str], str] = {}

    def of(self, event: ServerEvent) -> Iterator[str]:
        """Yield the new lines of an event, each without the name of its table."""
        table = event.table.label
        match event:
            case Failed(_, error):
                yield from self._new(table, "capture", _line(error))
            case NotPublished(_, error):
                yield from self._new(table, "publish", f"not published: {_line(error)}")
            case Unregistered(_, error):
                yield from self._new(table, "register", _line(error))
            case Published():
                self._told.pop((table, "publish"), None)
            case Captured(_, result):
                self._told.pop((table, "capture"), None)
                yield from self._of_capture(table, result)
            case _:
                return

    def _of_capture(self, table: str, result: CaptureResult) -> Iterator[str]:
        for gap in result.gaps:
            missing = f"{time_text(gap.from_us)} to {time_text(gap.to_us)} UTC may be missing"
            text = f"gap: {gap}; changes from {missing}. Fix: cdc-pipeline heal {table}"
            yield from self._new(table, "gap", text)
        for warning in result.warnings:
            yield from self._new(table, f"warning {warning[:60]}", warning)

    def _new(self, table: str, what: str, text: str) -> Iterator[str]:
        if self._told.get((table, what)) != text:
            self._told[table, what] = text
            yield text


def _line(error: CdcPipelineError) -> str:
    return f"{error.message}. Fix: {error.fix}" if error.fix else error.message
