"""`cdc-pipeline sandbox`: a local AWS in the foreground, with optional traffic."""

import os
import signal
import threading

import click

from cdc_pipeline.sandbox.demo.traffic import Traffic
from cdc_pipeline.sandbox.demo.transports import start_traffic
from cdc_pipeline.sandbox.export_options import QUICK_EXPORTS
from cdc_pipeline.sandbox.process import (
    UNSET,
    UNSET_PREFIX,
    SandboxProcess,
)


def run_sandbox(*, port: int, traffic: bool, orders: int, rate: float) -> None:
    """Serve until Ctrl-C and print the environment for clients. Raises `SandboxError`."""
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    with SandboxProcess(port=port, exports=QUICK_EXPORTS) as sandbox:
        click.echo(f"Local AWS at {sandbox.endpoint_url} (Ctrl-C ends it; nothing is kept).")
        click.echo("Point any AWS client at it with:\n")
        for name, value in sandbox.environment().items():
            click.echo(f"  export {name}={value}")
        click.echo(f"  unset {' '.join(UNSET)}")
        click.echo(f"  # and every variable that starts with {UNSET_PREFIX}\n")
        running: Traffic | None = None
        if traffic:
            sandbox.apply_environment(os.environ)
            running = start_traffic(orders, rate)
            click.echo(f"Tables orders ({orders} items) and customers, {rate:g} changes/s.")
        try:
            while sandbox.running and not ended.wait(10):
                if running is not None:
                    click.echo(f"  {running.counts}")
        except KeyboardInterrupt:
            click.echo("Stopping.")
