"""One job run: its process, states, files and logs.

Sources: "Job run states", "Storing logs" and "Job run cancellation with grace period" of the EMR
Serverless guide.
"""

import asyncio
import contextlib
import gzip
import logging
import re
import shutil
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

from cdc_pipeline.sandbox import guard
from cdc_pipeline.sandbox.aws.emr.submission import (
    JobFailedError,
    Submission,
    job_environment,
    spark_home,
)

CANCELLABLE = ("SUBMITTED", "PENDING", "SCHEDULED", "RUNNING")
_LONGEST_DETAILS = 256
_FAILED = (
    "Job failed, please check complete logs in configured logging destination. ExitCode: {}. "
    "Last few exceptions: "
)
_TRACEBACK = "Traceback (most recent call last):"
# Lines of Spark's own log and of its start.
_NOT_TELLING = re.compile(
    r"\d\d/\d\d/\d\d \d\d:\d\d:\d\d [A-Z]+ "
    rf"|Using Spark's default |WARNING: |{re.escape(_TRACEBACK)}"
)
_LAST_LINES = 3

_logger = logging.getLogger(__name__)


class Storage:
    """Objects of the local S3, as an account reads and writes them."""

    def __init__(self, s3: Any) -> None:
        self._s3 = s3

    async def read(self, uri: str, target: Path) -> None:
        """Write an object to a file; raises JobFailedError if S3 refuses."""
        bucket, key = _bucket_and_key(uri)
        headers = {"host": "127.0.0.1"}
        status, _, body = await self._s3.handle_request("GET", f"/{bucket}/{key}", headers, b"", {})
        if status >= 300:
            raise JobFailedError(f"S3 answered {status} for {uri}: is the object there?")
        await asyncio.to_thread(target.write_bytes, body)

    async def write(self, uri: str, body: bytes) -> None:
        """Write an object; raises JobFailedError if S3 refuses."""
        bucket, key = _bucket_and_key(uri)
        headers = {"host": "127.0.0.1", "content-type": "application/gzip"}
        path = f"/{bucket}/{key}"
        status, _, _ = await self._s3.handle_request("PUT", path, headers, body, {})
        if status >= 300:
            raise JobFailedError(f"S3 answered {status} for {uri}: is the bucket there?")


def _bucket_and_key(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.partition("://")[2].partition("/")
    return bucket, key


class JobRun:
    """A job run; `described` is what GetJobRun answers.

    folder: of this run alone. log_uri: where its logs go at the end, None: nowhere. timeout: of the
    running process in seconds, None: none.
    """

    def __init__(
        self,
        described: dict[str, Any],
        submission: Submission,
        storage: Storage,
        folder: Path,
        *,
        log_uri: str | None,
        timeout: float | None,
    ) -> None:
        self.described = described
        self.folder = folder
        self._submission = submission
        self._storage = storage
        self._log_uri = log_uri
        self._timeout = timeout
        self._task: asyncio.Task[None] | None = None
        self._settled = False

    @property
    def state(self) -> str:
        """State by the names of the API."""
        return self.described["state"]

    def start(self) -> None:
        """Begin to work, as the account and in the region of the current request."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    def cancel(self) -> None:
        """End the process and its children, at once as AWS ends jobs without a grace period."""
        # A job that is over, whose logs are being written, stays as it ended.
        if self._task is not None and not self._settled:
            self._enter("CANCELLING")
            self._task.cancel()

    async def ended(self) -> None:
        """Return when the run has ended."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        work = self.folder / "work"
        try:
            state, details = await self._outcome(work)
        except Exception as error:  # otherwise the run would be RUNNING for ever
            _logger.exception("job run %s", self.described["jobRunId"])
            state, details = "FAILED", f"the sandbox failed: {error}"
        self._settled = True
        await self._keep_logs()
        await asyncio.to_thread(shutil.rmtree, work, ignore_errors=True)
        self._enter(state, details)

    async def _outcome(self, work: Path) -> tuple[str, str]:
        """Run the job; return its last state and that state's details."""
        process = None
        try:
            self._enter("PENDING")
            work.mkdir(parents=True)
            arn = self.described["arn"].split(":")
            environment = job_environment(self._submission, work, account=arn[4], region=arn[3])
            spark = spark_home(environment)
            self._enter("SCHEDULED")
            command = [str(spark / "bin" / "spark-submit"), *await self._prepared(work)]
            process = await self._started(command, work, {**environment, "SPARK_HOME": str(spark)})
            self._enter("RUNNING")
            async with asyncio.timeout(self._timeout):
                code = await process.wait()
        except JobFailedError as error:
            return "FAILED", str(error)
        except TimeoutError:
            self._enter("CANCELLING")
            await _end(process)
            minutes = self.described["executionTimeoutMinutes"]
            return "CANCELLED", f"the job run took longer than {minutes} minutes"
        except asyncio.CancelledError:
            await _end(process)
            return "CANCELLED", ""
        if code:
            logs = (self.folder / name for name in ("stdout", "stderr"))
            return "FAILED", failure_details(code, *(log.read_bytes() for log in logs))
        return "SUCCESS", ""

    async def _prepared(self, work: Path) -> list[str]:
        """Fetch entry point and archives; return the arguments of spark-submit."""
        submission = self._submission
        entry_point = submission.entry_point
        if entry_point.startswith("s3://"):
            target = work / entry_point.rpartition("/")[2]
            await self._storage.read(entry_point, target)
            entry_point = str(target)
        for number, archive in enumerate(submission.archives):
            uri, _, name = archive.partition("#")
            name = name or uri.rpartition("/")[2]
            if not uri.endswith(".tar.gz"):
                raise JobFailedError(f"the archive {uri} is no .tar.gz: pack it as one")
            packed = Path(uri)
            if uri.startswith("s3://"):
                packed = self.folder / f"archive-{number}"
                await self._storage.read(uri, packed)
            await asyncio.to_thread(_unpack, packed, work / name)
        return [*submission.options, entry_point, *submission.arguments]

    async def _started(
        self, command: list[str], work: Path, environment: dict[str, str]
    ) -> asyncio.subprocess.Process:
        # The guard ends the job's process group when its standard input closes, which any death
        # of this process causes. Isolated (-I): nothing of the job's folder or of the shell.
        guarded = [sys.executable, "-I", guard.__file__, "--grace", "0", *command]
        with (self.folder / "stdout").open("wb") as out, (self.folder / "stderr").open("wb") as err:
            return await asyncio.create_subprocess_exec(
                *guarded,
                stdin=asyncio.subprocess.PIPE,
                stdout=out,
                stderr=err,
                cwd=work,
                env=environment,
            )

    async def _keep_logs(self) -> None:
        if self._log_uri is None:
            return
        run = self.described
        names = ("applications", run["applicationId"], "jobs", run["jobRunId"], "SPARK_DRIVER")
        folder = "/".join([self._log_uri.rstrip("/"), *names])
        for name in ("stdout", "stderr"):
            log = self.folder / name
            if log.exists():
                try:
                    await self._storage.write(
                        f"{folder}/{name}.gz", gzip.compress(log.read_bytes())
                    )
                except JobFailedError as error:
                    _logger.warning("job run %s: its %s: %s", run["jobRunId"], name, error)

    def _enter(self, state: str, details: str = "") -> None:
        run, now = self.described, time.time()
        run.update(state=state, stateDetails=details[:_LONGEST_DETAILS])
        run.update(updatedAt=now, attemptUpdatedAt=now)
        if state == "RUNNING":
            run["startedAt"] = now
        if state in ("SUCCESS", "FAILED", "CANCELLED"):
            run["endedAt"] = now
            run["totalExecutionDurationSeconds"] = round(now - run.get("startedAt", now))


async def _end(process: asyncio.subprocess.Process | None) -> None:
    if process is None:
        return
    assert process.stdin is not None
    process.stdin.close()
    with contextlib.suppress(ProcessLookupError):
        await process.wait()


def _unpack(packed: Path, folder: Path) -> None:
    try:
        with tarfile.open(packed) as archive:
            # Not `data`, which refuses the absolute links in packed Python environments.
            archive.extractall(folder, filter="tar")
    except (OSError, tarfile.TarError) as error:
        raise JobFailedError(f"the archive for {folder.name} is not readable: {error}") from error


def failure_details(code: int, stdout: bytes, stderr: bytes) -> str:
    """Return stateDetails of a failed job: its last exception, else the last lines of its output.

    The model of the API allows 256 characters.
    """
    start = _FAILED.format(code)
    # Spark writes the error output of a Python driver to its own standard output.
    outputs = [text.decode(errors="replace") for text in (stdout, stderr)]
    thrown = [text[text.rindex(_TRACEBACK) :] for text in outputs if _TRACEBACK in text]
    told = [line for text in thrown or outputs for line in _telling(text)]
    details = start + "\n".join(told if thrown else told[-_LAST_LINES:])
    fits = len(details) <= _LONGEST_DETAILS
    return details if fits else f"{details[: _LONGEST_DETAILS - 3]}..."


def _telling(text: str) -> list[str]:
    """Return the lines that are neither of a log nor of a stack."""
    return [
        line
        for line in text.splitlines()
        if line.strip() and not line[0].isspace() and not _NOT_TELLING.match(line)
    ]
