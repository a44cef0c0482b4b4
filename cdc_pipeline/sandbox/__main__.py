"""`python -m cdc_pipeline.sandbox`: serve the local AWS; started by SandboxProcess."""

import argparse
import asyncio
import sys
from pathlib import Path

from cdc_pipeline.sandbox.aws.server import serve
from cdc_pipeline.sandbox.errors import SandboxError
from cdc_pipeline.sandbox.export_options import ExportOptions


def main(arguments: list[str] | None = None) -> int:
    """Serve until a signal; return the exit code, 1 with a message on stderr if start fails."""
    options = _parser().parse_args(arguments)
    try:
        serve(
            port=options.port,
            ready_file=options.ready_file,
            ttl_interval_seconds=options.ttl_interval,
            export_options=ExportOptions(
                options.export_delay, options.least_window, options.restorable_lag
            ),
            until=_end_of_input if options.until_eof else None,
        )
    except SandboxError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m cdc_pipeline.sandbox", description=__doc__)
    parser.add_argument("--port", type=int, default=4566, help="0 takes any free port")
    parser.add_argument("--ready-file", type=Path, help="gets the endpoint URL when ready")
    parser.add_argument("--ttl-interval", type=float, default=1.0, help="seconds")
    exports = ExportOptions()
    parser.add_argument("--export-delay", type=float, default=exports.delay_seconds, help="seconds")
    parser.add_argument(
        "--least-window",
        type=float,
        default=exports.least_window_seconds,
        help="shortest window of an incremental export in seconds; default as in AWS: 900",
    )
    parser.add_argument(
        "--restorable-lag",
        type=float,
        default=exports.restorable_lag_seconds,
        help="seconds from LatestRestorableDateTime to now; default as in AWS: 300",
    )
    parser.add_argument(
        "--until-eof", action="store_true", help="also stop when standard input is closed"
    )
    return parser


async def _end_of_input() -> None:
    """Return when standard input is closed, which any death of the parent process causes."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while await reader.read(1024):
        pass


if __name__ == "__main__":
    sys.exit(main())
