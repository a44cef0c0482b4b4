"""A Spark of this machine for the demo: a standalone master and a worker, from pyspark alone."""

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cdc_pipeline.sandbox.errors import SandboxError

JAVA = 17
"""The least that Spark 4 runs on."""

_CORES = 2
_SECONDS = 60


def no_java() -> str | None:
    """Return why there is no Java for Spark here and what would help; None: there is one."""
    java = shutil.which("java")
    if java is None:
        return f"there is no `java` on PATH: install a Java {JAVA} runtime or newer"
    java_version = subprocess.run([java, "-version"], capture_output=True, text=True, check=False)
    version = java_version.stderr.partition('"')[2].partition('"')[0]
    major = version.partition(".")[0]
    if java_version.returncode or not major.isdecimal() or int(major) < JAVA:
        return f"`java` is {version or 'broken'}: Spark 4 needs {JAVA} or newer"
    return None


@contextmanager
def local_cluster(folder: Path) -> Iterator[str]:
    """Start a standalone cluster on 127.0.0.1 and yield its address; it ends with the block.

    `folder`: of its logs and work. Its executors have the environment of this process. Raises
    `SandboxError` where it cannot run.
    """
    package = importlib.util.find_spec("pyspark")
    reason = no_java() or (None if package else "pyspark is not installed")
    if reason or package is None or package.origin is None:
        raise SandboxError(f"Spark: {reason}")
    program = Path(package.origin).parent / "bin" / "spark-class"
    environment = {
        **os.environ,
        "SPARK_LOCAL_IP": "127.0.0.1",
        "PYSPARK_PYTHON": sys.executable,
        "SPARK_WORKER_DIR": str(folder / "work"),
    }
    port = _free_port()
    address = f"spark://127.0.0.1:{port}"
    deploy = "org.apache.spark.deploy"
    local = ["--host", "127.0.0.1", "--webui-port", "0"]
    worker = ["--cores", str(_CORES), "--memory", "2g", *local, address]
    commands = {
        "master": [f"{deploy}.master.Master", "--port", str(port), *local],
        "worker": [f"{deploy}.worker.Worker", *worker],
    }
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for name, command in commands.items():
            with (folder / f"spark-{name}.log").open("wb") as log:
                processes.append(
                    subprocess.Popen(
                        [str(program), *command],
                        env=environment,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                    )
                )
            _wait_for(folder / f"spark-{name}.log", processes[-1], name)
        yield address
    finally:
        for process in reversed(processes):
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()


@contextmanager
def quiet_jobs(folder: Path) -> Iterator[None]:
    """Send standard error, to which the jobs of this process write, to a file in a folder."""
    before = os.dup(2)
    with (folder / "spark-jobs.log").open("wb") as log:
        os.dup2(log.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


_READY = {"master": b"I have been elected leader", "worker": b"Successfully registered"}


def _wait_for(log: Path, process: subprocess.Popen[bytes], name: str) -> None:
    deadline = time.monotonic() + _SECONDS
    while _READY[name] not in log.read_bytes():
        if process.poll() is not None or time.monotonic() > deadline:
            lines = log.read_text(errors="replace").splitlines()
            raise SandboxError(f"Spark: its {name} did not start: {' '.join(lines[-1:])}")
        time.sleep(0.1)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
