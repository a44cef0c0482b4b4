"""`cdc-pipeline dev`: a local AWS with live traffic and the Dagster UI, in one command."""

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Any

import click

from cdc_pipeline.core.transports import DYNAMODB_STREAMS
from cdc_pipeline.sandbox.demo.transports import start_traffic
from cdc_pipeline.sandbox.demo.workspace import BUCKET, write_settings
from cdc_pipeline.sandbox.errors import SandboxError
from cdc_pipeline.sandbox.export_options import QUICK_EXPORTS
from cdc_pipeline.sandbox.process import (
    SandboxProcess,
    child_environment,
    local_client,
)
from cdc_pipeline.settings.load import PATH_VARIABLE

_FOLDER = Path(".dev")


def run_dev(
    *, port: int, aws_port: int, orders: int, rate: float, transport: str = DYNAMODB_STREAMS
) -> None:
    """Serve until Ctrl-C. Source, lake and Dagster's history all begin empty."""
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    folder = _FOLDER.resolve()
    lock = _lock(folder.with_name(f"{folder.name}.lock"))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    home = folder / "dagster_home"
    home.mkdir()
    instance = Path("dagster.yaml")
    shutil.copy(instance, home) if instance.exists() else (home / "dagster.yaml").touch()
    settings = write_settings(folder, kind="s3", running=True, transport=transport)
    with SandboxProcess(
        port=_free(aws_port), log_file=folder / "sandbox.log", exports=QUICK_EXPORTS
    ) as sandbox:
        sandbox.apply_environment(os.environ)
        client: Any = local_client("s3")
        client.create_bucket(Bucket=BUCKET)
        click.echo("Starting afresh: source tables, lake and Dagster history are new and empty.")
        click.echo(f"Seeding {orders} orders …")
        traffic = start_traffic(orders, rate, transport)
        ui_port = _free(port)
        environment = {
            **child_environment(),
            "DAGSTER_HOME": str(home),
            PATH_VARIABLE: str(settings),
        }
        _print_addresses(ui_port, sandbox.endpoint_url, settings)
        log = folder / "dagster.log"
        click.echo(f"Dagster's output: {log}")
        with log.open("wb") as output:
            # In a folder without a dagster.yaml: Dagster would print a warning about it.
            dagster = subprocess.Popen(
                _dagster_command(ui_port),
                env=environment,
                cwd=folder,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            while dagster.poll() is None and sandbox.running and not ended.wait(30):
                click.echo(f"  traffic: {traffic.counts}")
            if not ended.is_set():
                what = "the local AWS" if dagster.poll() is None else "Dagster"
                click.echo(f"{what} ended by itself; see {folder}/*.log", err=True)
        finally:
            click.echo("Stopping …")
            _stop(dagster)
            traffic.stop()
            lock.close()


def _dagster_command(port: int) -> list[str]:
    return [
        *(sys.executable, "-m", "cdc_pipeline.sandbox.guard"),
        str(Path(sys.executable).with_name("dagster")),
        "dev",
        *("-m", "cdc_pipeline.definitions"),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--log-level", "warning"),
    ]


def _print_addresses(ui_port: int, endpoint_url: str, settings: Path) -> None:
    click.echo(
        f"Dagster UI: http://localhost:{ui_port}   Local AWS: {endpoint_url}   (Ctrl-C ends both)"
    )
    click.echo("In another shell, to query the lake while it grows:")
    click.echo(f"  export {PATH_VARIABLE}={settings} AWS_ENDPOINT_URL={endpoint_url}")
    click.echo("  export AWS_ACCESS_KEY_ID=sandbox AWS_SECRET_ACCESS_KEY=sandbox")
    click.echo('  .venv/bin/cdc-pipeline query "SELECT count(*) FROM orders.current_state"')


def _lock(path: Path) -> IO[str]:
    """Lock the folder while this process lives: a second one would delete its files."""
    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise SandboxError(
            f"another `cdc-pipeline dev` is running in {path.parent}",
            fix="end it with Ctrl-C first, or use another checkout",
        ) from None
    return file


def _stop(guard: subprocess.Popen[bytes]) -> None:
    """Stop Dagster: the UI, the daemon, its code servers and runs."""
    assert guard.stdin is not None  # it was started with a pipe
    guard.stdin.close()
    guard.wait()


def _free(port: int) -> int:
    """Return the port if nothing listens on it, else print and return a free one."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            return port
        except OSError:
            pass
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        chosen = int(probe.getsockname()[1])
    click.echo(f"Port {port} is in use; taking {chosen} instead.")
    return chosen
