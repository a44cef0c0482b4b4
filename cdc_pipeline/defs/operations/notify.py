"""Delivery of alarms: always the log, and an SNS topic or a webhook if set."""

import json
import os
from collections.abc import Callable
from http.client import HTTPException
from typing import TYPE_CHECKING
from urllib.request import Request, urlopen

from cdc_pipeline.core.errors import CdcPipelineError, SettingsError
from cdc_pipeline.settings.model import Settings

if TYPE_CHECKING:
    from cdc_pipeline.lake.lake import Lake

_TIMEOUT_SECONDS = 10


class NotifyError(CdcPipelineError):
    """An alarm was not delivered."""


def notify(lake: "Lake", subject: str, lines: list[str], log: Callable[[str], object]) -> None:
    """Send an alarm to all channels. Raises `NotifyError` if one fails, after trying the others.

    The caller repeats the call then: delivery is at least once per channel.
    """
    from cdc_pipeline.aws.sns import publish

    text = "\n".join(lines)
    log(f"{subject}\n{text}")
    alarms, failed = lake.settings.alarms, []
    try:
        if alarms.sns_topic:
            publish(lake.aws, alarms.sns_topic, subject, text)
    except CdcPipelineError as error:
        failed.append(str(error))
    try:
        if alarms.webhook_env:
            _post(lake.settings, alarms.webhook_env, subject, text)
    except CdcPipelineError as error:
        failed.append(str(error))
    if failed:
        raise NotifyError(f"an alarm was not delivered: {subject}: " + "; ".join(failed))


def _post(settings: Settings, variable: str, subject: str, text: str) -> None:
    """POST JSON in the format of Slack, Mattermost and Teams; the address is a secret."""
    url = os.environ.get(variable, "")
    if not url.startswith(("https://", "http://")):
        raise SettingsError(
            f"alarms.webhook_env: the environment variable {variable} holds no http(s) address",
            fix=f"set {variable} where Dagster's daemon runs, or remove webhook_env",
        )
    body = json.dumps({"text": f"*{subject}*\n{text}", "database": settings.database}).encode()
    request = Request(url, body, {"Content-Type": "application/json"})
    try:
        with urlopen(request, timeout=_TIMEOUT_SECONDS):
            pass
    # Not the error's own text: it may hold the address.
    except (OSError, HTTPException, ValueError) as error:
        status = getattr(error, "code", type(error).__name__)
        raise NotifyError(f"the webhook in {variable} answered {status}") from None
