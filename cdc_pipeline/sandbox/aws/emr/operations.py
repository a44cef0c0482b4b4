"""Operations of EMR Serverless: applications and their job runs.

ministack 1.5.33 has none of it. Shapes, errors and defaults: botocore's model emr-serverless
2021-07-13. Messages of wrong states are those recorded of AWS in gchq/sleeper, issues 1212 and
2909, and opensearch-project/sql, pull request 2577; the others are ours.
"""

import asyncio
import re
import secrets
import shutil
import tempfile
import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from cdc_pipeline.sandbox.aws.emr.job_runs import CANCELLABLE, JobRun, Storage
from cdc_pipeline.sandbox.aws.emr.protocol import VALIDATION, RefusedError, handler_of, page
from cdc_pipeline.sandbox.aws.emr.submission import spark_defaults, submission_of
from cdc_pipeline.sandbox.aws.exports.principals import principal

SERVICE = "emr-serverless"
_DEFAULT_TIMEOUT_MINUTES = 720
_STOP_SECONDS = 1.5
_RELEASE = re.compile(r"emr-\d+\.\d+\.\d+([.-].+)?")
_DESCRIBED = (
    *("name", "releaseLabel", "tags", "initialCapacity", "maximumCapacity", "networkConfiguration"),
    *("runtimeConfiguration", "monitoringConfiguration"),
)
_SUMMARY_OF_RUN = (
    *("applicationId", "name", "mode", "arn", "createdBy", "createdAt", "updatedAt"),
    *("executionRole", "state", "stateDetails", "releaseLabel", "type", "attempt"),
    *("attemptCreatedAt", "attemptUpdatedAt"),
)
_SUMMARY_OF_APPLICATION = (
    *("name", "arn", "releaseLabel", "type", "state", "createdAt", "updatedAt", "architecture"),
)


@dataclass(slots=True)
class _Application:
    """An application: its description, the request that created it, and its job runs."""

    described: dict[str, Any]
    request: dict[str, Any]
    account: str
    region: str
    runs: dict[str, JobRun] = field(default_factory=dict)
    run_of_token: dict[str, tuple[dict[str, Any], JobRun]] = field(default_factory=dict)

    def enter(self, state: str) -> None:
        self.described |= {"state": state, "updatedAt": time.time()}


@dataclass
class Pace:
    """Seconds of a minute of `executionTimeoutMinutes`, which tests shorten."""

    minute_seconds: float = 60


class EmrServerless:
    """All applications and job runs; job runs keep their logs in a temporary folder."""

    def __init__(self, app: Any, s3: Any) -> None:
        self._app, self._storage = app, Storage(s3)
        self._applications: dict[str, _Application] = {}
        self._folder: Path | None = None
        self.pace = Pace()

    def install(self) -> None:
        """Add the service to the emulator; once per process."""
        from ministack.core import router

        application = "/applications/{applicationId}"
        run = f"{application}/jobruns/{{jobRunId}}"
        self._app.SERVICE_HANDLERS[SERVICE] = handler_of(
            (
                ("POST", "/applications", self._create_application),
                ("GET", "/applications", self._list_applications),
                ("GET", application, self._get_application),
                ("DELETE", application, self._delete_application),
                ("POST", f"{application}/start", self._start_application),
                ("POST", f"{application}/stop", self._stop_application),
                ("POST", f"{application}/jobruns", self._start_job_run),
                ("GET", f"{application}/jobruns", self._list_job_runs),
                ("GET", run, self._get_job_run),
                ("DELETE", run, self._cancel_job_run),
                ("GET", f"{run}/dashboard", self._dashboard),
            )
        )
        # Without it the emulator reads every model of botocore to find out what the service is.
        router.SERVICE_PATTERNS[SERVICE] = {"host_patterns": [rf"^{SERVICE}\."]}

    async def stop(self) -> None:
        """End all job runs and remove their files."""
        runs = [run for a in self._applications.values() for run in a.runs.values()]
        for run in runs:
            if run.state in CANCELLABLE:
                run.cancel()
        if runs:
            await asyncio.wait(
                [asyncio.create_task(run.ended()) for run in runs], timeout=_STOP_SECONDS
            )
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    # Applications

    def _create_application(self, request: dict[str, Any]) -> dict[str, Any]:
        account, region = _account_and_region()
        for known in self._own():
            if known.request["clientToken"] == request["clientToken"]:
                _check_same(known.request, request)
                return _named(known)
        if request["type"].upper() != "SPARK":
            raise RefusedError(VALIDATION, f"type {request['type']}: the sandbox has Spark only")
        if not _RELEASE.fullmatch(request["releaseLabel"]):
            raise RefusedError(VALIDATION, f"there is no release {request['releaseLabel']}")
        application_id, now = _new_id(), time.time()
        described = {
            "applicationId": application_id,
            "arn": f"arn:aws:{SERVICE}:{region}:{account}:/applications/{application_id}",
            **{name: request[name] for name in _DESCRIBED if name in request},
            "type": "Spark",
            "state": "CREATED",
            "stateDetails": "",
            "createdAt": now,
            "updatedAt": now,
            "architecture": request.get("architecture", "X86_64"),
            "autoStartConfiguration": {"enabled": True}
            | (request.get("autoStartConfiguration") or {}),
            "autoStopConfiguration": {"enabled": True, "idleTimeoutMinutes": 15}
            | (request.get("autoStopConfiguration") or {}),
        }
        application = _Application(described, request, account, region)
        self._applications[application_id] = application
        return _named(application)

    def _get_application(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"application": self._application(request).described}

    def _list_applications(self, request: dict[str, Any]) -> dict[str, Any]:
        wanted = request.get("states")
        entries = [
            {"id": a.described["applicationId"], **_some(a.described, _SUMMARY_OF_APPLICATION)}
            for a in self._own()
            if (a.described["state"] in wanted if wanted else a.described["state"] != "TERMINATED")
        ]
        return page("applications", entries, request)

    def _start_application(self, request: dict[str, Any]) -> dict[str, Any]:
        application = self._application(request)
        _check_state(application, "CREATED", "STOPPED", "STARTED")
        application.enter("STARTED")
        return {}

    def _stop_application(self, request: dict[str, Any]) -> dict[str, Any]:
        application = self._application(request)
        if application.described["state"] != "STARTED":
            raise RefusedError(
                VALIDATION,
                "Application cannot be STOPPED. Applications must be in one of the following "
                "statuses: [STARTING, STARTED]",
            )
        if any("endedAt" not in run.described for run in application.runs.values()):
            raise RefusedError(
                VALIDATION, "Application cannot be STOPPED: cancel its job runs or let them end"
            )
        application.enter("STOPPED")
        return {}

    def _delete_application(self, request: dict[str, Any]) -> dict[str, Any]:
        application = self._application(request)
        _check_state(application, "CREATED", "STOPPED")
        application.enter("TERMINATED")
        return {}

    # Job runs

    def _start_job_run(self, request: dict[str, Any]) -> dict[str, Any]:
        application = self._application(request)
        known = application.run_of_token.get(request["clientToken"])
        if known is not None:
            _check_same(known[0], request)
            return _some(known[1].described, ("applicationId", "jobRunId", "arn"))
        _check_supported(request)
        described = application.described
        automatic = described["autoStartConfiguration"]["enabled"]
        _check_state(application, "STARTED", *(("CREATED", "STOPPED") if automatic else ()))
        run = self._new_run(application, request)
        application.enter("STARTED")
        application.runs[run.described["jobRunId"]] = run
        application.run_of_token[request["clientToken"]] = (request, run)
        run.start()
        return _some(run.described, ("applicationId", "jobRunId", "arn"))

    def _new_run(self, application: _Application, request: dict[str, Any]) -> JobRun:
        described, overrides = application.described, request.get("configurationOverrides") or {}
        configured = overrides.get("applicationConfiguration") or ()
        defaults = spark_defaults((*described.get("runtimeConfiguration", ()), *configured))
        submission = submission_of(request.get("jobDriver") or {}, defaults)
        monitoring = {
            **described.get("monitoringConfiguration", {}),
            **(overrides.get("monitoringConfiguration") or {}),
        }
        minutes = request.get("executionTimeoutMinutes", _DEFAULT_TIMEOUT_MINUTES)
        run_id, now = _new_id(), time.time()
        optional = ("name", "tags", "configurationOverrides", "executionIamPolicy")
        run = {
            "applicationId": described["applicationId"],
            "jobRunId": run_id,
            "arn": f"{described['arn']}/jobruns/{run_id}",
            "createdBy": principal(),
            "createdAt": now,
            "updatedAt": now,
            "executionRole": request["executionRoleArn"],
            "state": "SUBMITTED",
            "stateDetails": "",
            "releaseLabel": described["releaseLabel"],
            "type": "Spark",
            "jobDriver": request["jobDriver"],
            **{name: request[name] for name in optional if name in request},
            "executionTimeoutMinutes": minutes,
            "mode": "BATCH",
            "attempt": 1,
            "attemptCreatedAt": now,
            "attemptUpdatedAt": now,
        }
        return JobRun(
            run,
            submission,
            self._storage,
            self._folder_of(described["applicationId"], run_id),
            log_uri=(monitoring.get("s3MonitoringConfiguration") or {}).get("logUri"),
            timeout=minutes * self.pace.minute_seconds or None,
        )

    def _folder_of(self, application_id: str, run_id: str) -> Path:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="cdc-pipeline-emr-"))
        folder = self._folder / application_id / run_id
        folder.mkdir(parents=True)
        return folder

    def _get_job_run(self, request: dict[str, Any]) -> dict[str, Any]:
        described = self._run(request).described
        return {"jobRun": {name: value for name, value in described.items() if name != "type"}}

    def _list_job_runs(self, request: dict[str, Any]) -> dict[str, Any]:
        states, mode = request.get("states"), request.get("mode", "BATCH")
        after, before = (_seconds(request.get(f"createdAt{end}")) for end in ("After", "Before"))
        found = [
            run.described
            for run in reversed(self._application(request).runs.values())
            if (not states or run.state in states)
            and mode == "BATCH"
            and (after is None or run.described["createdAt"] >= after)
            and (before is None or run.described["createdAt"] <= before)
        ]
        entries = [{"id": d["jobRunId"], **_some(d, _SUMMARY_OF_RUN)} for d in found]
        return page("jobRuns", entries, request)

    def _cancel_job_run(self, request: dict[str, Any]) -> dict[str, Any]:
        run = self._run(request)
        if int(request.get("shutdownGracePeriodInSeconds", 0)):
            raise RefusedError(
                VALIDATION, "shutdownGracePeriodInSeconds: the sandbox ends jobs at once, use 0"
            )
        if run.state not in CANCELLABLE:
            run_id = run.described["jobRunId"]
            raise RefusedError(VALIDATION, f"Job run {run_id} is not in a cancellable state")
        run.cancel()
        return _some(run.described, ("applicationId", "jobRunId"))

    def _dashboard(self, request: dict[str, Any]) -> dict[str, Any]:
        # There is no Spark UI: the folder with stdout and stderr.
        return {"url": self._run(request).folder.as_uri()}

    # Finding

    def _own(self) -> list[_Application]:
        """Return the applications of the requester, newest first."""
        here = _account_and_region()
        known = reversed(self._applications.values())
        return [a for a in known if (a.account, a.region) == here]

    def _application(self, request: dict[str, Any]) -> _Application:
        application_id = request["applicationId"]
        application = self._applications.get(application_id)
        if application is None or application not in self._own():
            raise RefusedError(
                "ResourceNotFoundException", f"Application {application_id} does not exist"
            )
        return application

    def _run(self, request: dict[str, Any]) -> JobRun:
        run = self._application(request).runs.get(request["jobRunId"])
        if run is None:
            raise RefusedError(
                "ResourceNotFoundException", f"Job run {request['jobRunId']} does not exist"
            )
        return run


def _check_same(known: dict[str, Any], request: dict[str, Any]) -> None:
    # The model has ConflictException for both operations with a token; that it means this is ours.
    if known != request:
        raise RefusedError(
            "ConflictException", "the client token was used before with other parameters"
        )


def _check_state(application: _Application, *states: str) -> None:
    described = application.described
    if described["state"] not in states:
        raise RefusedError(
            VALIDATION,
            f"Application {described['applicationId']} must be in of the following statuses "
            f"[{', '.join(states)}]. Current status: {described['state']}",
        )


def _check_supported(request: dict[str, Any]) -> None:
    if request.get("mode", "BATCH") != "BATCH":
        raise RefusedError(VALIDATION, "mode: the sandbox runs jobs of the mode BATCH only")
    if (request.get("retryPolicy") or {}).get("maxAttempts", 1) > 1:
        raise RefusedError(VALIDATION, "retryPolicy: the sandbox makes one attempt only")


def _account_and_region() -> tuple[str, str]:
    from ministack.core.responses import get_account_id, get_region

    return get_account_id(), get_region()


def _new_id() -> str:
    """Return an id in the form of AWS's: 16 digits and small letters, `00` first."""
    return f"00{secrets.token_hex(7)}"


def _named(application: _Application) -> dict[str, Any]:
    return _some(application.described, ("applicationId", "name", "arn"))


def _some(values: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: values[name] for name in names if name in values}


def _seconds(text: str | None) -> float | None:
    """Return epoch seconds of a time in a query, ISO 8601."""
    return None if text is None else datetime.fromisoformat(text).timestamp()
